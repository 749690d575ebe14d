# SPDX-License-Identifier: Apache-2.0
"""Devices of a running container, added, changed and removed with Debian's `lxc`."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.machine import Machine

NAME = "devices"


@pytest.fixture(scope="module")
def box(tiny: Machine) -> Iterator[Machine]:
    """A machine whose container `devices` runs."""
    tiny.lxc("launch", "tiny", NAME)
    yield tiny
    tiny.lxc("delete", "-f", NAME)


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("given")
    path.chmod(0o755)  # its owner is nobody inside
    (path / "file").write_text("from the host\n")
    return path


def device(machine: Machine, *words: str, check: bool = True) -> str:
    """`lxc config device WORDS` on the container; what it wrote to stderr."""
    verb, *rest = words
    return machine.lxc("config", "device", verb, NAME, *rest, check=check).stderr


def sh(machine: Machine, script: str, *, check: bool = True) -> str:
    return machine.lxc("exec", NAME, "--", "sh", "-c", script, check=check).stdout


def links(machine: Machine) -> list[str]:
    """Interfaces of the daemon's network namespace."""
    done = subprocess.run([*machine.enter(), "ip", "-o", "link"], capture_output=True, text=True, check=True)
    return [line.split(": ")[1].split("@")[0] for line in done.stdout.splitlines()]


def mounts_of_daemon(machine: Machine) -> list[str]:
    table = Path("/proc/self/mountinfo").read_text().splitlines()
    return sorted(target for line in table if (target := line.split()[4]).startswith(f"{machine.directory}/devices/"))


# --- disk ---


def test_a_disk(box: Machine, place: Path) -> None:
    before = mounts_of_daemon(box)
    device(box, "add", "data", "disk", f"source={place}", "path=/srv/data")
    assert sh(box, "cat /srv/data/file") == "from the host\n"
    device(box, "set", "data", "readonly", "true")
    assert "Read-only" in sh(box, "touch /srv/data/x 2>&1", check=False)
    device(box, "set", "data", "path", "/srv/elsewhere")
    assert sh(box, "cat /srv/elsewhere/file; ls /srv/data") == "from the host\n"
    device(box, "remove", "data")
    assert sh(box, "ls /srv/elsewhere") == ""
    assert mounts_of_daemon(box) == before


def test_a_shifted_disk_belongs_to_the_containers_root(box: Machine, place: Path) -> None:
    device(box, "add", "data", "disk", f"source={place}", "path=/srv/own", "shift=true")
    assert sh(box, "stat -c %u /srv/own/file; echo new >/srv/own/new; stat -c %u /srv/own/new").split() == ["0", "0"]
    assert (place / "new").stat().st_uid == 0
    device(box, "remove", "data")


def test_a_single_file_and_a_tmpfs(box: Machine, place: Path) -> None:
    device(box, "add", "one", "disk", f"source={place}/file", "path=/run/one")
    assert sh(box, "cat /run/one") == "from the host\n"
    device(box, "remove", "one")
    device(box, "add", "scratch", "disk", "source=tmpfs:", "path=/scratch", "size=1MiB")
    assert sh(box, "df -k /scratch | tail -1").split()[1] == "1024"
    assert sh(box, "touch /scratch/x && stat -c %u /scratch /scratch/x").split() == ["0", "0"]
    device(box, "remove", "scratch")


def test_a_custom_volume_in_two_instances(box: Machine) -> None:
    box.lxc("storage", "volume", "create", "default", "shared")
    box.lxc("launch", "tiny", "devices2")
    for name in (NAME, "devices2"):
        box.lxc("storage", "volume", "attach", "default", "shared", name, "/shared")
    sh(box, "echo hello >/shared/note")
    assert box.lxc("exec", "devices2", "--", "cat", "/shared/note").stdout == "hello\n"
    box.lxc("storage", "volume", "detach", "default", "shared", NAME)
    assert sh(box, "ls /shared") == ""
    assert box.lxc("exec", "devices2", "--", "cat", "/shared/note").stdout == "hello\n"
    box.lxc("delete", "-f", "devices2")
    box.lxc("storage", "volume", "delete", "default", "shared")


def test_a_block_device(box: Machine, tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    loop = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=False)
    if loop.returncode != 0:
        pytest.skip(f"no loop device: {loop.stderr.strip()}")
    try:
        path = loop.stdout.strip()
        device(box, "add", "disk", "disk", f"source={path}", "path=/mnt", "raw.mount.options=noatime", "shift=true")
        assert "lost+found" in sh(box, "ls /mnt")
        assert sh(box, "touch /mnt/x && stat -c %u /mnt/x").strip() == "0"
        assert "noatime" in sh(box, "grep ' /mnt ' /proc/mounts")
        device(box, "remove", "disk")
    finally:
        subprocess.run(["losetup", "--detach", loop.stdout.strip()], check=True)


def test_limits_of_a_disk(box: Machine, place: Path) -> None:
    device(box, "override", "root", "limits.read=10MB", "limits.write=200iops")
    pid = box.get(f"/1.0/instances/{NAME}/state")["pid"]
    group = _group(pid)
    if group is None:
        pytest.skip("the io controller is on v2")
    assert (group / "blkio.throttle.read_bps_device").read_text().split()[1] == "10000000"
    assert (group / "blkio.throttle.write_iops_device").read_text().split()[1] == "200"
    device(box, "set", "root", "limits.read", "20MB")
    assert (group / "blkio.throttle.read_bps_device").read_text().split()[1] == "20000000"
    device(box, "remove", "root")
    assert (group / "blkio.throttle.read_bps_device").read_text() == ""


def _group(pid: int) -> Path | None:
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "blkio":
            place = Path(f"/sys/fs/cgroup/blkio{path}")
            return place if (place / "blkio.throttle.read_bps_device").exists() else place.parent
    return None


def test_a_missing_source(box: Machine) -> None:
    said = device(box, "add", "gone", "disk", "source=/no/such", "path=/gone", check=False)
    assert 'Missing source path "/no/such"' in said
    device(box, "add", "gone", "disk", "source=/no/such", "path=/gone", "required=false")
    device(box, "remove", "gone")


# --- nic ---


def test_a_nic(box: Machine) -> None:
    before = links(box)
    device(box, "add", "eth1", "nic", "network=flexbr0", "host_name=fxdhost1", "mtu=1400")
    assert "fxdhost1" in links(box)
    shown = sh(box, "ip -o link show eth1")
    assert "mtu 1400" in shown
    assert ",UP" not in shown  # as LXD: it is the guest that brings it up
    sh(box, "ip link set eth1 up && ip address add 198.18.77.200/24 dev eth1 && ping -c 1 -W 5 -I eth1 198.18.77.1")
    device(box, "remove", "eth1")
    assert "eth1" not in sh(box, "ls /sys/class/net")
    assert links(box) == before


def test_a_nic_whose_name_is_taken(box: Machine) -> None:
    before = links(box)
    said = device(box, "add", "again", "nic", "network=flexbr0", "name=eth0", check=False)
    assert "eth0" in said
    assert links(box) == before
    assert "again" not in box.lxc("config", "device", "list", NAME).stdout


def test_a_renamed_nic_is_found(box: Machine) -> None:
    before = links(box)
    device(box, "add", "eth1", "nic", "network=flexbr0")
    sh(box, "ip link set eth1 name other")
    device(box, "remove", "eth1")
    assert "other" not in sh(box, "ls /sys/class/net")
    assert links(box) == before


# --- the daemon's and the container's ends ---


def test_a_stop_takes_down_what_was_plugged_in(box: Machine, place: Path) -> None:
    device(box, "add", "data", "disk", f"source={place}", "path=/srv/data")
    device(box, "add", "eth1", "nic", "network=flexbr0", "host_name=fxdhost2")
    box.kill()
    box.start()
    assert sh(box, "cat /srv/data/file") == "from the host\n"
    box.lxc("stop", "-f", NAME)
    assert "fxdhost2" not in links(box)
    assert mounts_of_daemon(box) == []
    box.lxc("start", NAME)
    assert sh(box, "cat /srv/data/file; ls /sys/class/net").split()[-3:] == ["eth0", "eth1", "lo"]
    device(box, "remove", "data")
    device(box, "remove", "eth1")


def test_a_profile_is_applied_live(box: Machine, place: Path) -> None:
    box.lxc("profile", "device", "add", "default", "data", "disk", f"source={place}", "path=/srv/profile")
    assert sh(box, "cat /srv/profile/file") == "from the host\n"
    box.lxc("profile", "device", "remove", "default", "data")
    assert sh(box, "ls /srv/profile") == ""
    assert os.listdir(place) == ["file"]
