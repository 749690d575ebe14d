# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the system tests: real daemons, as root. What the host lacks is said in the skip's reason."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.machine import Machine, machine

_PROGRAMS = ("lxc-start", "dnsmasq", "nft", "lxc", "unshare", "nsenter")


@pytest.fixture(scope="session")
def root_only() -> None:
    """Skip where system tests cannot run at all."""
    if os.geteuid() != 0:
        pytest.skip("system tests need root")
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="session")
def state_root(root_only: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where daemons keep their state: a short path (a unix socket's has 107 bytes at most) on a disk, not a tmpfs."""
    del root_only, tmp_path_factory
    place = Path(f"/var/tmp/flexd-test-{os.getpid()}")
    place.mkdir(mode=0o711)
    yield place
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny(state_root: Path) -> Iterator[Machine]:
    """A machine with the busybox image `tiny`; shared, so tests take names of their own."""
    from tests.system.images import tiny_image

    with machine(state_root / "tiny") as made:
        made.import_image(tiny_image(), "tiny")
        yield made


@pytest.fixture(scope="session")
def debian(state_root: Path) -> Iterator[Machine]:
    """A machine with the image `debian/12` as `flexc image build` makes it. Built outside: the machine is an island."""
    from tests.system.images import debian_image, split_body

    with machine(state_root / "debian") as made:
        made.import_body(*split_body(*debian_image()), "debian/12")
        yield made
