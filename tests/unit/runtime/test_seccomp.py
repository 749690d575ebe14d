# SPDX-License-Identifier: Apache-2.0
"""Policies as liblxc reads them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexd.runtime.seccomp import SeccompRules, named_calls, render_policy, rules_fault

DEFAULT = """\
2
denylist
reject_force_umount
[all]
kexec_load errno 38
kexec_file_load errno 38
init_module errno 38
finit_module errno 38
delete_module errno 38
open_by_handle_at errno 38
"""
NO_LISTENER = """\
[all]
seccomp errno 22 [1,2146435072,SCMP_CMP_MASKED_EQ,2146435072]
seccomp errno 22 [1,8,SCMP_CMP_MASKED_EQ,8]
"""


def rendered(**fields: object) -> str:
    return render_policy(SeccompRules(**fields), "x86_64")  # type: ignore[arg-type]


def test_the_default():
    assert rendered() == DEFAULT


def test_denied_beside_the_default():
    assert rendered(deny="mkdir errno 1\nchroot") == DEFAULT + "[all]\nmkdir errno 1\nchroot\n"


def test_denied_alone():
    assert rendered(deny="mkdir errno 1", deny_default=False) == "2\ndenylist\n[all]\nmkdir errno 1\n"


def test_nothing_denied_is_no_policy():
    assert rendered(deny_default=False) == ""


def test_allowed_only():
    assert rendered(allow="read\nwrite") == "2\nallowlist\n[all]\nread\nwrite\n"


def test_raw_is_all_there_is():
    assert rendered(raw="2\ndenylist\nmkdir", deny="chroot") == "2\ndenylist\nmkdir\n"


def test_interception_of_mknod():
    assert rendered(intercept=frozenset({"mknod"})) == (
        DEFAULT
        + NO_LISTENER
        + "mknod notify [1,8192,SCMP_CMP_MASKED_EQ,61440]\n"
        + "mknod notify [1,24576,SCMP_CMP_MASKED_EQ,61440]\n"
        + "mknodat notify [2,8192,SCMP_CMP_MASKED_EQ,61440]\n"
        + "mknodat notify [2,24576,SCMP_CMP_MASKED_EQ,61440]\n"
    )


def test_interception_of_mounts_closes_the_new_calls():
    lines = rendered(intercept=frozenset({"mount"})).splitlines()
    assert "mount notify [3,0,SCMP_CMP_MASKED_EQ,18446744070422410016]" in lines
    assert {"fsopen errno 38", "move_mount errno 38", "open_tree errno 38"} <= set(lines)


def test_every_line_that_we_write_is_one_that_we_accept():
    every = frozenset({"mknod", "setxattr", "mount", "bpf", "sched_setscheduler", "sysinfo"})
    body = rendered(intercept=every).split("\n", 2)[2]
    assert rules_fault(body) is None


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64", "ppc64le", "s390x", "riscv64", "armv7l", "i686"])
def test_every_usual_architecture_has_one(architecture: str):
    assert render_policy(SeccompRules(), architecture)


def test_no_policy_where_liblxc_cannot_filter():
    assert render_policy(SeccompRules(), "alpha") == ""


@pytest.mark.parametrize(
    "text",
    [
        "mkdir",
        "mkdir errno 1",
        "# a comment\n\n[x86_64]\nmount kill",
        "clone errno 1 [0,268435456,SCMP_CMP_MASKED_EQ,268435456]",
        "personality allow [0,8,SCMP_CMP_EQ]",
    ],
)
def test_rules_that_are_right(text: str):
    assert rules_fault(text) is None


@pytest.mark.parametrize("text", ["mkdir errno", "mkdir errno x", "[toaster]", "mk dir", "mkdir [9,1,SCMP_CMP_EQ]"])
def test_rules_that_are_wrong(text: str):
    fault = rules_fault("chroot\n" + text)
    assert fault is not None
    assert f'"{text}"' in fault


def test_the_calls_that_rules_name():
    assert named_calls("mkdir errno 1\n[all]\n# x\nchroot\nreject_force_umount") == ["mkdir", "chroot"]


@given(st.text())
def test_any_text_is_judged(text: str):
    if rules_fault(text) is None:
        for line in text.split("\n"):
            assert not line.strip() or line.strip()[0] in "[#" or named_calls(line) or "reject_force" in line
