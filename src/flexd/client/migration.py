# SPDX-License-Identifier: Apache-2.0
"""Copies from one server to another: the client asks both sides, and carries the bytes itself if it must (relay)."""

from __future__ import annotations

import select
from contextlib import suppress

from flexd.client.client import check_operation
from flexd.client.errors import ClientError, ConnectionFailed, NotFoundError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Literal

    from flexd.client.client import Client
    from flexd.client.websocket import WebSocket

    Mode = Literal["pull", "push", "relay"]
    Wait = Callable[[Client, str], Any]
    Json = dict[str, Any]

_CHANNELS = ("control", "fs", "criu")


class Migration:
    """One copy. `path` is asked at the source; `create` (path and query) makes it at the target. `wait` waits for the
    end of an operation and shows its progress."""

    def __init__(self, source: Client, path: str, target: Client, wait: Wait) -> None:
        self._source, self._path, self._target, self._wait = source, path, target, wait

    def run(self, mode: Mode, ask: Json, create: str, body: Json, query: dict[str, str] | None) -> Json:
        """`ask` goes to the source, `body` to the target, with what each has to know of the other. Returns the target's
        finished operation; both have ended well then."""
        if mode == "pull":
            return self._pull(ask, create, body, query)
        body = {**body, "source": {**body["source"], "type": "migration", "mode": "push"}}
        sink = self._target.request("POST", create, body, query=query)
        try:
            if mode == "push":
                return self._push(ask, sink.metadata, sink.operation)
            return self._relay(ask, sink.metadata, sink.operation)
        except BaseException:
            _cancel(self._target, sink.operation)
            raise

    def _pull(self, ask: Json, create: str, body: Json, query: dict[str, str] | None) -> Json:
        asked = self._source.request("POST", self._path, ask)
        try:
            where = self._where(self._source, asked.operation)
            source = {
                **body["source"],
                "type": "migration",
                "mode": "pull",
                **where,
                "secrets": _secrets(asked.metadata),
            }
            ended: Json = self._wait(
                self._target,
                self._target.request("POST", create, {**body, "source": source}, query=query).operation,
            )
            self._finish(self._source, asked.operation)
            return ended
        except BaseException:
            _cancel(self._source, asked.operation)
            raise

    def _push(self, ask: Json, metadata: Json, operation: str) -> Json:
        where = self._where(self._target, operation)
        asked = self._source.request("POST", self._path, {**ask, "target": {**where, "secrets": _secrets(metadata)}})
        self._wait(self._source, asked.operation)
        return self._finish(self._target, operation)

    def _relay(self, ask: Json, metadata: Json, operation: str) -> Json:
        asked = self._source.request("POST", self._path, ask)
        try:
            ours, theirs = _secrets(asked.metadata), _secrets(metadata)
            pairs = [
                (_channel(self._source, asked.operation, ours[name]), _channel(self._target, operation, theirs[name]))
                for name in _CHANNELS
                if name in ours and name in theirs
            ]
            states = _pump(pairs, [(self._source, asked.operation), (self._target, operation)])
            for state in reversed(states):  # the target knows best what was wrong
                check_operation(state)
            return states[1]
        except BaseException:
            _cancel(self._source, asked.operation)
            raise

    def _where(self, server: Client, operation: str) -> Json:
        """How the other server finds an operation of this one, and knows that it is the right one."""
        environment = server.server()["environment"]
        address = server.endpoint.url
        if not address.startswith("https://"):
            addresses = environment.get("addresses")
            if not addresses:
                raise ConnectionFailed(f"{address} is not on the network, so no server can reach it; use --mode relay")
            address = f"https://{addresses[0]}"
        return {
            "operation": f"{address.rstrip('/')}{operation.partition('?')[0]}",
            "certificate": environment.get("certificate", ""),
        }

    def _finish(self, server: Client, operation: str) -> Json:
        """The other side's operation, which ends at about the same time; those that ended are soon forgotten."""
        try:
            state: Json = server.wait(operation)
        except NotFoundError:
            return {}
        return state


def _secrets(operation: Json) -> dict[str, str]:
    metadata = operation.get("metadata") or {}
    return {name: metadata[name] for name in _CHANNELS if name in metadata}


def _cancel(server: Client, operation: str) -> None:
    server.close()
    with suppress(ClientError):  # it has ended already: its own reason is what is told
        server.cancel(operation)


def _channel(server: Client, operation: str, secret: str) -> WebSocket:
    channel = server.websocket(f"{operation.partition('?')[0]}/websocket", {"secret": secret})
    channel.set_blocking(False)
    return channel


def _pump(pairs: list[tuple[WebSocket, WebSocket]], operations: list[tuple[Client, str]]) -> list[Json]:
    """Carry messages until both operations have ended; what one side does not take yet is not read from the other."""
    waiters = []
    for server, operation in operations:
        path = operation.partition("?")[0]
        waiters.append((server, path, server.send_request("GET", f"{path}/wait")))
    ways = [*pairs, *((there, here) for here, there in pairs)]
    states: dict[int, Json] = {}
    while len(states) < len(waiters):
        ready = _poll(ways, [waiter.fileno() for n, (_, _, waiter) in enumerate(waiters) if n not in states])
        for number, (server, path, waiter) in enumerate(waiters):
            if number not in states and waiter.fileno() in ready:
                states[number] = server.finish_request(waiter, "GET", path).metadata
        for here, there in ways:
            if there.wants_write:
                there.flush()
            if not there.wants_write and (here.has_unread or (not here.closed and here.fileno() in ready)):
                for message in here.read_messages():
                    there.queue(message)
                there.flush()
            if here.closed and not there.closed and not here.has_unread and not there.wants_write:
                there.close()
    return [states[number] for number in range(len(waiters))]


def _poll(ways: list[tuple[WebSocket, WebSocket]], waiting: list[int]) -> set[int]:
    poll = select.poll()
    masks: dict[int, int] = dict.fromkeys(waiting, select.POLLIN)
    urgent = False
    for here, there in ways:
        if not here.closed and not there.wants_write:
            masks[here.fileno()] = masks.get(here.fileno(), 0) | select.POLLIN
            urgent = urgent or here.has_unread
        if there.wants_write:
            masks[there.fileno()] = masks.get(there.fileno(), 0) | select.POLLOUT
    for fd, mask in masks.items():
        poll.register(fd, mask)
    return {fd for fd, _ in poll.poll(0 if urgent else None)}
