# SPDX-License-Identifier: Apache-2.0
"""What a host lacks, in words."""

from pathlib import Path

import pytest

from flexd.host.contract import CgroupLayout, Features
from flexd.host.missing import missing

_ROOT = Path("/sys/fs/cgroup")


def test_programs_and_kernel_features():
    found = missing(Features(programs={"nft": "1"}, pidfd=True))
    assert "nft" not in found
    assert "pidfd" not in found
    assert "package dnsmasq-base" in found["dnsmasq"]
    assert "AppArmor" in found


@pytest.mark.parametrize(
    ("mode", "controllers", "absent"),
    [
        ("v2", "cpu cpuset hugetlb io memory pids", set()),
        ("v2", "cpu cpuset io pids", {"hugetlb", "memory"}),
        ("v2", "cpu cpuset hugetlb memory pids", {"io"}),
        ("v1", "cpu cpuset hugetlb memory pids blkio cpuacct devices freezer", set()),
        ("hybrid", "cpu cpuset hugetlb memory pids cpuacct", {"blkio", "devices", "freezer"}),
    ],
)
def test_controllers(mode: str, controllers: str, absent: set[str]):
    layout = CgroupLayout(mode, dict.fromkeys(controllers.split(), _ROOT), _ROOT)
    found = {name for name in missing(Features(cgroup=layout)) if name.startswith("cgroup controller ")}
    assert found == {f"cgroup controller {name}" for name in absent}
