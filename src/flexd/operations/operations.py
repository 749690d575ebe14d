# SPDX-License-Identifier: Apache-2.0
"""Background operations: what a 202 answer names, and `/1.0/operations` shows, waits for, cancels and connects to."""

import asyncio
import logging
import secrets
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Literal

import msgspec

from flexd.api.errors import BadRequest, FlexdError, Forbidden, NotFound
from flexd.api.operation import Operation as WireOperation
from flexd.api.times import now
from flexd.operations.context import current_operation
from flexd.operations.contract import Channel
from flexd.operations.events import NO_CLUSTER, Events

log = logging.getLogger(__name__)

Kind = Literal["task", "websocket", "token"]
Run = Callable[["Operation"], Awaitable[Mapping[str, Any] | None]]

# LXD's status codes of an operation.
STATUS_CODES = {"Pending": 105, "Running": 103, "Cancelling": 104, "Success": 200, "Failure": 400, "Cancelled": 401}
# LXD shows a finished operation for this long, so that a client can still ask how it ended.
FINISHED_KEPT_S = 5.0
# Progress is published at most this often: what a person can read of a changing number.
PROGRESS_INTERVAL_S = 0.1
# Longer than any undo should take; systemd's own limit for a stop is 90 s.
CLOSE_TIMEOUT_S = 30.0


class Operation:
    """One operation. Made by `Operations.start`; all but `progress` is called in the loop."""

    def __init__(
        self,
        events: Events,
        kind: Kind,
        description: str,
        project: str,
        resources: Mapping[str, Iterable[str]],
        metadata: Mapping[str, Any] | None,
        on_cancel: Callable[[], Awaitable[None]] | None,
        may_cancel: bool,
        on_end: Callable[["Operation"], None],
    ) -> None:
        self.id = str(uuid.uuid4())
        self.kind = kind
        self.description = description
        self.project = project
        self.may_cancel = may_cancel
        self.status = "Pending"
        self.err = ""
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.created_at = self.updated_at = now()
        self._resources = _with_containers({key: list(urls) for key, urls in resources.items()})
        self._events = events
        self._on_cancel = on_cancel
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._finished = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._channels: dict[str, asyncio.Future[Channel]] = {}
        self._secrets: dict[str, str] = {}
        self._wait_secret = ""
        self._published_at = 0.0
        self._later: asyncio.TimerHandle | None = None

    @property
    def finished(self) -> bool:
        return self._finished.is_set()

    def render(self) -> WireOperation:
        return WireOperation(
            class_=self.kind,
            created_at=self.created_at,
            description=self.description,
            err=self.err,
            id=self.id,
            location=NO_CLUSTER,
            may_cancel=self.may_cancel,
            metadata=dict(self.metadata),
            resources=self._resources,
            status=self.status,
            status_code=STATUS_CODES[self.status],
            updated_at=self.updated_at,
        )

    def update(self, metadata: Mapping[str, Any]) -> None:
        """Merge into the metadata and publish at once; ignored after the end."""
        if not self.finished:
            self._merge(metadata)
            self._publish()

    def progress(self, metadata: Mapping[str, Any]) -> None:
        """As `update`, from any thread, published at most ten times a second; the last one is never lost."""
        if threading.get_ident() != self._loop_thread:
            self._loop.call_soon_threadsafe(self.progress, metadata)
            return
        if self.finished:
            return
        self._merge(metadata)
        wait_s = self._published_at + PROGRESS_INTERVAL_S - self._loop.time()
        if wait_s <= 0:
            self._publish()
        elif self._later is None:
            self._later = self._loop.call_later(wait_s, self._publish)

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it has ended within timeout_s; None or negative: wait for ever (LXD's `timeout=-1`)."""
        try:
            async with asyncio.timeout(timeout_s if timeout_s is not None and timeout_s >= 0 else None):
                await self._finished.wait()
        except TimeoutError:
            return self.finished
        return True

    async def cancel(self) -> None:
        """Ask it to end; `wait` tells when it has taken back what it did. BadRequest if it cannot be cancelled."""
        if self.status != "Running":
            raise BadRequest("Only running operations can be cancelled")
        if not self.may_cancel:
            raise BadRequest("This operation can't be cancelled")
        self._set_status("Cancelling")
        if self._on_cancel is not None:
            try:
                await self._on_cancel()
            except BaseException:
                if not self.finished:
                    self._set_status("Running")
                raise
        self._interrupt()

    def end_token(self) -> None:
        """A token was used, or is too old."""
        if not self.finished:
            self._end("Cancelled")

    def allow_wait(self, secret: str) -> None:
        """Let whoever knows the secret wait for the end without being trusted."""
        self._wait_secret = secret

    def may_wait(self, secret: str) -> bool:
        return bool(self._wait_secret) and secrets.compare_digest(self._wait_secret.encode(), secret.encode())

    def expect_channel(self, name: str) -> str:
        """Announce a websocket and return the secret that opens it, once. To be called before the 202 answer."""
        secret = secrets.token_hex(32)
        self._secrets[secret] = name
        self._channels[name] = self._loop.create_future()
        return secret

    async def channel(self, name: str) -> Channel:
        """The websocket of that name, as soon as a client has connected it."""
        return await asyncio.shield(self._channels[name])

    def connect(self, secret: str, channel: Channel) -> None:
        """Hand over a client's websocket; Forbidden for a secret that is wrong or was used. Whoever comes when the
        operation has ended already (a short command, a slow client) is let in, and finds nothing there."""
        if self.kind != "websocket":
            raise BadRequest("Only websocket operations can be connected")
        name = self._secrets.pop(secret, None)
        if name is None:
            raise Forbidden("The operation's secret is wrong or was used already")
        if not self.finished:
            self._channels[name].set_result(channel)

    def _begin(self, run: Run | None) -> None:
        self._publish()
        self._set_status("Running")
        if run is not None:
            self._task = self._loop.create_task(self._carry_out(run), name=f"operation {self.id}")
            # Should the loop's end cancel it before its first step.
            self._task.add_done_callback(lambda _task: None if self.finished else self._end("Cancelled"))

    async def _carry_out(self, run: Run) -> None:
        current_operation.set(self.id)
        try:
            result = await run(self)
        except asyncio.CancelledError:
            self._end("Cancelled")
        except FlexdError as error:
            log.info('Operation "%s" failed: %s', self.description, error)
            self._end("Cancelled" if self.status == "Cancelling" else "Failure", str(error))
        except Exception as error:  # border: an operation; its failure is its result
            log.exception('Operation "%s" failed', self.description)
            self._end("Failure", f"Internal error ({type(error).__name__}), see the daemon's log")
        else:
            if result is not None:
                self._merge(result)
            # Without a way of its own to be cancelled it came to its end before the cancellation reached it.
            self._end("Cancelled" if self.status == "Cancelling" and self._on_cancel else "Success")

    def _interrupt(self) -> None:
        if self._task is not None:
            # A task cancelled before its first step never enters its coroutine, which then clears nothing away.
            self._loop.call_soon(self._task.cancel)
        elif not self.finished:
            self._end("Cancelled")

    def _end(self, status: str, err: str = "") -> None:
        self.err = err
        self.may_cancel = False
        for future in self._channels.values():
            future.cancel()
        self._set_status(status)
        self._finished.set()
        self._on_end(self)

    def _merge(self, metadata: Mapping[str, Any]) -> None:
        self.metadata.update(metadata)
        self.updated_at = now()

    def _set_status(self, status: str) -> None:
        self.status = status
        self.updated_at = now()
        self._publish()

    def _publish(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self._published_at = self._loop.time()
        if self._events.wanted("operation"):
            self._events.publish("operation", msgspec.to_builtins(self.render()), self.project)


class Operations:
    """All operations of this daemon, running ones and those just finished."""

    def __init__(self, events: Events, finished_kept_s: float = FINISHED_KEPT_S) -> None:
        self._events = events
        self._finished_kept_s = finished_kept_s
        self._operations: dict[str, Operation] = {}
        self._removals: dict[str, asyncio.TimerHandle] = {}
        self._closing = False

    def start(
        self,
        kind: Kind,
        description: str,
        project: str,
        resources: Mapping[str, Iterable[str]],
        run: Run | None,
        on_cancel: Callable[[], Awaitable[None]] | None = None,
        metadata: Mapping[str, Any] | None = None,
        may_cancel: bool | None = None,
    ) -> Operation:
        """An operation that runs from the next turn of the loop; until then the caller may add channels and metadata.

        `resources`: kind to URLs, `{"instances": ["/1.0/instances/c1"]}`. `run` returns what is merged into the
        metadata; None is a token, which stays until it is cancelled. By default it can be cancelled if `on_cancel`
        is given; with may_cancel alone the task is cancelled.
        """
        if self._closing:
            raise BadRequest("The daemon is shutting down")
        if may_cancel is None:
            may_cancel = on_cancel is not None or kind == "token"
        operation = Operation(
            self._events, kind, description, project, resources, metadata, on_cancel, may_cancel, self._keep_a_while
        )
        self._operations[operation.id] = operation
        operation._begin(run)
        return operation

    def get(self, id: str) -> Operation:
        operation = self._operations.get(id)
        if operation is None:
            raise NotFound("Operation not found")
        return operation

    def list(self, project: str | None = None) -> "list[Operation]":
        """Oldest first; None: of every project."""
        return [operation for operation in self._operations.values() if project in (None, operation.project)]

    async def close(self) -> None:
        """Cancel everything, also what clients may not cancel, and wait until it has been undone."""
        self._closing = True
        running = [operation for operation in self._operations.values() if not operation.finished]
        for operation in running:
            operation._interrupt()
        ends = await asyncio.gather(*(operation.wait(CLOSE_TIMEOUT_S) for operation in running))
        for operation, ended in zip(running, ends, strict=True):
            if not ended:
                log.error('Operation "%s" (%s) did not end', operation.description, operation.id)
        for timer in self._removals.values():
            timer.cancel()
        self._operations.clear()

    def _keep_a_while(self, operation: Operation) -> None:
        loop = asyncio.get_running_loop()
        self._removals[operation.id] = loop.call_later(self._finished_kept_s, self._remove, operation.id)

    def _remove(self, id: str) -> None:
        self._removals.pop(id, None)
        self._operations.pop(id, None)


def _with_containers(resources: dict[str, list[str]]) -> dict[str, list[str]]:
    """LXD 5.0 names instances twice, the second time as containers, for clients older than the word instance."""
    if "instances" in resources:
        urls = [url.replace("/instances/", "/containers/", 1) for url in resources["instances"]]
        resources.setdefault("containers", urls)
    return resources
