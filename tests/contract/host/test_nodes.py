# SPDX-License-Identifier: Apache-2.0
"""Device nodes: read and made; the disk behind a path; being told that some came or went."""

import asyncio
import os
import stat
from pathlib import Path

import pytest

from flexd.host.contract import Host, HostError, Node
from flexd.host.fake import FakeHost
from flexd.host.linux import LinuxHost
from flexd.host.nodes import LinuxNodes
from flexd.host.threads import Threads

_NULL = Node("c", 1, 3)


async def test_make_and_read(host: Host, place: Path) -> None:
    path = place / "deep" / "null"
    assert await host.nodes.read(path) is None
    await host.nodes.make(path, Node("b", 7, 200), mode=0o600, uid=0, gid=0)
    await host.nodes.make(path, _NULL, mode=0o640, uid=1000, gid=1001)
    assert await host.nodes.read(path) == _NULL
    if isinstance(host, LinuxHost):
        found = path.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o640, 1000, 1001)
    path.unlink()
    assert await host.nodes.read(path) is None


async def test_what_is_no_device(host: Host, place: Path) -> None:
    (place / "file").touch()
    assert await host.nodes.read(place / "file") is None


async def test_a_watch_tells_of_entries(host: Host, place: Path) -> None:
    watch = host.nodes.watch()
    watch.set_directories([place, place / "not-there"])
    waiting = asyncio.create_task(watch.wait())
    await asyncio.sleep(0)
    (place / "new").touch()
    if isinstance(host, FakeHost):
        host.nodes.changed()
    await asyncio.wait_for(waiting, 10)
    watch.set_directories([])
    watch.close()


async def test_the_disk_of_a_path(host: Host, place: Path) -> None:
    number = await host.nodes.disk_of(place)
    if number is None:
        pytest.skip("this file system is on no block device")
    assert all(part.isdecimal() for part in number.split(":"))


# --- what only a kernel can show ---------------------------------------------------------------------------------


async def test_no_disk_behind_proc(real: bool) -> None:
    if not real:
        pytest.skip("the fake host has one disk")
    host = LinuxHost()
    assert await host.nodes.disk_of(Path("/proc")) is None
    with pytest.raises(HostError, match="/no/such"):
        await host.nodes.disk_of(Path("/no/such"))
    await host.close()


async def test_uevents(real: bool) -> None:
    trigger = Path("/sys/class/mem/null/uevent")
    if not real or not os.access(trigger, os.W_OK):
        pytest.skip("needs root and a writable sysfs")
    host = LinuxHost()
    watch = host.nodes.watch()
    await asyncio.to_thread(trigger.write_text, "change")
    await asyncio.wait_for(watch.wait(), 10)
    watch.close()
    await host.close()


async def test_nodes_of_usb_devices(tmp_path: Path) -> None:
    """On a sysfs that looks like one with a serial adapter in it."""
    usb = tmp_path / "devices/pci0/usb1/1-2"
    tty = usb / "1-2:1.0/ttyUSB0/tty/ttyUSB0"
    tty.mkdir(parents=True)
    (usb / "idVendor").write_text("0403\n")
    (usb / "idProduct").write_text("6001\n")
    (usb / "uevent").write_text("MAJOR=189\nMINOR=1\nDEVNAME=bus/usb/001/002\n")
    (tty / "uevent").write_text("MAJOR=188\nMINOR=0\nDEVNAME=ttyUSB0\n")
    char = tmp_path / "dev/char"
    char.mkdir(parents=True)
    (char / "189:1").symlink_to(usb)
    (char / "188:0").symlink_to(tty)
    threads = Threads()
    nodes = LinuxNodes(threads, tmp_path)
    serial = {"/dev/bus/usb/001/002": Node("c", 189, 1), "/dev/ttyUSB0": Node("c", 188, 0)}
    assert await nodes.of_usb("0403", "6001") == serial
    assert await nodes.of_usb("0403", "") == serial
    assert await nodes.of_usb("0403", "9999") == {}
    threads.close()
