# SPDX-License-Identifier: Apache-2.0
"""What holds for every kind: its rows, its life beside a container, and that nothing of it stays."""

from collections.abc import Callable

import pytest

from flexd.api.errors import FlexdError
from flexd.devices.contract import DeviceContext, Kind
from flexd.host.contract import HostError
from flexd.host.fake.host import FakeHost
from tests.contract.devices.bench import Bench

KINDS = sorted("-".join(filter(None, key)) for key in Kind.registered)


async def _ready(bench: Bench, name: str) -> tuple[Kind, DeviceContext]:
    """The kind and an entry of it; skips where this host lacks what it needs."""
    entry = bench.entry(name)
    kind = bench.devices.kind(entry)
    assert kind is not None
    assert bench.devices.faults({"dev.7": entry}) == []
    lacking = await kind.host_faults(bench.context(entry, {}))
    if lacking and bench.real:
        pytest.skip(str(lacking[0]))
    assert lacking == []
    return kind, await bench.prepare(kind, entry)


@pytest.mark.parametrize("name", KINDS)
def test_rows_describe_themselves(name: str) -> None:
    kind = next(kind for key, kind in Kind.registered.items() if "-".join(filter(None, key)) == name)
    names = [key.name for key in kind.KEYS]
    assert len(names) == len(set(names))
    assert all(key.description for key in kind.KEYS)
    assert set(names) >= kind.UPDATABLE


@pytest.mark.parametrize("name", KINDS)
async def test_wrong_entries(bench: Bench, name: str) -> None:
    if bench.real:
        pytest.skip("nothing of this looks at the host")
    entry = bench.entry(name)
    kind = bench.devices.kind(entry)
    assert kind is not None
    assert any("unknown configuration key" in str(fault) for fault in kind.faults("x", {**entry, "no.such": "1"}))
    for key in kind.KEYS:
        if key.required:
            without = {name: value for name, value in entry.items() if name != key.name}
            if bench.devices.kind(without) is kind:
                assert kind.faults("x", without), key.name
        if key.check is not None or key.choices or key.kind in ("bool", "size", "integer"):
            assert kind.faults("x", {**entry, key.name: "\n?"}), key.name


@pytest.mark.parametrize("name", KINDS)
async def test_plugged_in_and_out(bench: Bench, name: str) -> None:
    kind, context = await _ready(bench, name)
    before, inside = await bench.state(), await bench.inside()
    await kind.start(context)
    await kind.plug(context, bench.container)
    there = await kind.run_config(context)
    now = await bench.inside()
    assert {nic.name for nic in there.nics} <= set(now["links"])  # type: ignore[call-overload]
    assert {mount.target for mount in there.mounts} <= set(now["mounts"])  # type: ignore[call-overload]
    await kind.plug(context, bench.container)
    await kind.adopt(context, bench.container)
    await kind.unplug(context, bench.container)
    await kind.unplug(context, bench.container)
    await kind.stop(context)
    await kind.stop(context)
    assert await bench.state() == before
    assert await bench.inside() == inside


@pytest.mark.parametrize("name", KINDS)
async def test_started_and_stopped(bench: Bench, name: str) -> None:
    kind, context = await _ready(bench, name)
    before = await bench.state()
    await kind.stop(context)
    assert await bench.state() == before
    await kind.start(context)
    await kind.start(context)
    await kind.run_config(context)
    await kind.stop(context)
    assert await bench.state() == before


@pytest.mark.parametrize("name", KINDS)
async def test_the_end_of_the_container(bench: Bench, name: str) -> None:
    kind, context = await _ready(bench, name)
    before = await bench.state()
    await kind.start(context)
    await kind.plug(context, bench.container)
    await bench.runtime.kill(bench.container)
    if isinstance(bench.host, FakeHost):
        for link in bench.host.links.inside_of.pop(bench.container.init.pid, []):
            # Its namespace ends; what is held is fetched from there by `stop`.
            bench.host.links.inside_of.setdefault(bench.container.init.pid, []).append(link)
    await kind.stop(context)
    assert await bench.state() == before


def trip(host: FakeHost, call: int) -> Callable[[], bool]:
    """The n-th change fails, once. The returned function heals, and tells whether it came to that."""
    original, left = host.recorder.note, [call]

    def note(method: str, *arguments: object) -> None:
        original(method, *arguments)
        left[0] -= 1
        if left[0] == -1:
            raise HostError(f"{method} fails")

    host.recorder.note = note  # type: ignore[method-assign]

    def heal() -> bool:
        host.recorder.note = original  # type: ignore[method-assign]
        return left[0] < 0

    return heal


@pytest.mark.parametrize("name", KINDS)
async def test_a_failure_at_any_call(bench: Bench, name: str) -> None:
    """Of plugging in; taking back leaves the host as it was."""
    if not isinstance(bench.host, FakeHost):
        pytest.skip("only the fake host fails on demand")
    kind, context = await _ready(bench, name)
    before, inside = await bench.state(), await bench.inside()
    for call in range(100):
        heal = trip(bench.host, call)
        try:
            await kind.start(context)
            await kind.plug(context, bench.container)
        except FlexdError:
            pass
        came = heal()
        await kind.unplug(context, bench.container)
        await kind.stop(context)
        assert await bench.state() == before, call
        assert await bench.inside() == inside, call
        if not came:
            return
    raise AssertionError("it never ends")


async def test_every_kind_has_an_entry_here(bench: Bench) -> None:
    for name in KINDS:
        entry = bench.entry(name)
        assert bench.devices.kind(entry) is not None, name
        assert bench.devices.faults({"x": entry}) == [], name


async def test_an_instance_leaves_its_bridge_the_address(bench: Bench) -> None:
    """A bridge without an address of its own takes its ports' lowest: the host's end has to have a high one."""
    kind, context = await _ready(bench, "nic-bridged")
    await kind.start(context)
    link = await bench.host.links.get(context.volatile["host_name"])
    await kind.stop(context)
    assert link is not None
    assert link.hwaddr == f"fe{context.volatile['hwaddr'][2:]}"
