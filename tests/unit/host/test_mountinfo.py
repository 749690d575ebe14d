# SPDX-License-Identifier: Apache-2.0
"""Reading mountinfo and mount options."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexd.host import mountinfo, syscalls

_TABLE = rb"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
75 27 0:46 / /srv/a\040b/t rw,relatime master:3 propagate_from:2 - overlay flexd rw,upperdir=/srv/u\054p,redirect_dir=on
76 27 254:0 /images/x /srv/a\040b ro,relatime,idmapped - ext4 /dev/vda rw
77 76 0:50 / /srv/a\040b rw - tmpfs none rw,size=4k
"""

_NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: name not in (".", "..")
)


def test_lines_with_and_without_optional_fields() -> None:
    proc, root, overlay, bind, _ = mountinfo.parse(_TABLE)
    assert (proc.target, proc.fstype, proc.source) == (Path("/proc"), "proc", "proc")
    assert root.options == "rw,relatime,rw,discard"
    assert overlay.target == Path("/srv/a b/t")
    assert "upperdir=/srv/u,p" in overlay.options
    assert (bind.root, bind.target) == ("/images/x", Path("/srv/a b"))


def test_at_or_below_keeps_order_and_ignores_neighbours() -> None:
    found = mountinfo.at_or_below(_TABLE, "/srv/a b")
    assert [(each.fstype, each.target) for each in found] == [
        ("overlay", Path("/srv/a b/t")),
        ("ext4", Path("/srv/a b")),
        ("tmpfs", Path("/srv/a b")),
    ]
    assert mountinfo.at_or_below(_TABLE, "/srv/a") == []
    assert len(mountinfo.at_or_below(_TABLE, "/")) == 5


def test_is_target_is_exact() -> None:
    assert mountinfo.is_target(_TABLE, "/srv/a b")
    assert not mountinfo.is_target(_TABLE, "/srv")
    assert not mountinfo.is_target(_TABLE, "/images/x")  # the root of a bind, not its target


def test_the_topmost_mount_holds_a_path() -> None:
    mounts = mountinfo.parse(_TABLE)
    holding = {path: mountinfo.holding(mounts, Path(path)) for path in ("/srv/a b/x", "/srv/a b/t/x", "/home")}
    assert [each.fstype if each else None for each in holding.values()] == ["tmpfs", "overlay", "ext4"]
    assert mountinfo.holding([], Path("/")) is None


@given(st.lists(_NAMES, min_size=1, max_size=4))
def test_any_path_survives_the_table(names: list[str]) -> None:
    path = "/" + "/".join(names)
    line = b"36 35 98:0 / " + mountinfo.escape(path) + b" rw - ext4 /dev/vda rw\n"
    assert mountinfo.parse_line(line.rstrip(b"\n")).target == Path(path)


@pytest.mark.parametrize(
    ("text", "flags", "rest"),
    [
        ("", 0, ""),
        ("ro,nosuid,size=1m", syscalls.MS_RDONLY | syscalls.MS_NOSUID, "size=1m"),
        ("ro,rw", 0, ""),
        ("defaults,noexec,mode=755,uid=0", syscalls.MS_NOEXEC, "mode=755,uid=0"),
        ("rbind", syscalls.MS_BIND | syscalls.MS_REC, ""),
    ],
)
def test_options(text: str, flags: int, rest: str) -> None:
    assert mountinfo.parse_options(text) == (flags, rest)
