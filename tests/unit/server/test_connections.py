# SPDX-License-Identifier: Apache-2.0
"""How many connections strangers may hold, and for how long."""

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from flexd.server.certificate import PeerCertificate
from flexd.server.connections import Connections, Limits
from flexd.server.tls import TlsConnection
from tests.unit.server.pki_house import make

LIMITS = Limits(strangers=4, strangers_of_an_address=2, stranger_bytes=1000, head_bytes=500)
KNOWN = PeerCertificate(make().der)
OTHER = PeerCertificate(make().der)


@dataclass(eq=False)
class Connection:
    """What `Connections` uses of one."""

    address: str = "192.0.2.1"
    peer: PeerCertificate | None = None
    secured: bool = False
    ended: bool = False

    def abort(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.ended = True


@dataclass
class House:
    """Connections under a clock of our own."""

    time: float = 0.0
    trusted: set[str] = field(default_factory=lambda: {KNOWN.fingerprint})

    def __post_init__(self) -> None:
        self.connections = Connections(self.is_trusted, LIMITS, clock=lambda: self.time)

    def is_trusted(self, peer: PeerCertificate | None) -> bool:
        return peer is not None and peer.fingerprint in self.trusted

    def open(self, address: str = "192.0.2.1") -> Any:
        connection = Connection(address)
        self.connections.opened(cast(TlsConnection, connection))
        return connection

    def secure(self, connection: Any, peer: PeerCertificate | None = None) -> None:
        connection.secured, connection.peer = True, peer
        self.connections.secured(connection)

    def later(self, seconds: float) -> None:
        self.time += seconds
        self.connections.sweep()


@pytest.fixture
def house() -> House:
    return House()


def test_an_address_makes_room_for_itself(house: House) -> None:
    first, second, third = (house.open() for _ in range(3))
    assert (first.ended, second.ended, third.ended) == (True, False, False)
    assert not house.open("192.0.2.2").ended


def test_the_silent_one_makes_room(house: House) -> None:
    opened = [house.open(f"192.0.2.{number}") for number in range(4)]
    house.connections.active(opened[0], 10)
    house.open("192.0.2.9")
    assert [each.ended for each in opened] == [False, True, False, False]
    assert house.connections.strangers == 4


def test_an_ipv6_host_is_its_network(house: House) -> None:
    first = house.open("2001:db8::1")
    house.open("2001:db8::2")
    house.open("2001:db8::3")
    assert first.ended
    mapped = house.open("::ffff:192.0.2.1")
    house.open("192.0.2.1")
    house.open("192.0.2.1")
    assert mapped.ended


def test_trusted_ones_are_not_counted(house: House) -> None:
    for _ in range(20):
        house.secure(house.open(), KNOWN)
    assert (len(house.connections), house.connections.strangers) == (20, 0)


def test_a_handshake_has_its_time(house: House) -> None:
    connection = house.open()
    house.later(LIMITS.handshake_s)
    assert not connection.ended
    house.connections.active(connection, 1)  # a byte now and then does not help
    house.later(1)
    assert connection.ended


def test_a_stranger_has_its_time_for_a_request(house: House) -> None:
    connection = house.open()
    house.secure(connection)
    house.later(LIMITS.stranger_idle_s - 1)
    house.connections.active(connection, 1)
    house.later(2)
    assert connection.ended


def test_a_request_under_way_may_take_longer_if_something_moves(house: House) -> None:
    connection = house.open()
    house.secure(connection)
    house.connections.begin_request(connection)
    for _ in range(5):
        house.later(LIMITS.stranger_silent_s - 1)
        house.connections.active(connection, 0)
    assert not connection.ended
    house.later(LIMITS.stranger_silent_s + 1)
    assert connection.ended


def test_trusted_ones_may_idle(house: House) -> None:
    connection = house.open()
    house.secure(connection, KNOWN)
    house.connections.begin_request(connection)
    house.later(10 * LIMITS.trusted_idle_s)  # waits for an operation
    house.connections.end_request(connection)
    house.later(LIMITS.trusted_idle_s)
    assert not connection.ended
    house.later(1)
    assert connection.ended


def test_bytes_of_a_stranger(house: House) -> None:
    connection = house.open()
    house.secure(connection)
    house.connections.begin_request(connection)
    house.connections.active(connection, LIMITS.stranger_bytes)
    assert not connection.ended
    house.connections.active(connection, 1)
    assert connection.ended


def test_the_head_of_anybodys_request(house: House) -> None:
    connection = house.open()
    house.secure(connection, KNOWN)
    house.connections.active(connection, LIMITS.head_bytes)
    house.connections.begin_request(connection)
    house.connections.active(connection, 10**9)  # an image
    house.connections.end_request(connection)
    assert not connection.ended
    house.connections.active(connection, LIMITS.head_bytes + 1)
    assert connection.ended


def test_who_knows_a_secret_is_exempt(house: House) -> None:
    connection = house.open()
    house.secure(connection)
    house.connections.exempt(connection)
    house.connections.begin_request(connection)
    house.connections.active(connection, 10 * LIMITS.stranger_bytes)
    house.later(10 * LIMITS.stranger_silent_s)
    assert not connection.ended


def test_becoming_trusted_while_connected(house: House) -> None:
    connection = house.open()
    house.secure(connection, OTHER)
    assert house.connections.strangers == 1
    house.connections.admit(connection)
    assert house.connections.strangers == 0


def test_removal_ends_what_is_open_but_for_who_asked(house: House) -> None:
    connections = [house.open(f"192.0.2.{number}") for number in range(3)]
    for connection, peer in zip(connections, (KNOWN, KNOWN, OTHER), strict=True):
        house.secure(connection, peer)
    house.connections.finish(connections[1])
    house.connections.drop(KNOWN.fingerprint)
    assert [each.ended for each in connections] == [True, False, False]
    assert house.connections.is_doomed(connections[1])
    assert not house.connections.is_doomed(connections[2])


def test_those_that_lost_trust_by_themselves_end(house: House) -> None:
    connection = house.open()
    house.secure(connection, KNOWN)
    house.connections.recheck()
    assert not connection.ended
    house.trusted.clear()
    house.connections.recheck()
    assert connection.ended


def test_counts_end_with_the_connections(house: House) -> None:
    opened = [house.open(f"192.0.2.{number}") for number in range(10)]
    for connection in opened:
        house.connections.closed(connection)
        house.connections.closed(connection)
    assert (len(house.connections), house.connections.strangers) == (0, 0)
    assert not house.connections._networks
