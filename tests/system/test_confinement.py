# SPDX-License-Identifier: Apache-2.0
"""What holds a container: policies that really deny, ids that really are others'."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.machine import ApiError, Machine, wait_until


@contextmanager
def running(tiny: Machine, name: str, **config: str) -> Iterator[str]:
    """A container with these keys (`security_nesting` is `security.nesting`)."""
    keys = {key.replace("_", "."): value for key, value in config.items()}
    launch(tiny, name, keys)
    try:
        yield name
    finally:
        tiny.lxc("delete", "-f", name)


def launch(tiny: Machine, name: str, config: dict[str, str]) -> None:
    body = {"name": name, "source": {"type": "image", "alias": "tiny"}, "config": config}
    tiny.call("POST", "/1.0/instances", body)
    tiny.call("PUT", f"/1.0/instances/{name}/state", {"action": "start"})


def test_a_denied_call_fails_and_only_that(tiny: Machine):
    launch(tiny, "denied", {"security.syscalls.deny": "mkdir errno 28\nmkdirat errno 28"})
    try:
        done = tiny.lxc("exec", "denied", "--", "mkdir", "/tmp/x", check=False)
        assert done.returncode != 0
        assert "No space left" in done.stderr
        assert tiny.lxc("exec", "denied", "--", "touch", "/tmp/x").returncode == 0
    finally:
        tiny.lxc("delete", "-f", "denied")


def test_init_and_commands_are_filtered(tiny: Machine):
    with running(tiny, "filtered") as name:
        for pid in ("1", "self"):
            status = tiny.lxc("exec", name, "--", "cat", f"/proc/{pid}/status").stdout
            assert "Seccomp:\t2" in status


def test_the_default_can_be_left_out(tiny: Machine):
    launch(tiny, "open", {"security.syscalls.deny_default": "false", "migration.stateful": "false"})
    try:
        assert "Seccomp:\t0" in tiny.lxc("exec", "open", "--", "cat", "/proc/1/status").stdout
    finally:
        tiny.lxc("delete", "-f", "open")


def test_raw_idmap_shares_one_user_with_the_host(tiny: Machine, tmp_path: Path):
    launch(tiny, "mapped", {"raw.idmap": "both 1000 1000"})
    try:
        tiny.lxc("exec", "mapped", "--", "sh", "-c", "touch /tmp/mine /tmp/roots; chown 1000:1000 /tmp/mine")
        pid = tiny.get("/1.0/instances/mapped/state")["pid"]
        assert Path(f"/proc/{pid}/root/tmp/mine").stat().st_uid == 1000
        assert Path(f"/proc/{pid}/root/tmp/roots").stat().st_uid >= 100000
    finally:
        tiny.lxc("delete", "-f", "mapped")


def test_sysctls_are_the_containers_own(tiny: Machine):
    before = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    launch(tiny, "sysctl", {"linux.sysctl.net.ipv4.ip_forward": "1"})
    try:
        assert tiny.lxc("exec", "sysctl", "--", "cat", "/proc/sys/net/ipv4/ip_forward").stdout == "1\n"
        assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == before
    finally:
        tiny.lxc("delete", "-f", "sysctl")


def test_a_misspelled_call_is_told_at_once(tiny: Machine):
    with pytest.raises(ApiError, match="mkdirr"):
        launch(tiny, "misspelled", {"security.syscalls.deny": "mkdirr"})
    assert "misspelled" not in str(tiny.get("/1.0/instances"))


@pytest.mark.parametrize("privileged", ["false", "true"])
def test_the_hosts_kernel_is_out_of_reach(tiny: Machine, privileged: str):
    """Doors that were used for escapes: sysrq, the core pattern, release agents, kernel memory, the clock."""
    doors = (
        "echo 1 >/proc/sys/kernel/sysrq",
        "echo '|/bin/x' >/proc/sys/kernel/core_pattern",
        "echo h >/proc/sysrq-trigger",
        "dd if=/dev/mem of=/dev/null bs=1 count=1",
        "mknod /tmp/m c 1 1 && dd if=/tmp/m of=/dev/null bs=1 count=1",
        "mknod /tmp/d b 254 0 && dd if=/tmp/d of=/dev/null bs=1 count=1",
        "! date -s 2030-01-01 2>&1 | grep 'not permitted'",
        "echo x >/sys/kernel/uevent_helper",
    )
    launch(tiny, f"escape{privileged}", {"security.privileged": privileged})
    try:
        for door in doors:
            done = tiny.lxc("exec", f"escape{privileged}", "--", "sh", "-c", door, check=False)
            assert done.returncode != 0, door
    finally:
        tiny.lxc("delete", "-f", f"escape{privileged}")


# getpid(2) through the 32-bit entry (its number there is 20), and through x32's table where the kernel has it.
_COMPAT = r"""
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void) {
    long result = 20;
    __asm__ volatile("int $0x80" : "+a"(result) : : "memory", "r8", "r9", "r10", "r11");
    long x32 = syscall(SYS_getpid | 0x40000000);
    printf("%s %s\n", (int)result == getpid() ? "works" : (int)result == -38 ? "ENOSYS" : "?",
           x32 == getpid() ? "works" : "fails");
}
"""


@pytest.fixture(scope="module")
def compat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that prints how system calls of other tables end."""
    compiler = shutil.which("cc")
    if compiler is None or os.uname().machine != "x86_64":
        pytest.skip("no C compiler, or no x86_64")
    place = tmp_path_factory.mktemp("compat")
    (place / "compat.c").write_text(_COMPAT)
    subprocess.run([compiler, "-static", "-o", place / "compat", place / "compat.c"], check=True)
    done = subprocess.run([place / "compat"], capture_output=True, text=True, check=False)
    if not done.stdout.startswith("works"):
        pytest.skip("this kernel runs no 32-bit programs")
    return place / "compat"


def test_32_bit_programs_are_denied(tiny: Machine, compat: Path):
    """Of init, of commands, of both after a restart; and of nobody else."""
    launch(tiny, "native", {"security.syscalls.deny_compat": "true"})
    launch(tiny, "both", {})
    try:
        for name in ("native", "both"):
            tiny.lxc("file", "push", "--mode=755", str(compat), f"{name}/compat")
        assert tiny.lxc("exec", "both", "--", "/compat").stdout.startswith("works")
        assert tiny.lxc("exec", "native", "--", "/compat").stdout == "ENOSYS fails\n"
        script = "echo '::sysinit:/bin/sh -c \"/compat >/saw\"' >>/etc/inittab"
        tiny.lxc("exec", "native", "--", "sh", "-c", script)
        tiny.restart()
        assert tiny.lxc("exec", "native", "--", "/compat").stdout == "ENOSYS fails\n"
        tiny.lxc("restart", "-f", "native")
        assert wait_until(lambda: tiny.lxc("exec", "native", "--", "cat", "/saw", check=False).stdout) == (
            "ENOSYS fails\n"
        )
    finally:
        tiny.lxc("delete", "-f", "native", "both")


def test_32_bit_programs_are_denied_beside_interception(tiny: Machine, compat: Path):
    keys = {"security.syscalls.blacklist_compat": "true", "security.syscalls.intercept.mknod": "true"}
    launch(tiny, "noded", keys)
    try:
        tiny.lxc("file", "push", "--mode=755", str(compat), "noded/compat")
        assert tiny.lxc("exec", "noded", "--", "/compat").stdout == "ENOSYS fails\n"
        assert tiny.lxc("exec", "noded", "--", "mknod", "/tmp/null", "c", "1", "3").returncode == 0
    finally:
        tiny.lxc("delete", "-f", "noded")


def test_the_guest_api_comes_and_goes_live(tiny: Machine):
    look = "test -S /dev/lxd/sock && test -S /dev/incus/sock"
    with running(tiny, "guest") as name:
        assert tiny.lxc("exec", name, "--", "sh", "-c", look).returncode == 0
        tiny.lxc("config", "set", name, "security.devlxd", "false")
        assert tiny.lxc("exec", name, "--", "sh", "-c", "ls -A /dev/lxd /dev/incus").stdout.split() == [
            "/dev/incus:",
            "/dev/lxd:",
        ]
        tiny.lxc("config", "unset", name, "security.devlxd")
        assert tiny.lxc("exec", name, "--", "sh", "-c", look).returncode == 0
        mounts = tiny.lxc("exec", name, "--", "grep", "/dev/lxd ", "/proc/mounts").stdout
        assert " ro," in mounts
        assert mounts.count("\n") == 1
