# SPDX-License-Identifier: Apache-2.0
"""What holds a container: policies that really deny, ids that really are others'."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.machine import ApiError, Machine


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
    launch(tiny, "open", {"security.syscalls.deny_default": "false"})
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
