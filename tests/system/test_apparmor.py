# SPDX-License-Identifier: Apache-2.0
"""AppArmor, where the kernel has it: who is in which profile, what that forbids, and when it comes and goes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.machine import ApiError, Machine

_SECURITY = Path("/sys/kernel/security/apparmor")


@pytest.fixture(autouse=True, scope="module")
def apparmor() -> None:
    if not (_SECURITY / "profiles").exists():
        pytest.skip("this kernel has no AppArmor")


@contextmanager
def running(tiny: Machine, name: str, config: dict[str, str] | None = None) -> Iterator[str]:
    body = {"name": name, "source": {"type": "image", "alias": "tiny"}, "config": config or {}}
    tiny.call("POST", "/1.0/instances", body)
    try:
        tiny.call("PUT", f"/1.0/instances/{name}/state", {"action": "start"})
        yield name
    finally:
        tiny.lxc("delete", "-f", name)


def run(tiny: Machine, name: str, script: str) -> tuple[int, str]:
    done = tiny.lxc("exec", name, "--", "sh", "-c", script, check=False)
    return done.returncode, done.stdout + done.stderr


def loaded(tiny: Machine, name: str) -> list[str]:
    """Profiles and namespaces of an instance in the kernel."""
    words = [line.split(" ")[0] for line in (_SECURITY / "profiles").read_text().splitlines()]
    words += [path.name for path in (_SECURITY / "policy" / "namespaces").iterdir()]
    return [word for word in words if word.endswith(f"_{name}") and word.startswith("lxc-flexd-")]


def label(pid: str) -> str:
    return Path(f"/proc/{pid}/attr/apparmor/current").read_text().strip("\0\n")


def test_init_and_commands_are_in_the_profile(tiny: Machine):
    with running(tiny, "seen") as name:
        init = tiny.get(f"/1.0/instances/{name}/state")["pid"]
        assert label(init).startswith("lxc-flexd-")
        assert "unconfined" not in label(init).split("//&")[0]
        assert label(init).endswith("(enforce)")
        tiny.lxc("exec", name, "--", "sh", "-c", "sleep 300 >/dev/null 2>&1 </dev/null &")
        others = [
            entry.name
            for entry in Path("/proc").glob("[0-9]*")
            if (entry / "cmdline").read_bytes() == b"sleep\0" + b"300\0"
            and (entry / "ns/pid").readlink() == Path(f"/proc/{init}/ns/pid").readlink()
        ]
        assert [label(pid) for pid in others] == [label(init)]
        assert len(loaded(tiny, name)) >= 1


def test_it_goes_with_the_run(tiny: Machine):
    with running(tiny, "gone") as name:
        file = tiny.directory / "security" / "apparmor" / name
        assert file.exists()
        tiny.call("PUT", f"/1.0/instances/{name}/state", {"action": "stop", "force": True})
        assert loaded(tiny, name) == []
        tiny.call("PUT", f"/1.0/instances/{name}/state", {"action": "start"})
        tiny.kill()
        assert loaded(tiny, name) != []
        tiny.start()
        assert loaded(tiny, name) != []
    assert loaded(tiny, "gone") == []
    assert not file.exists()


def test_rules_of_ones_own_live(tiny: Machine):
    with running(tiny, "rules") as name:
        assert run(tiny, name, "echo x >/tmp/secret; cat /tmp/secret") == (0, "x\n")
        tiny.lxc("config", "set", name, "raw.apparmor", "deny /tmp/secret r,")
        status, text = run(tiny, name, "cat /tmp/secret")
        assert status != 0
        assert "Permission denied" in text
        with pytest.raises(ApiError, match="AppArmor profile"):
            tiny.call("PATCH", f"/1.0/instances/{name}", {"config": {"raw.apparmor": "this is no rule"}})
        assert run(tiny, name, "cat /tmp/secret")[0] != 0
        tiny.lxc("config", "unset", name, "raw.apparmor")
        assert run(tiny, name, "cat /tmp/secret") == (0, "x\n")


_VIEWS = (
    "mkdir -p /tmp/d && mount -t debugfs none /tmp/d",
    "mkdir -p /tmp/d && mount -t securityfs none /tmp/d",
    "mkdir -p /tmp/d && mount -t proc none /tmp/d",
    "mkdir -p /tmp/d && mount --bind /proc/sys /tmp/d",
    "mkdir -p /tmp/d && mount --bind /sys /tmp/d",
    "mount -o remount,rw /proc/sys",
    "echo 1 >/proc/sys/kernel/panic_on_oops",
    "echo 1 >/proc/sys/fs/suid_dumpable",
    "echo x >/sys/kernel/uevent_helper",
    "mount -t sysfs none /sys && echo x >/sys/kernel/uevent_helper",
    "mount -t tracefs none /sys/kernel/tracing && cat /sys/kernel/tracing/trace",
)


def test_a_privileged_root_is_held(tiny: Machine):
    with running(tiny, "held", {"security.privileged": "true"}) as name:
        for door in _VIEWS:
            assert run(tiny, name, door)[0] != 0, door
        assert run(tiny, name, "mount -t tmpfs none /mnt && touch /mnt/x && umount /mnt") == (0, "")
        assert run(tiny, name, "hostname other && hostname") == (0, "other\n")
        assert run(tiny, name, "echo 1 >/proc/sys/net/ipv4/ip_forward") == (0, "")


def test_an_unprivileged_root_mounts_what_is_its_own(tiny: Machine):
    with running(tiny, "own", {"migration.stateful": "false"}) as name:
        for door in ("mount -t debugfs none /mnt", "mount -t ramfs none /mnt && mount -t bpf none /mnt/x"):
            assert run(tiny, name, door)[0] != 0, door
        assert (
            run(tiny, name, "mkdir -p /srv/a /srv/b; touch /srv/a/f; mount --bind /srv/a /srv/b; ls /srv/b")[1] == "f\n"
        )
        assert run(tiny, name, "mount -o remount,bind,ro /srv/b; touch /srv/b/g")[0] != 0
        assert run(tiny, name, "unshare -U -r id -u")[1] == "0\n"


def test_nesting_live(tiny: Machine):
    """Overlays are for containers inside; so is tracing what has another label."""
    overlay = "mkdir -p /run/o && mount -t tmpfs none /run/o && cd /run/o && mkdir l u w m && "
    overlay += "mount -t overlay -o lowerdir=l,upperdir=u,workdir=w none m; status=$?; "
    overlay += "cd /; umount /run/o/m /run/o; exit $status"
    with running(tiny, "nest") as name:
        assert run(tiny, name, overlay)[0] != 0
        tiny.lxc("config", "set", name, "security.nesting", "true")
        assert run(tiny, name, overlay)[0] == 0
        tiny.lxc("config", "set", name, "security.nesting", "false")
        assert run(tiny, name, overlay)[0] != 0
