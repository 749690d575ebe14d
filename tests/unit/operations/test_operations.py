# SPDX-License-Identifier: Apache-2.0
"""Operations from start to removal."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from flexd.api.errors import BadRequest, Conflict, Forbidden, NotFound
from flexd.api.event import Event
from flexd.operations import operations as operations_module
from flexd.operations.context import current_operation
from flexd.operations.events import Events, Subscription
from flexd.operations.operations import Operation, Operations


class FakeChannel:
    async def receive(self) -> bytes | str | None:
        return None

    async def send(self, message: bytes | str) -> None:
        pass

    async def close(self) -> None:
        pass


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
async def operations(events: Events) -> AsyncIterator[Operations]:
    operations = Operations(events)
    yield operations
    await operations.close()


async def succeed(operation: Operation) -> Mapping[str, Any] | None:
    return {"answer": 42}


async def forever(operation: Operation) -> None:
    await asyncio.Event().wait()


async def ended(operation: Operation) -> Operation:
    assert await operation.wait(10)
    return operation


def heard(stream: Subscription) -> list[Event]:
    """What has been published so far."""
    return list(stream._queue)


async def test_a_task_succeeds(operations: Operations) -> None:
    operation = operations.start(
        "task", "Starting instance", "default", {"instances": ["/1.0/instances/c1"]}, succeed, metadata={"a": 1}
    )
    first = operation.render()
    assert (first.status, first.status_code, first.class_, first.location) == ("Running", 103, "task", "none")
    await ended(operation)
    last = operation.render()
    assert (last.status, last.status_code, last.err, last.metadata) == ("Success", 200, "", {"a": 1, "answer": 42})
    assert last.updated_at >= last.created_at == first.created_at


async def test_instances_are_named_as_containers_too(operations: Operations) -> None:
    resources = {"instances": ["/1.0/instances/c1?project=p"], "images": ["/1.0/images/x"]}
    operation = operations.start("task", "", "default", resources, succeed)
    assert operation.render().resources == {
        "instances": ["/1.0/instances/c1?project=p"],
        "containers": ["/1.0/containers/c1?project=p"],
        "images": ["/1.0/images/x"],
    }


async def test_our_error_is_the_operations(operations: Operations) -> None:
    async def fail(operation: Operation) -> None:
        raise Conflict('Failed starting "c1": it is running')

    shown = (await ended(operations.start("task", "", "default", {}, fail))).render()
    assert (shown.status, shown.status_code, shown.err) == ("Failure", 400, 'Failed starting "c1": it is running')


async def test_an_unknown_error_is_logged_and_not_shown(
    operations: Operations, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(operation: Operation) -> None:
        raise KeyError("/secret/path")

    shown = (await ended(operations.start("task", "Starting", "default", {}, fail))).render()
    assert "KeyError" in shown.err
    assert "secret" not in shown.err
    assert "/secret/path" in caplog.text
    assert "Traceback" in caplog.text


async def test_each_change_of_state_is_an_event(events: Events, operations: Operations) -> None:
    with events.subscribe({"operation"}, "p") as stream:
        operation = await ended(operations.start("task", "Doing", "p", {}, succeed))
        shown = [event.metadata for event in heard(stream)]
    assert [entry["status"] for entry in shown] == ["Pending", "Running", "Success"]
    assert all(entry["id"] == operation.id and entry["class"] == "task" for entry in shown)
    assert shown[-1]["metadata"] == {"answer": 42}


async def test_updates_are_published_each(events: Events, operations: Operations) -> None:
    async def work(operation: Operation) -> None:
        for number in range(20):
            operation.update({"n": number})

    with events.subscribe({"operation"}) as stream:
        await ended(operations.start("task", "", "default", {}, work))
        assert len(heard(stream)) == 2 + 20 + 1


async def test_progress_is_thinned_but_its_last_is_published(
    events: Events, operations: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations_module, "PROGRESS_INTERVAL_S", 0.02)
    go_on = asyncio.Event()

    async def work(operation: Operation) -> None:
        for number in range(1000):
            operation.progress({"n": number})
        await go_on.wait()

    with events.subscribe({"operation"}) as stream:
        operation = operations.start("task", "", "default", {}, work)
        async with asyncio.timeout(10):
            async for event in stream:
                if event.metadata["metadata"].get("n") == 999:
                    break
        assert not heard(stream)
        go_on.set()
        await ended(operation)


async def test_progress_may_come_from_a_thread(operations: Operations) -> None:
    async def work(operation: Operation) -> None:
        await asyncio.to_thread(operation.progress, {"download_progress": "45%"})

    operation = await ended(operations.start("task", "", "default", {}, work))
    assert operation.render().metadata == {"download_progress": "45%"}


async def test_after_the_end_nothing_changes(events: Events, operations: Operations) -> None:
    operation = await ended(operations.start("task", "", "default", {}, succeed))
    with events.subscribe({"operation"}) as stream:
        operation.update({"late": 1})
        operation.progress({"late": 1})
        assert not heard(stream)
    assert "late" not in operation.render().metadata


async def test_wait_tells_whether_it_has_ended(operations: Operations) -> None:
    operation = operations.start("task", "", "default", {}, forever, may_cancel=True)
    assert not await operation.wait(0)
    assert not await operation.wait(0.01)
    await operation.cancel()
    assert await operation.wait(-1)
    assert await operation.wait()
    assert await operation.wait(0)


async def test_cancel_interrupts_the_task(operations: Operations, events: Events) -> None:
    undone: list[str] = []

    async def work(operation: Operation) -> None:
        try:
            await forever(operation)
        finally:
            undone.append("undone")

    with events.subscribe({"operation"}) as stream:
        operation = operations.start("task", "", "default", {}, work, may_cancel=True)
        assert operation.render().may_cancel
        await asyncio.sleep(0)
        await operation.cancel()
        assert operation.render().status_code == 104
        await ended(operation)
        statuses = [event.metadata["status"] for event in heard(stream)]
    assert statuses == ["Pending", "Running", "Cancelling", "Cancelled"]
    assert undone == ["undone"]
    assert (operation.render().status_code, operation.render().may_cancel) == (401, False)


async def test_cancel_runs_the_operations_own_way(operations: Operations) -> None:
    killed = asyncio.Event()

    async def work(operation: Operation) -> Mapping[str, Any]:
        try:
            await killed.wait()
        except asyncio.CancelledError:
            assert killed.is_set()
        return {"return": 137}

    async def kill() -> None:
        killed.set()

    operation = operations.start("websocket", "", "default", {}, work, on_cancel=kill)
    await asyncio.sleep(0)
    await operation.cancel()
    await ended(operation)
    assert (operation.status, operation.metadata) == ("Cancelled", {"return": 137})


async def test_a_cancel_that_fails_leaves_it_running(operations: Operations) -> None:
    async def refuse() -> None:
        raise Conflict("Too late to stop the disk's copy")

    operation = operations.start("task", "", "default", {}, forever, on_cancel=refuse)
    with pytest.raises(Conflict):
        await operation.cancel()
    assert operation.status == "Running"


async def test_what_comes_to_its_end_despite_a_cancel_is_a_success(operations: Operations) -> None:
    async def work(operation: Operation) -> None:
        try:
            await forever(operation)
        except asyncio.CancelledError:
            return

    operation = operations.start("task", "", "default", {}, work, may_cancel=True)
    await asyncio.sleep(0)
    await operation.cancel()
    assert (await ended(operation)).status == "Success"


async def test_cancelled_before_its_first_step(operations: Operations) -> None:
    """What was prepared for it is cleared away all the same."""
    cleared = []

    async def work(_operation: Operation) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleared.append(True)

    operation = operations.start("task", "", "default", {}, work, may_cancel=True)
    await operation.cancel()
    await operation.wait()
    assert (operation.status, cleared) == ("Cancelled", [True])


async def test_what_may_not_be_cancelled(operations: Operations) -> None:
    operation = operations.start("task", "", "default", {}, forever)
    with pytest.raises(BadRequest, match="This operation can't be cancelled"):
        await operation.cancel()
    done = await ended(operations.start("task", "", "default", {}, succeed, may_cancel=True))
    with pytest.raises(BadRequest, match="Only running operations can be cancelled"):
        await done.cancel()


async def test_a_token_stays_until_cancelled(operations: Operations) -> None:
    operation = operations.start("token", "", "default", {}, None, metadata={"secret": "x"})
    assert operation.render().may_cancel
    assert not await operation.wait(0)
    await operation.cancel()
    assert (await ended(operation)).status == "Cancelled"


async def test_channels_are_opened_by_their_secret_once(operations: Operations) -> None:
    async def work(operation: Operation) -> Mapping[str, Any]:
        return {"same": await operation.channel("0") is stdin and await operation.channel("control") is control}

    stdin, control = FakeChannel(), FakeChannel()
    operation = operations.start("websocket", "", "default", {}, work)
    fds = {name: operation.expect_channel(name) for name in ("0", "control")}
    operation.update({"fds": fds})
    assert operation.render().metadata == {"fds": fds}
    with pytest.raises(Forbidden):
        operation.connect("wrong", stdin)
    operation.connect(fds["control"], control)
    with pytest.raises(Forbidden):
        operation.connect(fds["control"], control)
    assert not await operation.wait(0)
    operation.connect(fds["0"], stdin)
    await ended(operation)
    assert operation.metadata["same"] is True


async def test_who_comes_after_the_end_is_let_in_once_and_given_to_nobody(operations: Operations) -> None:
    operation = operations.start("websocket", "", "default", {}, succeed)
    secret = operation.expect_channel("0")
    await ended(operation)
    operation.connect(secret, FakeChannel())
    with pytest.raises(asyncio.CancelledError):
        await operation.channel("0")
    for other in (secret, "wrong"):
        with pytest.raises(Forbidden):
            operation.connect(other, FakeChannel())


async def test_a_task_has_no_channels(operations: Operations) -> None:
    operation = operations.start("task", "", "default", {}, succeed)
    with pytest.raises(BadRequest):
        operation.connect("x", FakeChannel())


async def test_the_task_knows_its_operation(operations: Operations) -> None:
    async def work(operation: Operation) -> Mapping[str, Any]:
        return {"id": current_operation.get()}

    operation = await ended(operations.start("task", "", "default", {}, work))
    assert operation.metadata == {"id": operation.id}
    assert current_operation.get() == ""


async def test_list_and_get(operations: Operations) -> None:
    one = operations.start("task", "", "a", {}, forever)
    two = operations.start("task", "", "b", {}, forever)
    assert operations.list() == [one, two]
    assert operations.list("b") == [two]
    assert operations.get(one.id) is one
    with pytest.raises(NotFound, match="Operation not found"):
        operations.get("nothing")


async def test_a_finished_one_is_shown_a_while(events: Events) -> None:
    operations = Operations(events, finished_kept_s=0.01)
    operation = await ended(operations.start("task", "", "a", {}, succeed))
    assert operations.get(operation.id) is operation
    async with asyncio.timeout(10):
        while operations.list():
            await asyncio.sleep(0.005)
    with pytest.raises(NotFound):
        operations.get(operation.id)
    await operations.close()


async def test_close_ends_everything_and_refuses_more(events: Events) -> None:
    operations = Operations(events)
    started = [operations.start("task", "", "a", {}, forever), operations.start("token", "", "a", {}, None)]
    await asyncio.sleep(0)
    await operations.close()
    assert [operation.status for operation in started] == ["Cancelled", "Cancelled"]
    with pytest.raises(BadRequest, match="shutting down"):
        operations.start("task", "", "a", {}, succeed)


async def test_close_names_what_does_not_end(
    events: Events, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(operations_module, "CLOSE_TIMEOUT_S", 0.01)
    release = asyncio.Event()

    async def stubborn(operation: Operation) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    operations = Operations(events)
    operation = operations.start("task", "Copying", "a", {}, stubborn)
    await asyncio.sleep(0)
    with caplog.at_level(logging.ERROR):
        await operations.close()
    assert 'Operation "Copying"' in caplog.text
    release.set()
    await ended(operation)
    operations._removals[operation.id].cancel()
