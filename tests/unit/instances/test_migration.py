# SPDX-License-Identifier: Apache-2.0
"""Copies between two whole daemons on fakes, the trees travelling through the real programs."""

import os
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from flexd.api.errors import BadRequest, Conflict, FlexdError, Forbidden
from flexd.api.idmap import IdMap
from flexd.api.instance import InstancePost, InstanceSource, InstancesPost
from flexd.api.instance_snapshot import InstancePostTarget, InstanceSnapshotPost, InstanceSnapshotsPost
from flexd.instances.migration.messages import decode_header, encode_header
from flexd.operations.contract import Plan, Step
from flexd.operations.operations import Operation
from tests.unit.instances.house import PROJECT, House, house, interrupt, restart
from tests.unit.instances.wires import Scissors, join, pair

# Receivers take the owners of the stream and see nothing but their tree.
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="receiving trees needs root (chown, chroot)")
# Ids are not shifted by fake mounts.
CONFIG = {"security.privileged": "true"}


@pytest.fixture
async def a(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path / "a") as home:
        home.host.processes.harmless |= {sys.executable, Path(sys.executable).name, "rsync"}
        await home.create(config=dict(CONFIG))
        yield home


@pytest.fixture
async def b(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path / "b") as home:
        home.host.processes.harmless |= {sys.executable, Path(sys.executable).name, "rsync"}
        yield home


async def root_of(home: House, name: str = "c1") -> Path:
    """The instance's root, mounted, to be written to."""
    record = home.daemon.registry.instance(PROJECT, name)
    return await home.daemon.pools.mount(record.volume, IdMap())


async def write(home: House, files: dict[str, str], name: str = "c1") -> None:
    root = await root_of(home, name)
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    await home.daemon.pools.unmount(home.daemon.registry.instance(PROJECT, name).volume)


async def read(home: House, name: str = "c1", snapshot: str | None = None) -> dict[str, str]:
    record = home.daemon.registry.instance(PROJECT, name)
    async with home.daemon.pools.view(record.volume, IdMap(), snapshot=snapshot) as tree:
        found = {}
        for place, _, names in os.walk(tree):
            found |= {os.path.relpath(f"{place}/{each}", tree): Path(place, each).read_text() for each in names}
        return found


async def snapshot(home: House, name: str, instance: str = "c1") -> None:
    await home.done(await home.daemon.snapshots.create(PROJECT, instance, InstanceSnapshotsPost(name=name)))


def wish(name: str = "c1", *, refresh: bool = False, alone: bool = False, **config: str) -> InstancesPost:
    source = InstanceSource(type="migration", mode="push", refresh=refresh, instance_only=alone)
    return InstancesPost(name=name, config=CONFIG | config, source=source)


async def begin(a: House, b: House, post: InstancesPost, scissors: Scissors) -> tuple[Operation, Operation]:
    sink = await b.daemon.instances.create(PROJECT, post)
    asked = InstancePost(migration=True, instance_only=post.source.instance_only)
    source = a.daemon.migration_source.start(PROJECT, "c1", asked)
    join(source, sink, scissors)
    await sink.wait()
    await source.wait()
    return source, sink


async def copy(a: House, b: House, post: InstancesPost) -> int:
    """Returns how many messages it took."""
    scissors = Scissors()
    source, sink = await begin(a, b, post, scissors)
    assert (sink.status, sink.err) == ("Success", "")
    assert (source.status, source.err) == ("Success", "")
    return scissors.sent


async def test_a_copy_with_its_snapshots(a: House, b: House) -> None:
    await write(a, {"etc/hostname": "one", "old": "x"})
    await snapshot(a, "s0")
    await write(a, {"etc/hostname": "two", "new": "y"})
    await snapshot(a, "s1")
    await copy(a, b, wish())
    assert await read(b) == {"etc/hostname": "two", "old": "x", "new": "y"}
    assert await read(b, snapshot="s0") == {"etc/hostname": "one", "old": "x"}
    theirs = a.daemon.snapshots.show_all(PROJECT, "c1")
    ours = b.daemon.snapshots.show_all(PROJECT, "c1")
    assert [(s.name, s.created_at) for s in ours] == [(s.name, s.created_at) for s in theirs]
    assert b.status() == "Stopped"
    assert a.daemon.instances.names(PROJECT) == ["c1"]


async def test_a_copy_alone(a: House, b: House) -> None:
    await snapshot(a, "s0")
    await copy(a, b, wish(alone=True))
    assert b.daemon.snapshots.names(PROJECT, "c1") == []


async def test_a_snapshot_as_an_instance(a: House, b: House) -> None:
    await write(a, {"file": "then"})
    await snapshot(a, "s0")
    await write(a, {"file": "now"})
    sink = await b.daemon.instances.create(PROJECT, wish("c2"))
    source = a.daemon.migration_source.start_snapshot(PROJECT, "c1", "s0", InstanceSnapshotPost(migration=True))
    join(source, sink, Scissors())
    await sink.wait()
    assert sink.err == ""
    assert await read(b, "c2") == {"file": "then"}


async def test_a_refresh_sends_what_differs(a: House, b: House) -> None:
    big = "x" * 3_000_000
    await write(a, {"big": big, "gone": "1", "same": "2"})
    await snapshot(a, "s0")
    first = await copy(a, b, wish())
    root = await root_of(a)
    (root / "gone").unlink()
    await a.daemon.pools.unmount(a.daemon.registry.instance(PROJECT, "c1").volume)
    await write(a, {"small": "3"})
    await snapshot(a, "s1")
    again = await copy(a, b, wish(refresh=True))
    assert await read(b) == {"big": big, "same": "2", "small": "3"}
    assert b.daemon.snapshots.names(PROJECT, "c1") == ["s0", "s1"]
    assert again < first / 2
    await a.done(await a.daemon.snapshots.delete(PROJECT, "c1", "s0"))
    await copy(a, b, wish(refresh=True))
    assert b.daemon.snapshots.names(PROJECT, "c1") == ["s1"]


async def test_what_is_moved_stays_the_same_instance(a: House, b: House) -> None:
    config = a.daemon.instances.show(PROJECT, "c1").config
    await copy(a, b, InstancesPost(name="c1", config=config, source=wish().source))
    moved = b.daemon.instances.show(PROJECT, "c1").config
    for key in ("volatile.eth0.hwaddr", "volatile.cloud-init.instance-id"):
        assert moved[key] == config[key]
    copied = wish("c2")
    await copy(a, b, copied)
    assert b.daemon.instances.show(PROJECT, "c2").config["volatile.eth0.hwaddr"] != config["volatile.eth0.hwaddr"]


async def test_wherever_the_link_breaks(a: House, b: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source is as it was and the target has nothing, until all has arrived."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    await write(a, {"file": "x" * 200_000})
    await snapshot(a, "s0")
    await write(a, {"file": "y"})
    before = b.host_state()
    total = await copy(a, b, wish("whole"))
    await b.delete("whole")
    for after in range(total):
        _, sink = await begin(a, b, wish(), Scissors(after))
        if sink.status == "Success":  # at most the goodbye was lost: it is there, and the source too
            await b.delete()
        assert b.host_state() == before, f"after {after} messages"
        assert a.daemon.instances.names(PROJECT) == ["c1"]
        assert await read(a) == {"file": "y"}
    assert list(scratch.iterdir()) == []


async def test_whatever_step_of_the_target_fails(a: House, b: House) -> None:
    await snapshot(a, "s0")
    before = b.host_state()
    for number in range(4):

        async def fail(_plan: Plan, position: int, _step: Step, number: int = number) -> None:
            if position == number:
                raise FlexdError("the disk is on fire")

        b.daemon.journal.before_step = fail
        source, sink = await begin(a, b, wish(), Scissors())
        assert sink.err == "the disk is on fire"
        assert source.err == "The other server failed: the disk is on fire"
        assert b.host_state() == before
    b.daemon.journal.before_step = None
    await copy(a, b, wish())


async def test_a_target_that_is_killed(a: House, b: House, tmp_path: Path) -> None:
    before = b.host_state()
    plans: list[Plan] = []

    async def keep(plan: Plan, position: int, _step: Step) -> None:
        if position == 2:
            plans.append(plan)
            raise FlexdError("killed")

    b.daemon.journal.before_step = keep
    await begin(a, b, wish(), Scissors())
    b.daemon.journal.before_step = None
    await interrupt(b, Plan(plans[0].description, plans[0].steps[:1]), 1)
    statement = "UPDATE plan SET plan = ?, position = 1"
    await b.daemon.journal._write(statement, msgspec.json.encode(plans[0]))
    await restart(b, tmp_path / "b")
    assert b.host_state() == before


async def test_cancelling(a: House, b: House) -> None:
    before = b.host_state()
    sink = await b.daemon.instances.create(PROJECT, wish())
    source = a.daemon.migration_source.start(PROJECT, "c1", InstancePost(migration=True))
    scissors = Scissors()
    join(source, sink, scissors)
    while not scissors.sent:
        await sink.wait(0.001)
    await source.cancel()
    await sink.wait()
    assert sink.err == "The other server failed: it was cancelled"
    assert b.host_state() == before


async def test_what_is_refused_at_once(a: House, b: House) -> None:
    await b.create("taken", config=dict(CONFIG))
    with pytest.raises(Conflict, match="already exists"):
        await b.daemon.instances.create(PROJECT, wish("taken"))
    source = InstanceSource(type="migration", mode="carrier pigeon")
    with pytest.raises(BadRequest, match='mode "carrier pigeon" is not known'):
        await b.daemon.instances.create(PROJECT, InstancesPost(name="c1", source=source))
    for operation, secrets, said in (
        ("http://198.18.1.1/1.0/operations/x", {}, "Invalid migration operation"),
        ("https://198.18.1.1/1.0/operations/../certificates", {}, "Invalid migration operation"),
        (f"https://198.18.1.1/1.0/operations/{'0' * 36}", {"fs": "x"}, "the secret of control is missing"),
    ):
        source = InstanceSource(type="migration", mode="pull", operation=operation, secrets=secrets)
        with pytest.raises(BadRequest, match=said):
            await b.daemon.instances.create(PROJECT, InstancesPost(name="c1", source=source))
    await a.act("start")
    target = InstancePostTarget(operation=f"https://198.18.1.1/1.0/operations/{'0' * 36}")
    with pytest.raises(BadRequest, match="one that runs is pulled by its target"):
        a.daemon.migration_source.start(PROJECT, "c1", InstancePost(migration=True, live=True, target=target))


async def test_a_secret_opens_its_channel_once(a: House) -> None:
    source = a.daemon.migration_source.start(PROJECT, "c1", InstancePost(migration=True))
    secret = source.metadata["control"]
    source.connect(secret, pair(Scissors())[0])
    with pytest.raises(Forbidden, match="wrong or was used already"):
        source.connect(secret, pair(Scissors())[0])
    await source.cancel()
    await source.wait()


async def test_a_target_that_asks_for_what_it_was_not_offered(a: House) -> None:
    source = a.daemon.migration_source.start(PROJECT, "c1", InstancePost(migration=True))
    control, fs = pair(Scissors()), pair(Scissors())
    source.connect(source.metadata["control"], control[0])
    source.connect(source.metadata["fs"], fs[0])
    offer = await control[1].receive()
    assert isinstance(offer, bytes)
    header = decode_header(offer)
    header.refresh, header.snapshot_names = True, ["../../etc"]
    await control[1].send(encode_header(header))
    await source.wait()
    assert "snapshots that were not offered" in source.err
