# SPDX-License-Identifier: Apache-2.0
"""`GET /1.0/resources` of a machine made of files."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexd.api.resources import Resources
from flexd.host import resources
from flexd.host.pci_names import PciNames, parse

_MEMINFO = """MemTotal:        8000 kB
MemFree:         1000 kB
MemAvailable:    6000 kB
HugePages_Total:       4
HugePages_Free:        1
Hugepagesize:       2048 kB
"""
_CPUINFO = "\n\n".join(
    f"processor\t: {number}\nvendor_id\t: GenuineIntel\nmodel name\t: Some CPU\ncpu MHz\t\t: 2000.5\nflags\t\t: fpu"
    for number in range(4)
)
_PCI_IDS = """# comment
8086  Intel Corporation
\t1237  440FX - 82441FX
\t\t1af4 1100  Qemu
1af4  Red Hat, Inc.
\t1041  Virtio network device
C 00  Unclassified device
"""


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def _link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    _write(tmp_path, {"proc/meminfo": _MEMINFO, "proc/cpuinfo": _CPUINFO, "proc/sys/kernel/osrelease": "6.12.0"})
    _write(tmp_path, {"usr/share/misc/pci.ids": _PCI_IDS})
    for number in range(4):
        base = f"sys/devices/system/cpu/cpu{number}"
        _write(tmp_path, {f"{base}/topology/physical_package_id": str(number // 2), f"{base}/topology/core_id": "0"})
    _write(tmp_path, {"sys/devices/system/cpu/isolated": "2-3"})
    nic = tmp_path / "sys/devices/pci0000:00/0000:00:03.0"
    _write(nic, {"vendor": "0x1af4", "device": "0x1041", "class": "0x020000", "numa_node": "-1"})
    _write(nic, {"virtio0/net/eth0/address": "02:00:00:00:00:01", "virtio0/net/eth0/carrier": "1"})
    _write(nic, {"virtio0/net/eth0/speed": "-1", "virtio0/net/eth0/type": "1"})
    _link(nic / "virtio0/net/eth0/device", nic / "virtio0")
    _link(tmp_path / "sys/class/net/eth0", nic / "virtio0/net/eth0")
    _write(tmp_path, {"sys/class/net/lo/address": "00:00:00:00:00:00"})
    _link(tmp_path / "sys/bus/pci/devices/0000:00:03.0", nic)
    disk = tmp_path / "sys/devices/pci0000:00/0000:00:04.0/virtio1/block/vda"
    _write(disk, {"dev": "254:0", "size": "2048", "ro": "0", "removable": "0", "queue/rotational": "1"})
    _write(disk, {"vda1/partition": "1", "vda1/size": "1024", "vda1/dev": "254:1", "vda1/ro": "1"})
    _link(disk / "device", disk.parent.parent)
    _link(tmp_path / "sys/class/block/vda", disk)
    _write(tmp_path, {"sys/class/block/loop0/size": "10"})
    return tmp_path


def test_everything_has_the_shape_of_the_api(root: Path) -> None:
    found = resources.read(root)
    assert msgspec.convert(found, Resources).cpu.total == 4


def test_this_machine() -> None:
    found = msgspec.convert(resources.read(), Resources)
    assert found.cpu.total >= 1
    assert found.memory.total > found.memory.used > 0


def test_nothing_at_all(tmp_path: Path) -> None:
    assert msgspec.convert(resources.read(tmp_path), Resources).memory.total == 0


def test_cpu(root: Path) -> None:
    cpu = resources.cpu(root)
    assert [socket.socket for socket in cpu.sockets] == [0, 1]
    threads = cpu.sockets[1].cores[0].threads
    assert [(thread.id, thread.thread, thread.isolated, thread.online) for thread in threads] == [
        (2, 0, True, True),
        (3, 1, True, True),
    ]
    assert (cpu.sockets[0].name, cpu.sockets[0].frequency) == ("Some CPU", 2000)


def test_memory(root: Path) -> None:
    memory = resources.memory(root)
    assert (memory.total, memory.used) == (8000 * 1024, 2000 * 1024)
    assert (memory.hugepages_total, memory.hugepages_used) == (4 * 2048 * 1024, 3 * 2048 * 1024)


def test_disks(root: Path) -> None:
    (disk,) = resources.storage(root).disks
    assert (disk.id, disk.size, disk.pci_address, disk.rpm) == ("vda", 2048 * 512, "0000:00:04.0", 1)
    assert [(part.id, part.size, part.read_only) for part in disk.partitions] == [("vda1", 1024 * 512, True)]
    assert resources.storage(root).total == 2


def test_network_cards(root: Path) -> None:
    (card,) = resources.network(root, PciNames(root)).cards
    assert (card.pci_address, card.vendor, card.product) == ("0000:00:03.0", "Red Hat, Inc.", "Virtio network device")
    (port,) = card.ports
    assert (port.id, port.address, port.link_detected, port.link_speed) == ("eth0", "02:00:00:00:00:01", True, 0)


@pytest.mark.parametrize(("listing", "ids"), [("", []), ("0", [0]), ("0-2,5", [0, 1, 2, 5])])
def test_id_lists(listing: str, ids: list[int]) -> None:
    assert resources.id_list(listing) == ids


def test_pci_names_of_the_vendors_here() -> None:
    assert parse(_PCI_IDS, {"8086"}) == {"8086": ("Intel Corporation", {"1237": "440FX - 82441FX"})}


@given(st.text(max_size=200))
def test_no_list_of_names_is_too_odd(text: str) -> None:
    parse(text, {"8086"})
