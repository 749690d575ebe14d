# SPDX-License-Identifier: Apache-2.0
"""Events: LXD's `operation`, `lifecycle` and `logging`, handed to whoever listens on `GET /1.0/events`.

Publishing never waits: each listener has a bounded queue, and one that does not keep up is dropped.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

from flexd.api.event import Event
from flexd.api.times import now
from flexd.operations.context import current_operation, current_requestor

# Events a listener may lag behind. A progress bar makes 10 a second; this is minutes of them, some MB at worst.
QUEUE_LENGTH = 4096
# `location` of a server that is not in a cluster.
NO_CLUSTER = "none"


class Subscription:
    """`with events.subscribe(...) as stream:` then `async for event in stream`. Ends when the listener was dropped
    or the daemon stops."""

    def __init__(self, events: "Events", kinds: frozenset[str], project: str | None) -> None:
        self._events = events
        self.kinds = kinds
        self.project = project
        self.dropped = False
        self._queue: deque[Event] = deque()
        self._news = asyncio.Event()
        self._ended = False

    def wants(self, kind: str, project: str | None) -> bool:
        """Events of no project, such as logging, go to the listeners of every project."""
        return kind in self.kinds and (self.project is None or not project or project == self.project)

    def offer(self, event: Event) -> None:
        if len(self._queue) >= QUEUE_LENGTH:
            self.dropped = True
            self._queue.clear()
            self.end()
        elif not self._ended:
            self._queue.append(event)
            self._news.set()

    def end(self) -> None:
        self._ended = True
        self._news.set()

    def __enter__(self) -> "Subscription":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._events.unsubscribe(self)

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        while not self._queue:
            if self._ended:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._queue.popleft()


class Events:
    """The daemon's one source of events. Everything but `EventLogHandler` runs in the loop."""

    def __init__(self) -> None:
        self._subscriptions: list[Subscription] = []

    def wanted(self, kind: str) -> bool:
        """Whether anybody listens; saves rendering what nobody hears."""
        return any(kind in subscription.kinds for subscription in self._subscriptions)

    def publish(self, kind: str, metadata: dict[str, Any], project: str | None = None) -> None:
        """`kind`: operation, lifecycle or logging; metadata as on the wire, not changed by the caller afterwards."""
        event = Event(NO_CLUSTER, metadata, project or "", now(), kind)
        for subscription in list(self._subscriptions):
            if subscription.wants(kind, project):
                subscription.offer(event)
                if subscription.dropped:
                    self.unsubscribe(subscription)

    def lifecycle(self, action: str, source: str, project: str, context: dict[str, Any] | None = None) -> None:
        """`instance-started` of `/1.0/instances/c1`, by whoever made the current request."""
        metadata: dict[str, Any] = {"action": action, "source": source}
        if context:
            metadata["context"] = context
        requestor = current_requestor.get()
        if requestor is not None:
            metadata["requestor"] = {
                "username": requestor.username,
                "protocol": requestor.protocol,
                "address": requestor.address,
            }
        self.publish("lifecycle", metadata, project)

    def subscribe(self, kinds: Iterable[str], project: str | None = None) -> Subscription:
        """Listen from now on; `project` None hears all projects."""
        subscription = Subscription(self, frozenset(kinds), project)
        self._subscriptions.append(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        subscription.end()
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    def close(self) -> None:
        """End every subscription; the daemon stops."""
        for subscription in list(self._subscriptions):
            self.unsubscribe(subscription)


class EventLogHandler(logging.Handler):
    """Publishes log records as `logging` events, from any thread. A record's `context` (given by
    `extra={"context": {...}}`) becomes the event's."""

    def __init__(self, events: Events, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self._events = events
        self._loop = asyncio.get_running_loop()

    def emit(self, record: logging.LogRecord) -> None:
        if not self._events.wanted("logging") or self._loop.is_closed():
            return
        metadata = {
            "message": record.getMessage(),
            "level": record.levelname.lower(),
            "context": _log_context(record),
        }
        with suppress(RuntimeError):  # the loop closed since the check above: nobody listens any more
            self._loop.call_soon_threadsafe(self._events.publish, "logging", metadata)


def _log_context(record: logging.LogRecord) -> dict[str, str]:
    context = {"logger": record.name}
    operation = current_operation.get()
    if operation:
        context["operation"] = operation
    if record.exc_info and record.exc_info[1] is not None:
        context["err"] = str(record.exc_info[1])
    given = getattr(record, "context", None)
    if isinstance(given, Mapping):
        context.update({str(key): str(value) for key, value in given.items()})
    return context
