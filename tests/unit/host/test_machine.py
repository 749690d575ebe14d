# SPDX-License-Identifier: Apache-2.0
"""What is made of /etc/subuid, sysctls and what programs print."""

from pathlib import Path

import pytest

from flexd.host.contract import Features, SubordinateRange
from flexd.host.machine import common_range, missing, parse_version, raise_sysctls, root_ranges, sysctl_path

_DEFAULT = SubordinateRange(1000000, 1000000000)


@pytest.mark.parametrize(
    ("uids", "gids", "expected"),
    [
        ("", "", _DEFAULT),
        ("root:100000:65536\n", "root:100000:65536\n", SubordinateRange(100000, 65536)),
        ("root:100000:65536\nroot:1000000:1000000000\n", "0:1000000:1000000000\n", _DEFAULT),
        ("root:100000:65536\n", "root:100100:65536\n", SubordinateRange(100100, 65436)),
        ("root:100000:10\n", "root:900000:10\n", _DEFAULT),  # nothing in common
        ("user:5:5\nroot:bad:1\n# root:1:1\n", "root:100000:65536\n", _DEFAULT),
    ],
)
def test_the_range_of_root(uids: str, gids: str, expected: SubordinateRange) -> None:
    assert common_range(root_ranges(uids), root_ranges(gids)) == expected


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("5.0.2\n", "5.0.2"),
        ("Dnsmasq version 2.90  Copyright (c) 2000-2024", "2.90"),
        ("nftables v1.0.6 (Lester Gooch #5)", "1.0.6"),
        ("tar (GNU tar) 1.34+dfsg", "1.34+dfsg"),
        ("btrfs-progs v6.2 ", "6.2"),
        ("no idea", ""),
    ],
)
def test_versions(text: str, version: str) -> None:
    assert parse_version(text) == version


def test_limits_are_raised_never_lowered(tmp_path: Path) -> None:
    for name, value in (("low", "128\n"), ("high", "9999999\n"), ("odd", "1 2 3\n")):
        (tmp_path / "fs").mkdir(exist_ok=True)
        (tmp_path / "fs" / name).write_text(value)
    wanted = {"fs.low": 1024, "fs.high": 1024, "fs.odd": 1024, "fs.absent": 1024}
    assert raise_sysctls(tmp_path, wanted) == {"fs.low": "128 -> 1024"}
    assert (tmp_path / "fs/low").read_text() == "1024"
    assert (tmp_path / "fs/high").read_text() == "9999999\n"
    assert not (tmp_path / "fs/absent").exists()
    assert raise_sysctls(tmp_path, wanted) == {}


def test_a_link_with_a_dot_in_a_sysctl() -> None:
    assert sysctl_path(Path("/s"), "net.ipv4.conf.eth0/1.forwarding") == Path("/s/net/ipv4/conf/eth0.1/forwarding")


def test_what_is_missing_is_said_for_people() -> None:
    told = missing(Features(programs={"nft": "1"}))
    assert "nft" not in told
    assert "DHCP" in told["dnsmasq"]
    assert "5.12" in told["idmapped mounts"]
