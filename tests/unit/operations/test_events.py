# SPDX-License-Identifier: Apache-2.0
"""Events and who hears them."""

import asyncio
import logging
from collections.abc import Iterator

import pytest

from flexd.api.event import Event
from flexd.operations import events as events_module
from flexd.operations.context import current_operation, current_requestor
from flexd.operations.contract import Requestor
from flexd.operations.events import EventLogHandler, Events, Subscription


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def logger(events: Events) -> Iterator[logging.Logger]:
    """A logger of our own whose records become events. Used from within a running loop."""
    logger = logging.Logger("flexd.test")
    yield logger
    logger.handlers.clear()


async def take(stream: Subscription, count: int) -> list[Event]:
    async with asyncio.timeout(10):
        return [await anext(stream) for _ in range(count)]


async def test_a_listener_hears_its_kinds_of_its_project_and_of_none(events: Events) -> None:
    with events.subscribe({"operation", "logging"}, "default") as stream:
        events.publish("operation", {"n": 1}, "default")
        events.publish("operation", {"n": 2}, "other")
        events.publish("lifecycle", {"n": 3}, "default")
        events.publish("logging", {"n": 4})
        heard = await take(stream, 2)
    assert [(event.type, event.project, event.metadata["n"]) for event in heard] == [
        ("operation", "default", 1),
        ("logging", "", 4),
    ]
    assert heard[0].location == "none"
    assert heard[0].timestamp.tzinfo is not None


async def test_a_listener_of_all_projects_hears_all(events: Events) -> None:
    with events.subscribe({"operation"}) as stream:
        events.publish("operation", {}, "a")
        events.publish("operation", {}, "b")
        assert [event.project for event in await take(stream, 2)] == ["a", "b"]


async def test_an_event_wakes_who_waits(events: Events) -> None:
    with events.subscribe({"operation"}) as stream:
        waiting = asyncio.create_task(take(stream, 1))
        await asyncio.sleep(0)
        events.publish("operation", {}, "default")
        assert len(await waiting) == 1


async def test_after_leaving_nothing_is_heard(events: Events) -> None:
    with events.subscribe({"operation"}) as stream:
        assert events.wanted("operation")
    assert not events.wanted("operation")
    events.publish("operation", {})
    assert [event async for event in stream] == []


async def test_a_slow_listener_is_dropped_and_the_others_are_not(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "QUEUE_LENGTH", 3)
    with events.subscribe({"operation"}) as slow, events.subscribe({"operation"}) as quick:
        for number in range(5):
            events.publish("operation", {"n": number})
            assert (await take(quick, 1))[0].metadata == {"n": number}
        assert [event async for event in slow] == []
        assert slow.dropped
        assert not quick.dropped


async def test_close_ends_every_stream(events: Events) -> None:
    with events.subscribe({"operation"}) as stream:

        async def follow() -> list[Event]:
            return [event async for event in stream]

        follower = asyncio.create_task(follow())
        events.publish("operation", {})
        await asyncio.sleep(0)
        events.close()
        assert len(await asyncio.wait_for(follower, 10)) == 1


async def test_lifecycle_names_who_asked(events: Events) -> None:
    with events.subscribe({"lifecycle"}) as stream:
        events.lifecycle("instance-started", "/1.0/instances/c1", "default")
        token = current_requestor.set(Requestor("ada", "unix", "@"))
        events.lifecycle("instance-renamed", "/1.0/instances/c2", "default", {"old_name": "c1"})
        current_requestor.reset(token)
        plain, asked = await take(stream, 2)
    assert plain.metadata == {"action": "instance-started", "source": "/1.0/instances/c1"}
    assert asked.metadata == {
        "action": "instance-renamed",
        "source": "/1.0/instances/c2",
        "context": {"old_name": "c1"},
        "requestor": {"username": "ada", "protocol": "unix", "address": "@"},
    }


async def test_log_records_become_events(events: Events, logger: logging.Logger) -> None:
    logger.addHandler(EventLogHandler(events))
    with events.subscribe({"logging"}, "default") as stream:
        logger.warning("Pool %s is full", "default", extra={"context": {"pool": "default", "used": 7}})
        token = current_operation.set("some-id")
        try:
            int("x")
        except ValueError:
            logger.exception("Failed counting")
        current_operation.reset(token)
        warning, error = await take(stream, 2)
    assert warning.metadata == {
        "message": "Pool default is full",
        "level": "warning",
        "context": {"logger": "flexd.test", "pool": "default", "used": "7"},
    }
    assert error.metadata["level"] == "error"
    assert error.metadata["context"]["operation"] == "some-id"
    assert "invalid literal" in error.metadata["context"]["err"]


async def test_threads_may_log(events: Events, logger: logging.Logger) -> None:
    logger.addHandler(EventLogHandler(events))
    with events.subscribe({"logging"}) as stream:
        await asyncio.gather(*(asyncio.to_thread(logger.info, "line %d", number) for number in range(20)))
        heard = await take(stream, 20)
    assert {event.metadata["message"] for event in heard} == {f"line {number}" for number in range(20)}


def test_logging_after_the_loop_is_closed_is_harmless(events: Events, logger: logging.Logger) -> None:
    async def attach() -> None:
        logger.addHandler(EventLogHandler(events))
        events.subscribe({"logging"})

    asyncio.run(attach())
    logger.error("too late")
