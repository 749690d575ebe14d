# SPDX-License-Identifier: Apache-2.0
"""Which CRIU is taken, and what is said of one that cannot be: with programs that print what CRIU's versions print."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flexd.host.criu import LinuxCriu, mismatch
from flexd.host.linux import LinuxHost
from flexd.host.threads import Threads


@pytest.fixture
async def host() -> AsyncIterator[LinuxHost]:
    host = LinuxHost()
    yield host
    await host.close()


def criu(path: Path, version: str, *, check: int = 0, tracking: int = 0) -> Path:
    path.write_text(
        "#!/bin/sh\n"
        f'case "$*" in --version) echo "Version: {version}" ;;\n'
        f"*mem_dirty_track) exit {tracking} ;;\n"
        f'check) echo "Warn  (x.c:1): y" >&2; echo "Error (cr-check.c:9): no way" >&2; exit {check} ;;\nesac\n'
    )
    path.chmod(0o755)
    return path


def looking_at(host: LinuxHost, *places: Path) -> LinuxCriu:
    return LinuxCriu(Threads(), host.processes, places=places)


@pytest.mark.parametrize(
    ("version", "kernel", "works"),
    [
        ("3.17.1", "6.18.44-fc", False),
        ("3.17.1", "6.1.0-30-amd64", False),
        ("4.1.1", "6.12.107+deb13-amd64", False),
        ("4.1.1", "6.16.0", False),
        ("4.2.1", "6.12.107+deb13-amd64", True),
        ("4.1.1", "7.3.4", False),
        ("4.2", "6.16", True),
        ("4.2.1", "6.18.44-fc", True),
        ("5.0", "7.3.4", True),
    ],
)
def test_versions_that_go_together(version: str, kernel: str, *, works: bool) -> None:
    said = mismatch(version, kernel)
    assert (not said) is works
    if said:
        assert version in said
        assert kernel in said


async def test_the_first_that_is_usable_is_taken(host: LinuxHost, tmp_path: Path) -> None:
    old, good = criu(tmp_path / "old", "3.17.1"), criu(tmp_path / "good", "9.0", tracking=1)
    facts = await looking_at(host, tmp_path / "absent", old, good).facts()
    assert (facts.path, facts.version, facts.usable, facts.reason) == (good, "9.0", True, "")
    assert not facts.memory_tracking
    assert (await looking_at(host, criu(tmp_path / "tracks", "9.0")).facts()).memory_tracking


async def test_why_none_is_usable(host: LinuxHost, tmp_path: Path) -> None:
    none = await looking_at(host, tmp_path / "absent").facts()
    assert (none.path, none.usable) == (None, False)
    assert "not installed" in none.reason
    old = await looking_at(host, criu(tmp_path / "old", "3.17.1")).facts()
    assert (old.version, old.usable) == ("3.17.1", False)
    assert f"Linux {os.uname().release}" in old.reason
    failing = await looking_at(host, criu(tmp_path / "failing", "9.0", check=1)).facts()
    assert not failing.usable
    assert failing.reason.endswith("Error (cr-check.c:9): no way")
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'libnet.so.1: cannot open shared object file' >&2\nexit 127\n")
    broken.chmod(0o755)
    assert "libnet.so.1" in (await looking_at(host, broken).facts()).reason


async def test_one_that_is_installed_later_is_found(host: LinuxHost, tmp_path: Path) -> None:
    looking = looking_at(host, tmp_path / "criu")
    assert not (await looking.facts()).usable
    criu(tmp_path / "criu", "9.0")
    assert (await looking.facts()).usable
    (tmp_path / "criu").unlink()
    assert not (await looking.facts()).usable
