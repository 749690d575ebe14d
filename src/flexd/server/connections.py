# SPDX-License-Identifier: Apache-2.0
"""The TLS connections that are open: how many strangers may hold, for how long, and whose they are.

Nobody's connection is refused because strangers hold too many: the one of theirs that was silent longest makes room.
Somebody who is trusted is a stranger for the milliseconds of a handshake only. docs/limits.md lists the numbers.
"""

import ipaddress
import logging
import resource
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec import Struct

from flexd.server.certificate import PeerCertificate

if TYPE_CHECKING:
    from flexd.server.tls import TlsConnection

log = logging.getLogger(__name__)


class Limits(Struct, frozen=True):
    """Strangers are clients without a trusted certificate. Times in seconds."""

    strangers: int = 512
    strangers_of_an_address: int = 64
    handshake_s: float = 10.0
    # Between requests, and while the head of one arrives: what ends a slow loris.
    stranger_idle_s: float = 30.0
    # Without any byte moving, also while a request is answered.
    stranger_silent_s: float = 60.0
    # What a stranger may send on one connection; the largest request of theirs holds a certificate.
    stranger_bytes: int = 1024 * 1024
    # LXD's clients open a connection for each request; others keep theirs (Go's for 90 s, Prometheus' for 5 min).
    trusted_idle_s: float = 600.0
    # The head of a request, of anybody: 128 headers of 32 KiB would be 4 MiB.
    head_bytes: int = 256 * 1024


# File descriptors that connections leave for the daemon's own work.
_RESERVED_FDS = 4096


@dataclass(slots=True)
class _State:
    """What is known of one connection. `exempt`: a stranger's who has shown an operation's secret. `last_request`: it
    ends once the present request is answered."""

    since: float
    active: float
    idle_since: float
    network: str = ""
    trusted: bool = False
    exempt: bool = False
    busy: bool = False
    last_request: bool = False
    received: int = 0
    head: int = 0


class Connections:
    """`is_trusted` decides by the certificate that was shown; `clock` is monotonic, in seconds."""

    def __init__(
        self,
        is_trusted: Callable[[PeerCertificate | None], bool],
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_trusted = is_trusted
        self._limits = limits or Limits()
        self._clock = clock
        self._all: dict[TlsConnection, _State] = {}
        # Silent longest first.
        self._strangers: OrderedDict[TlsConnection, None] = OrderedDict()
        self._networks: Counter[str] = Counter()
        self._most = _most_connections()

    def __len__(self) -> int:
        return len(self._all)

    @property
    def strangers(self) -> int:
        return len(self._strangers)

    # What the TLS layer tells.

    def opened(self, connection: "TlsConnection") -> None:
        current = self._clock()
        state = _State(current, current, current, network=_network_of(connection.address))
        self._all[connection] = state
        self._strangers[connection] = None
        self._networks[state.network] += 1
        self._make_room(state.network)

    def readdressed(self, connection: "TlsConnection") -> None:
        """A proxy has told whose it is."""
        state = self._all.get(connection)
        if state is None:
            return
        self._networks[state.network] -= 1
        if not self._networks[state.network]:
            del self._networks[state.network]
        state.network = _network_of(connection.address)
        self._networks[state.network] += 1
        self._make_room(state.network)

    def secured(self, connection: "TlsConnection") -> None:
        state = self._all[connection]
        state.idle_since = self._clock()
        state.received = 0
        if self._is_trusted(connection.peer):
            self.admit(connection)

    def active(self, connection: "TlsConnection", count: int) -> None:
        """Bytes moved: `count` of them came in."""
        state = self._all[connection]
        state.active = self._clock()
        state.received += count
        if connection in self._strangers:
            self._strangers.move_to_end(connection)
            if state.received > self._limits.stranger_bytes:
                self._end(connection, "a stranger sends too much")
        if not state.busy and connection.secured:
            state.head += count
            if state.head > self._limits.head_bytes:
                self._end(connection, "the head of its request is too large")

    def closed(self, connection: "TlsConnection") -> None:
        state = self._all.pop(connection, None)
        if state is not None:
            self._forget_stranger(connection, state)

    # What the application tells.

    def begin_request(self, connection: "TlsConnection") -> None:
        state = self._all.get(connection)
        if state is not None:
            state.busy, state.head = True, 0

    def is_stranger(self, connection: "TlsConnection") -> bool:
        return connection in self._strangers

    def end_request(self, connection: "TlsConnection") -> None:
        state = self._all.get(connection)
        if state is not None:
            state.busy, state.head, state.idle_since = False, 0, self._clock()

    def admit(self, connection: "TlsConnection") -> None:
        """It is a trusted client's: the limits for strangers end."""
        state = self._all.get(connection)
        if state is None or state.trusted:
            return
        state.trusted = True
        self._forget_stranger(connection, state)
        while len(self._all) > self._most:
            idle = [each for each, about in self._all.items() if not about.busy]
            if not idle:
                break
            self._end(min(idle, key=lambda each: self._all[each].active), "there are too many connections")

    def exempt(self, connection: "TlsConnection") -> None:
        """A stranger's who proved to know an operation's secret: it may last and carry what it must."""
        state = self._all.get(connection)
        if state is not None:
            state.exempt = True
            self._forget_stranger(connection, state)

    def finish(self, connection: "TlsConnection") -> None:
        """Its request may take away its own trust: `drop` then lets it be answered first."""
        state = self._all.get(connection)
        if state is not None:
            state.last_request = True

    def is_doomed(self, connection: "TlsConnection") -> bool:
        state = self._all.get(connection)
        return state is not None and state.last_request

    def drop(self, fingerprint: str) -> None:
        """End every connection of a certificate, websockets too."""
        for connection, state in list(self._all.items()):
            if connection.peer is None or connection.peer.fingerprint != fingerprint or state.last_request:
                continue
            self._end(connection, "its certificate was removed or changed")

    def recheck(self) -> None:
        """End the connections of clients that were trusted and are no longer: expired or revoked meanwhile."""
        for connection, state in list(self._all.items()):
            if state.trusted and not self._is_trusted(connection.peer):
                self._end(connection, "its certificate is no longer trusted")

    def sweep(self) -> None:
        """End what has been idle or silent for too long; called every few seconds."""
        current = self._clock()
        for connection, reason in list(self._overdue(current)):
            self._end(connection, reason)

    def close_all(self) -> None:
        for connection in list(self._all):
            connection.close()

    def _overdue(self, current: float) -> "Iterator[tuple[TlsConnection, str]]":
        limits = self._limits
        for connection, state in self._all.items():
            idle_s = 0.0 if state.busy else current - state.idle_since
            if state.exempt:
                continue
            if state.trusted:
                if idle_s > limits.trusted_idle_s:
                    yield connection, "it was idle for too long"
            elif not connection.secured and current - state.since > limits.handshake_s:
                yield connection, "its handshake takes too long"
            elif idle_s > limits.stranger_idle_s:
                yield connection, "it was idle for too long"
            elif current - state.active > limits.stranger_silent_s:
                yield connection, "nothing moved for too long"

    def _make_room(self, network: str) -> None:
        if self._networks[network] > self._limits.strangers_of_an_address:
            oldest = next(each for each in self._strangers if self._all[each].network == network)
            self._end(oldest, f"strangers at {network} hold too many")
        if len(self._strangers) > self._limits.strangers:
            self._end(next(iter(self._strangers)), "strangers hold too many")

    def _end(self, connection: "TlsConnection", reason: str) -> None:
        log.debug("ending the connection of %s: %s", connection.address, reason)
        connection.abort()
        # Not counted any more from now on, though its end is told only in the loop's next turn.
        state = self._all[connection]
        self._forget_stranger(connection, state)

    def _forget_stranger(self, connection: "TlsConnection", state: _State) -> None:
        if connection not in self._strangers:
            return
        del self._strangers[connection]
        self._networks[state.network] -= 1
        if not self._networks[state.network]:
            del self._networks[state.network]


def _network_of(address: str) -> str:
    """Who counts as one: an IPv4 address, or the /64 that an IPv6 host may choose from freely."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, 64), strict=False))


def _most_connections() -> int:
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(soft - _RESERVED_FDS, soft // 2)
