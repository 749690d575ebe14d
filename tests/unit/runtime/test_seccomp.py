# SPDX-License-Identifier: Apache-2.0
"""The default policy, as liblxc reads it."""

from pathlib import Path

import pytest

from flexd.runtime.seccomp import default_policy, write_default_policy


def test_the_policy() -> None:
    assert default_policy("x86_64").splitlines() == [
        "2",
        "denylist",
        "reject_force_umount",
        "[all]",
        "kexec_load errno 1",
        "kexec_file_load errno 1",
        "init_module errno 1",
        "finit_module errno 1",
        "delete_module errno 1",
        "open_by_handle_at errno 1",
    ]


def test_a_call_can_be_taken_off_the_list() -> None:
    assert "open_by_handle_at" not in default_policy("aarch64", allowed=frozenset({"open_by_handle_at"}))


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64", "ppc64le", "s390x", "riscv64", "armv7l", "i686"])
def test_every_usual_architecture_has_one(architecture: str) -> None:
    assert default_policy(architecture)


def test_no_policy_where_liblxc_cannot_filter() -> None:
    assert default_policy("alpha") == ""


def test_it_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "seccomp" / "default"
    for _ in range(2):
        assert write_default_policy(path, "x86_64") == str(path)
    assert path.read_text() == default_policy("x86_64")
    assert [file.name for file in path.parent.iterdir()] == ["default"]
    assert write_default_policy(path, "alpha") == ""
