# SPDX-License-Identifier: Apache-2.0
"""Parts of a migration alone: the peer's last words, negotiation, which snapshots differ, what rsync complains of."""

import asyncio
from datetime import UTC, datetime

import msgspec
import pytest

from flexd.api.errors import BadRequest
from flexd.api.times import ZERO_TIME
from flexd.instances.migration.link import Far
from flexd.instances.migration.messages import BadMessage, Control, Header, decode_header, encode_control, encode_header
from flexd.instances.migration.meter import size_text
from flexd.instances.migration.offer import (
    Answer,
    Dates,
    Difference,
    Offer,
    Phase,
    compare,
    describe,
    make_offer,
    read_answer,
    read_offer,
    take_over,
)
from flexd.instances.migration.peer import MigrationFailed, Peer, PeerFailed, PeerGone
from flexd.instances.migration.rsync import _feature_options, _only_nodes
from flexd.instances.record import InstanceRecord, SnapshotRecord
from tests.unit.instances.wires import Scissors, Wire, pair

_THEN = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)


def peers() -> tuple[Peer, Peer, Scissors]:
    scissors = Scissors()
    control, fs = pair(scissors), pair(scissors)
    return Peer(control[0], fs[0]), Peer(control[1], fs[1]), scissors


def lone() -> tuple[Peer, Wire]:
    """A peer, and the other end of its control channel."""
    control, fs = pair(Scissors()), pair(Scissors())
    return Peer(control[0], fs[0]), control[1]


# --- the other side ---


async def test_a_failure_ends_what_is_under_way() -> None:
    here, there, _ = peers()
    waiting = asyncio.ensure_future(here.during(asyncio.Event().wait()))
    await there.fail("no space left")
    with pytest.raises(PeerFailed, match="The other server failed: no space left"):
        await waiting
    await here.close()
    await there.close()


async def test_their_reason_comes_before_ours() -> None:
    here, there, _ = peers()

    async def broken() -> None:
        asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(there.fail("disk full")))
        raise PeerGone

    with pytest.raises(PeerFailed, match="disk full"):
        await here.during(broken())


async def test_who_goes_without_a_word() -> None:
    here, _, scissors = peers()
    waiting = asyncio.ensure_future(here.during(asyncio.Event().wait()))
    await asyncio.sleep(0)
    scissors.wires[0].hang_up()
    with pytest.raises(PeerGone):
        await waiting
    with pytest.raises(PeerGone):
        await here.expect_success()


async def test_success_said_before_going() -> None:
    """As an LXD does: what is under way here is seen to its end."""
    here, control = lone()
    await control.send(encode_control(Control(True)))
    control.hang_up()
    await asyncio.sleep(0)

    async def finish() -> int:
        for _ in range(5):
            await asyncio.sleep(0)
        return 7

    assert await here.during(finish()) == 7
    await here.expect_success()


async def test_nobody_undoes_what_it_reported() -> None:
    here, there, scissors = peers()

    async def succeed_and_go_on() -> None:
        await here.succeed()
        scissors.wires[0].hang_up()
        for _ in range(5):
            await asyncio.sleep(0)

    await here.during(succeed_and_go_on())
    await there.expect_success()


async def test_a_failure_in_the_place_of_a_header() -> None:
    here, control = lone()
    await control.send(encode_control(Control(False, "no such pool")))
    with pytest.raises(PeerFailed, match="no such pool"):
        await here.receive_header()


async def test_phases_are_heard_in_order() -> None:
    here, there, _ = peers()
    await here.tell(Phase("files"))
    await here.tell(Phase("done"))
    assert [(await there.hear(Phase)).what for _ in range(2)] == ["files", "done"]
    await here.succeed()
    with pytest.raises(BadMessage):
        await there.hear(Phase)


async def test_no_answer_in_time() -> None:
    here, _, _ = peers()
    with pytest.raises(MigrationFailed, match="did not answer within 0 s"):
        await here.hear(Phase, timeout_s=0.001)


@pytest.mark.parametrize("text", ["x", b"\xff" * 10])
async def test_what_is_no_message(text: bytes | str) -> None:
    here, control = lone()
    await control.send(text)
    await control.send(encode_header(Header(rsync=["xattrs"])))
    if isinstance(text, str):
        assert (await here.receive_header()).rsync == ["xattrs"]
    else:
        with pytest.raises(BadMessage):
            await here.receive_header()


def test_where_to_connect() -> None:
    operation = f"https://198.18.44.1:8443/1.0/operations/{'0a1b-' * 7}0"
    assert Far(operation, "", {"control": "x", "fs": "y"}).address == "198.18.44.1:8443"
    with pytest.raises(BadRequest, match="the certificate is not PEM"):
        Far(operation, "x", {"control": "x", "fs": "y"})


# --- offers ---


def record(name: str = "c1", **fields: object) -> InstanceRecord:
    return InstanceRecord(name, config={"volatile.uuid": "u"}, pool="fast", **fields)  # type: ignore[arg-type]


def kept(name: str, at: datetime = _THEN) -> SnapshotRecord:
    config = {"user.x": "1", "volatile.idmap.base": "0"}
    past = InstanceRecord("c1", config=config, devices={"root": {"type": "disk", "path": "/", "pool": "slow"}})
    return SnapshotRecord(name, past, at)


def test_a_snapshot_that_came_along() -> None:
    header = decode_header(encode_header(make_offer([kept("s0")], Offer(dates={"s0": Dates(_THEN)}))))
    offer = read_offer(header)
    assert offer is not None
    taken = take_over(header.snapshots[0], record("c2"), offer, {"s0": "kept"})
    assert (taken.name, taken.created_at, taken.expires_at) == ("s0", _THEN, ZERO_TIME)
    past = taken.instance
    assert (past.name, past.pool, past.metadata) == ("c2", "fast", "kept")
    assert past.config == {"user.x": "1", "volatile.uuid": "u"}
    assert past.devices["root"]["pool"] == "fast"


def test_a_snapshot_of_an_lxd() -> None:
    """Dates of whole seconds; Go's zero time means never."""
    taken = take_over(describe(kept("s0")), record(), None, {})
    assert taken.created_at == _THEN.replace(microsecond=0)
    assert taken.expires_at == ZERO_TIME


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "x" * 65])
def test_names_of_snapshots_are_checked(name: str) -> None:
    told = describe(kept("s0"))
    told.name = name
    with pytest.raises(BadRequest, match="Invalid snapshot name"):
        take_over(told, record(), None, {})


def test_which_snapshots_differ() -> None:
    later = _THEN.replace(minute=9)
    theirs = [kept("same"), kept("new"), kept("again", later)]
    ours = [kept("same", _THEN.replace(microsecond=0)), kept("again"), kept("old")]
    assert compare(theirs, ours) == Difference(["new", "again"], ["again", "old"])


def test_who_speaks() -> None:
    assert read_offer(Header()) is None
    assert read_answer(Header(flexd=msgspec.json.encode(Answer(listing=True)))) == Answer(listing=True)
    assert read_offer(Header(flexd=b'{"version":2}')) is None
    with pytest.raises(BadMessage):
        read_offer(Header(flexd=b"[]"))


# --- rsync, progress ---


def test_options_of_rsync() -> None:
    assert _feature_options(["xattrs", "delete", "bidirectional"]) == [
        "--xattrs",
        "--filter=-x security.selinux",
        "--delete",
    ]
    assert _feature_options(["compress"]) == ["--compress", "--compress-level=2"]


def test_only_devices_may_be_left_out() -> None:
    node = 'rsync: [generator] mknod "/image/rootfs/dev/sda" failed: Operation not permitted (1)\n'
    end = "rsync error: some files/attrs were not transferred (see previous errors) (code 23) at main.c(1338)\n"
    other = 'rsync: [receiver] mkstemp "/image/rootfs/x" failed: No space left on device (28)\n'
    assert _only_nodes(23, node + end)
    assert not _only_nodes(23, node + other + end)
    assert not _only_nodes(11, node)


def test_how_much() -> None:
    assert [size_text(n) for n in (11, 1234, 310e6, 2.5e12, 1e18)] == [
        "11B",
        "1.23kB",
        "310.00MB",
        "2.50TB",
        "1000000.00TB",
    ]
