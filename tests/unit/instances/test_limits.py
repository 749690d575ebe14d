# SPDX-License-Identifier: Apache-2.0
"""Limits as cgroup files, and CPUs."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexd.api.errors import BadRequest
from flexd.api.keys import check_config
from flexd.host.contract import CgroupLayout
from flexd.instances.cpus import balance, check_pinning, format_set, parse_set
from flexd.instances.limits import KEYS, changes, memory_bytes, rlimits, settings

_ALL = ("cpu", "cpuset", "memory", "pids", "blkio", "io", "hugetlb")
V1 = CgroupLayout("v1", {name: Path("/c") for name in _ALL}, None)
V2 = CgroupLayout("v2", {name: Path("/c") for name in _ALL}, Path("/c"))
GIB = 1 << 30


def written(config, layout=V1):
    return {s.file: s.value for s in settings(config, layout, total_memory_bytes=8 * GIB)}


def test_memory():
    assert written({"limits.memory": "1GiB"}) == {
        "memory.limit_in_bytes": str(GIB),
        "memory.soft_limit_in_bytes": str(GIB * 9 // 10),
    }
    assert written({"limits.memory": "50%"}, V2) == {"memory.max": str(4 * GIB)}
    assert written({"limits.memory": "1GiB", "limits.memory.enforce": "soft"}, V2) == {"memory.high": str(GIB)}
    assert written({"limits.memory.swap": "false"}) == {"memory.swappiness": "0"}
    assert written({"limits.memory.swap": "false"}, V2) == {"memory.swap.max": "0"}
    assert memory_bytes("25%", 400) == 100


def test_cpu():
    assert written({"limits.cpu.allowance": "50%"}) == {"cpu.shares": "512"}
    assert written({"limits.cpu.allowance": "25ms/100ms"}) == {
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "25000",
    }
    assert written({"limits.cpu.allowance": "25ms/100ms"}, V2) == {"cpu.max": "25000 100000"}
    assert written({"limits.cpu.priority": "3"}) == {"cpu.shares": "1017"}
    assert written({"limits.cpu.allowance": "50%"}, V2) == {"cpu.weight": "50"}


def test_others():
    assert written({"limits.processes": "500"}) == {"pids.max": "500"}
    assert written({"limits.disk.priority": "0"}, V2) == {"io.weight": "10"}
    assert written({"limits.hugepages.2MB": "4MiB"}) == {"hugetlb.2MB.limit_in_bytes": str(4 << 20)}
    assert rlimits({"limits.kernel.nofile": "1024:4096", "user.x": "1"}) == {"nofile": "1024:4096"}


def test_a_limit_without_its_controller_is_refused():
    poor = CgroupLayout("v1", {"cpu": Path("/c")}, None)
    with pytest.raises(BadRequest, match="no cgroup controller hugetlb, pids"):
        settings({"limits.processes": "1", "limits.hugepages.2MB": "2MiB"}, poor, total_memory_bytes=1)


def test_lifting_a_limit_writes_the_kernels_default():
    old = settings({"limits.memory": "1GiB", "limits.processes": "9"}, V2, total_memory_bytes=GIB)
    new = settings({"limits.processes": "10"}, V2, total_memory_bytes=GIB)
    assert {s.file: s.value for s in changes(old, new)} == {"memory.max": "max", "pids.max": "10"}
    assert changes(new, new) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("limits.cpu", "0"),
        ("limits.cpu", "1-"),
        ("limits.cpu.allowance", "101%"),
        ("limits.cpu.allowance", "25ms"),
        ("limits.cpu.priority", "11"),
        ("limits.memory", "0"),
        ("limits.memory", "120%"),
        ("limits.memory", "much"),
        ("limits.memory.enforce", "gently"),
        ("limits.processes", "-1"),
        ("limits.kernel.nofile", "a:b"),
        ("limits.kernel.nonsense", "1"),
    ],
)
def test_bad_values(key, value):
    assert [fault.path for fault in check_config({key: value}, KEYS)] == [f"config.{key}"]


def test_every_setting_that_may_be_written_may_be_lifted():
    config = {key.name: "1" for key in KEYS if key.name.startswith(("limits.hugepages", "limits.processes"))}
    config |= {"limits.memory": "1GiB", "limits.memory.swap": "false", "limits.cpu.allowance": "10ms/20ms"}
    config |= {"limits.disk.priority": "3"}
    for layout in (V1, V2):
        assert changes(settings(config, layout, total_memory_bytes=GIB), [])


@given(st.sets(st.integers(0, 500), min_size=1))
def test_cpu_lists_round_trip(cpus):
    assert parse_set(format_set(cpus)) == cpus


def test_counts_are_spread_and_sets_are_kept():
    online = frozenset(range(4))
    assert balance({"a": "2", "b": "2"}, online) == {"a": frozenset({0, 1}), "b": frozenset({2, 3})}
    assert balance({"a": "0-1", "b": "2", "c": ""}, online) == {
        "a": frozenset({0, 1}),
        "b": frozenset({2, 3}),
        "c": online,
    }
    assert balance({"a": "64"}, online)["a"] == online


def test_pinning_to_a_missing_cpu():
    with pytest.raises(BadRequest, match="CPU 7 is not online"):
        check_pinning("0,7", frozenset({0, 1}))
