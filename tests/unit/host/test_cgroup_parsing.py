# SPDX-License-Identifier: Apache-2.0
"""Cgroups of all three kinds, read from trees made of plain files."""

from pathlib import Path

import pytest

from flexd.host import mountinfo
from flexd.host.cgroups import hierarchies, parse_cpu_stat, parse_mounts, read_layout, read_stats
from flexd.host.contract import CgroupLayout, CgroupStats

_V1 = b"""31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup systemd rw,xattr,release_agent=/lib/agent,name=systemd
"""
_UNIFIED = b"41 31 0:38 / %s rw,relatime - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_v1() -> None:
    unified, controllers = parse_mounts(mountinfo.parse(_V1))
    assert unified is None
    assert set(controllers) == {"cpu", "cpuacct", "memory", "systemd"}
    assert controllers["cpuacct"] == Path("/sys/fs/cgroup/cpu,cpuacct")


def test_modes(tmp_path: Path) -> None:
    _write(tmp_path / "unified/cgroup.controllers", "cpu memory pids\n")
    table = tmp_path / "mountinfo"
    unified = _UNIFIED % str(tmp_path / "unified").encode()
    layouts = []
    for text in (_V1, unified, _V1 + unified):
        table.write_bytes(text)
        layouts.append(read_layout(table))
    v1, v2, hybrid = layouts
    assert [layout.mode for layout in layouts] == ["v1", "v2", "hybrid"]
    assert v1.unified is None
    assert set(v2.controllers) == {"cpu", "memory", "pids", "cgroup"}
    assert hybrid.controllers["memory"] == Path("/sys/fs/cgroup/memory")  # v1 has it, so the listing is not trusted
    assert hybrid.controllers["pids"] == hybrid.unified == tmp_path / "unified"
    assert len(hierarchies(hybrid)) == 4
    assert hierarchies(v2) == [tmp_path / "unified"]


def test_stats_of_v1(tmp_path: Path) -> None:
    memory, cpu = tmp_path / "memory", tmp_path / "cpu"
    values = {
        "memory.usage_in_bytes": 100,
        "memory.max_usage_in_bytes": 200,
        "memory.limit_in_bytes": 9223372036854771712,
        "memory.memsw.usage_in_bytes": 130,
        "memory.memsw.max_usage_in_bytes": 190,
    }
    for name, value in values.items():
        _write(memory / "c1" / name, f"{value}\n")
    _write(cpu / "c1/cpuacct.usage", "12345\n")
    layout = CgroupLayout("v1", {"memory": memory, "cpuacct": cpu}, None)
    there, gone = read_stats(layout, ["c1", "c2"])
    assert there == CgroupStats(
        cpu_usage_ns=12345, memory_usage_bytes=100, memory_peak_bytes=200, swap_usage_bytes=30, swap_peak_bytes=0
    )
    assert gone == CgroupStats()


def test_stats_of_v2(tmp_path: Path) -> None:
    files = {"memory.current": "100", "memory.max": "max", "memory.swap.current": "7", "pids.current": "3"}
    for name, value in (files | {"cpu.stat": "usage_usec 5\nuser_usec 3"}).items():
        _write(tmp_path / "c1" / name, f"{value}\n")
    layout = CgroupLayout("v2", {"memory": tmp_path, "pids": tmp_path, "cpu": tmp_path}, tmp_path)
    assert read_stats(layout, ["c1"]) == [
        CgroupStats(cpu_usage_ns=5000, memory_usage_bytes=100, swap_usage_bytes=7, processes=3)
    ]


@pytest.mark.parametrize(("text", "expected"), [("usage_usec 12\n", 12000), ("user_usec 1\n", None), ("", None)])
def test_cpu_stat(text: str, expected: int | None) -> None:
    assert parse_cpu_stat(text) == expected
