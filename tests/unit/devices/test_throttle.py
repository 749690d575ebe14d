# SPDX-License-Identifier: Apache-2.0
"""Disk limits: values, averages, and the files of both cgroup versions."""

from pathlib import Path

import pytest

from flexd.devices.throttle import Rates, average, files, rate_fault, rates
from flexd.host.contract import CgroupLayout

_ROOT = Path("/sys/fs/cgroup")
V1 = CgroupLayout("hybrid", {"blkio": _ROOT / "blkio"}, None)
V2 = CgroupLayout("v2", {"io": _ROOT}, _ROOT)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, Rates()),
        ({"limits.read": "1MB"}, Rates(read_bps=1_000_000)),
        ({"limits.write": "100iops"}, Rates(write_iops=100)),
        ({"limits.max": "1MiB, 50iops"}, Rates(1 << 20, 50, 1 << 20, 50)),
        ({"limits.read": "100 iops", "limits.write": "1kB"}, Rates(read_iops=100, write_bps=1000)),
    ],
)
def test_rates(config: dict[str, str], expected: Rates) -> None:
    assert rates(config) == expected


@pytest.mark.parametrize("value", ["fast", "10iopsen", "-1MB", "1MB;2iops"])
def test_wrong_rates(value: str) -> None:
    assert "iops" in (rate_fault(value) or "")


def test_disks_on_one_device_are_averaged() -> None:
    assert average([]) == Rates()
    assert average([Rates(read_bps=100), Rates(read_bps=300, write_iops=7), Rates()]) == Rates(200, 0, 0, 7)


def test_files_of_v1_take_limits_back_with_zero() -> None:
    assert files("8:0", Rates(read_bps=5), V1) == [
        ("blkio", "blkio.throttle.read_bps_device", "8:0 5"),
        ("blkio", "blkio.throttle.read_iops_device", "8:0 0"),
        ("blkio", "blkio.throttle.write_bps_device", "8:0 0"),
        ("blkio", "blkio.throttle.write_iops_device", "8:0 0"),
    ]


def test_the_file_of_v2() -> None:
    assert files("8:0", Rates(write_bps=5), V2) == [("io", "io.max", "8:0 rbps=max wbps=5 riops=max wiops=max")]
