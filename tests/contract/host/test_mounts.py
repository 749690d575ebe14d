# SPDX-License-Identifier: Apache-2.0
"""Mounts, by what is seen through them and what is left when they are gone."""

import asyncio
import os
from pathlib import Path

import pytest

from flexd.api.idmap import IdMap
from flexd.host.contract import Host, HostError, Layer
from flexd.host.linux import LinuxHost

_MAP = IdMap.single(1000000, 65536)
# Commas, colons and backslashes mean something in overlayfs's options, blanks in mountinfo.
_NAMES = ["plain", "od,d: na\\me"]


def _layers(place: Path, name: str = "plain") -> tuple[Path, Path, Path, Path]:
    base = place / name
    lower, upper, work, target = (base / part for part in ("lower", "upper", "work", "target"))
    for path in (lower / "dir", upper, work, target):
        path.mkdir(parents=True)
    (lower / "file").write_text("from the image")
    (lower / "dir/other").write_text("other")
    return lower, upper, work, target


async def test_a_file_system(host: Host, place: Path) -> None:
    await host.mounts.mount("tmpfs", place, "tmpfs", "nosuid,mode=700,size=1m")
    assert await host.mounts.mounted(place)
    (place / "inside").touch()
    (info,) = await host.mounts.below(place)
    assert (info.target, info.fstype) == (place, "tmpfs")
    await host.mounts.unmount(place)
    assert not (place / "inside").exists()


async def test_binds(host: Host, place: Path) -> None:
    (place / "source").mkdir()
    (place / "target").mkdir()
    (place / "target/hidden").touch()
    await host.mounts.bind(place / "source", place / "target")
    (place / "target/new").write_text("x")
    assert not (place / "target/hidden").exists()
    await host.mounts.unmount(place / "target")
    assert (place / "source/new").read_text() == "x"
    assert (place / "target/hidden").exists()
    assert await host.mounts.below(place) == []


async def test_a_file_bound_on_a_file(host: Host, place: Path) -> None:
    (place / "source").write_text("source")
    (place / "target").write_text("target")
    await host.mounts.bind(place / "source", place / "target", readonly=True)
    assert (place / "target").read_text() == "source"
    await host.mounts.unmount(place / "target")
    assert (place / "target").read_text() == "target"


async def test_unmounting_what_is_not_mounted(host: Host, place: Path) -> None:
    await host.mounts.unmount(place)
    await host.mounts.unmount(place / "absent", detach=True)


async def test_binding_what_is_not_there(host: Host, place: Path) -> None:
    (place / "target").mkdir()
    with pytest.raises(HostError, match="absent") as caught:
        await host.mounts.bind(place / "absent", place / "target")
    assert caught.value.errno == 2
    with pytest.raises(HostError):
        await host.mounts.bind(place / "target", place / "nowhere")


async def test_what_is_beneath(host: Host, place: Path) -> None:
    (place / "allowed/dir").mkdir(parents=True)
    (place / "allowed/dir/file").write_text("inside")
    (place / "outside").mkdir()
    (place / "allowed/link").symlink_to("dir")
    (place / "allowed/out").symlink_to("../outside")
    (place / "allowed/absolute").symlink_to(place / "outside")
    (place / "target").mkdir()
    for name in ("dir", "link", "."):
        async with host.mounts.beneath(place / "allowed", place / "allowed" / name) as found:
            assert await asyncio.to_thread(found.is_dir)
    async with host.mounts.beneath(place / "allowed", place / "allowed/dir") as found:
        await host.mounts.bind(found, place / "target")
    assert (place / "target/file").read_text() == "inside"
    await host.mounts.unmount(place / "target")
    for name in ("out", "absolute", "../outside", "dir/../../outside", "absent"):
        with pytest.raises(HostError):
            async with host.mounts.beneath(place / "allowed", place / "allowed" / name):
                pass


async def test_only_the_topmost_goes(host: Host, place: Path) -> None:
    for name in ("a", "b", "target"):
        (place / name).mkdir()
    await host.mounts.bind(place / "a", place / "target")
    await host.mounts.bind(place / "b", place / "target")
    (place / "target/x").touch()
    assert len(await host.mounts.below(place)) == 2
    await host.mounts.unmount(place / "target")
    assert (place / "b/x").exists()
    assert await host.mounts.mounted(place / "target")
    await host.mounts.unmount(place / "target")
    assert not await host.mounts.mounted(place / "target")


@pytest.mark.parametrize("name", _NAMES)
@pytest.mark.parametrize("idmap", [None, _MAP], ids=["plain", "idmapped"])
async def test_an_overlay(host: Host, place: Path, name: str, idmap: IdMap | None) -> None:
    lower, upper, work, target = _layers(place, name)
    await host.mounts.overlay(target, lower=lower, upper=upper, work=work, lower_idmap=idmap)
    assert (target / "file").read_text() == "from the image"
    assert [info.target for info in await host.mounts.below(place)] == [target]
    (target / "file").write_text("changed")
    (target / "dir/new").write_text("new")
    (target / "dir/other").unlink()
    await host.mounts.unmount(target)
    assert list(target.iterdir()) == []
    assert (lower / "file").read_text() == "from the image"
    assert (upper / "file").read_text() == "changed"
    await host.mounts.overlay(target, lower=lower, upper=upper, work=work, lower_idmap=idmap)
    assert (target / "file").read_text() == "changed"
    assert [path.name for path in (target / "dir").iterdir()] == ["new"]
    await host.mounts.unmount(target)
    assert await host.mounts.below(place) == []


async def test_an_overlay_without_a_layer(host: Host, place: Path) -> None:
    lower, upper, work, target = _layers(place)
    with pytest.raises(HostError, match="absent"):
        await host.mounts.overlay(target, lower=lower / "absent", upper=upper, work=work, lower_idmap=_MAP)
    assert await host.mounts.below(place) == []


async def test_an_overlay_of_many_layers(host: Host, place: Path) -> None:
    lower, middle, work, target = _layers(place)
    await host.mounts.overlay(target, lower=lower, upper=middle, work=work)
    (target / "file").write_text("from the middle")
    (target / "dir/other").unlink()
    await host.mounts.unmount(target)
    top, work = place / "top", place / "work"
    for path in (top, work):
        path.mkdir()
    layers = [Layer(middle), Layer(lower)]
    await host.mounts.overlay_layers(target, layers, upper=top, work=work)
    assert (target / "file").read_text() == "from the middle"
    assert list((target / "dir").iterdir()) == []
    (target / "dir/new").write_text("new")
    await host.mounts.unmount(target)
    assert [path.name for path in (top / "dir").iterdir()] == ["new"]
    await host.mounts.overlay_layers(target, [Layer(top), *layers])
    assert (target / "dir/new").read_text() == "new"
    assert (target / "file").read_text() == "from the middle"
    assert "ro" in (await host.mounts.below(place))[0].options.split(",")
    await host.mounts.unmount(target)


# --- what only a kernel can show ---------------------------------------------------------------------------------


@pytest.fixture
def kernel(real: bool, host: Host) -> LinuxHost:
    if not isinstance(host, LinuxHost):
        pytest.skip("the fake host shifts no ids")
    return host


@pytest.fixture(params=["layers as fds", "layers by path"])
def overlay_way(request: pytest.FixtureRequest, kernel: LinuxHost) -> LinuxHost:
    """Both ways on any kernel: Debian 12 and 13 have only the second."""
    if request.param == "layers by path":
        kernel.mounts.layers_as_fds = False
    return kernel


@pytest.mark.parametrize("name", [*_NAMES, "long/" * 240 + "end"])
async def test_ids_of_the_lower_layer_are_shifted(overlay_way: LinuxHost, place: Path, name: str) -> None:
    host = overlay_way
    lower, upper, work, target = _layers(place, name)
    await host.mounts.overlay(target, lower=lower, upper=upper, work=work, lower_idmap=_MAP)
    assert (target / "file").stat().st_uid == (target / "dir").stat().st_gid == 1000000
    assert (lower / "file").stat().st_uid == 0
    (target / "made").touch()
    (target / "file").write_text("copied up")
    (target / "dir").rename(target / "renamed")
    assert (upper / "file").stat().st_uid == 1000000
    (info,) = await host.mounts.below(place)
    assert "redirect_dir=on" in info.options
    await host.mounts.unmount(target)
    assert not [mount for mount in await host.mounts.below(Path("/run")) if "flexd-lower" in str(mount.target)]
    assert not list(Path("/run").glob("flexd-lower-*"))


async def test_layers_with_ids_of_their_own(overlay_way: LinuxHost, place: Path) -> None:
    """A frozen upper layer holds ids shifted by one map and is shown under another; renamed directories are found."""
    host, other = overlay_way, IdMap.single(3000000, 65536)
    lower, middle, work, target = _layers(place)
    await host.mounts.overlay(target, lower=lower, upper=middle, work=work, lower_idmap=_MAP)
    (target / "dir").rename(target / "renamed")
    (target / "mine").touch()
    os.chown(target / "mine", 1000005, 1000006)
    await host.mounts.unmount(target)
    for idmap in (other, IdMap(), _MAP):
        layers = [Layer(middle, _MAP.translation(idmap)), Layer(lower, idmap)]
        await host.mounts.overlay_layers(target, layers)
        found = (target / "mine").stat()
        assert (found.st_uid, found.st_gid) == (idmap.host_uid(5), idmap.host_gid(6))
        assert (target / "renamed/other").stat().st_uid == idmap.host_uid(0)
        assert not (target / "dir").exists()
        await host.mounts.unmount(target)
    assert not list(Path("/run").glob("flexd-lower-*"))


async def test_as_many_layers_as_a_chain_of_snapshots(overlay_way: LinuxHost, place: Path) -> None:
    lower, _, _, target = _layers(place)
    layers = [Layer(lower, _MAP)]
    for number in range(32):
        path = place / f"a rather long name of a layer of a chain of layers {number}"
        path.mkdir()
        (path / f"file{number}").touch()
        layers.insert(0, Layer(path, None if number % 2 else _MAP))
    await overlay_way.mounts.overlay_layers(target, layers)
    assert len(list(target.iterdir())) == 34
    await overlay_way.mounts.unmount(target)


async def test_ids_of_a_bind_are_shifted_both_ways(kernel: LinuxHost, place: Path) -> None:
    (place / "source").mkdir()
    (place / "target").mkdir()
    (place / "source/file").touch()
    await kernel.mounts.idmapped_bind(place / "source", place / "target", _MAP)
    assert (place / "target/file").stat().st_uid == 1000000
    os.chown(place / "target/file", 1000033, 1000034)
    assert ((place / "source/file").stat().st_uid, (place / "source/file").stat().st_gid) == (33, 34)


async def test_a_readonly_bind(kernel: LinuxHost, place: Path) -> None:
    for name in ("source", "source/inner", "target"):
        (place / name).mkdir()
    await kernel.mounts.mount("tmpfs", place / "source/inner", "tmpfs")
    await kernel.mounts.bind(place / "source", place / "target", recursive=True, readonly=True)
    for path in (place / "target/x", place / "target/inner/x"):
        with pytest.raises(OSError, match="Read-only"):
            path.touch()
    (place / "source/x").touch()


async def test_errors_tell_what_the_kernel_said(kernel: LinuxHost, place: Path) -> None:
    target = _layers(place)[-1]
    with pytest.raises(HostError) as caught:
        await kernel.mounts.mount("/dev/null", target, "ext4")
    assert str(caught.value) == f"mount /dev/null on {target}: Block device required (mount(2) ENOTBLK)"
    with pytest.raises(HostError, match="page"):
        await kernel.mounts.mount("tmpfs", target, "tmpfs", "x" * 5000)


async def test_many_maps(kernel: LinuxHost, place: Path) -> None:
    """More than are kept: the oldest are made again."""
    (place / "source").mkdir()
    (place / "target").mkdir()
    for base in [*range(1000000, 1000000 + 70 * 65536, 65536), 1000000]:
        await kernel.mounts.idmapped_bind(place / "source", place / "target", IdMap.single(base, 65536))
        assert (place / "target").stat().st_uid == base
        await kernel.mounts.unmount(place / "target")


async def test_twenty_at_once(kernel: LinuxHost, place: Path) -> None:
    layers = [_layers(place, str(number)) for number in range(20)]
    await asyncio.gather(
        *(
            kernel.mounts.overlay(target, lower=lower, upper=upper, work=work, lower_idmap=_MAP)
            for lower, upper, work, target in layers
        )
    )
    assert len(await kernel.mounts.below(place)) == 20
    assert all((target / "file").stat().st_uid == 1000000 for *_, target in layers)
