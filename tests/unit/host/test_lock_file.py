# SPDX-License-Identifier: Apache-2.0
"""Holding a file for one process."""

import os
from pathlib import Path

import pytest

from flexd.host.contract import HostError
from flexd.host.files import lock_file


def test_one_at_a_time(tmp_path: Path) -> None:
    first = lock_file(tmp_path / "lock")
    assert first is not None
    assert lock_file(tmp_path / "lock") is None
    os.close(first)
    again = lock_file(tmp_path / "lock")
    assert again is not None
    os.close(again)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises((OSError, HostError)):
        lock_file(tmp_path)
