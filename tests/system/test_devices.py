# SPDX-License-Identifier: Apache-2.0
"""Devices of a running container, added, changed and removed with Debian's `lxc`."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.machine import Machine, wait_until

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


# --- limits and filters of NICs ---


def _tables(machine: Machine) -> str:
    done = subprocess.run([*machine.enter(), "nft", "list", "ruleset"], capture_output=True, text=True, check=True)
    return done.stdout


def _ping(machine: Machine, source: str) -> bool:
    done = machine.lxc("exec", NAME, "--", "ping", "-c1", "-W1", "-I", source, "198.18.77.1", check=False)
    return done.returncode == 0


def test_a_filtered_nic_can_be_nobody_else(box: Machine) -> None:
    device(box, "add", "eth1", "nic", "network=flexbr0", "ipv4.address=198.18.77.9", "host_name=fxdhost3")
    # Without this the answer would go out by eth0, which has an address in the same network.
    sh(box, "ip link set eth0 down; ip link set eth1 up; ip address add 198.18.77.9/24 dev eth1")
    sh(box, "ip address add 198.18.77.10/24 dev eth1")
    assert _ping(box, "198.18.77.9")
    assert _ping(box, "198.18.77.10")
    device(box, "set", "eth1", "security.ipv4_filtering", "true")
    assert _ping(box, "198.18.77.9")
    assert not _ping(box, "198.18.77.10")
    mac = sh(box, "cat /sys/class/net/eth1/address").strip()
    sh(box, "ip link set eth1 address 00:16:3e:66:66:66; ip address add 198.18.77.9/24 dev eth1", check=False)
    assert not _ping(box, "198.18.77.9")
    sh(box, f"ip link set eth1 address {mac}")
    device(box, "set", "eth1", "limits.egress", "8Mbit")
    assert "limit rate over 1000000 bytes/second" in _tables(box)
    device(box, "set", "eth1", "limits.ingress", "8Mbit")
    qdisc = subprocess.run(
        [*box.enter(), "tc", "qdisc", "show", "dev", "fxdhost3"], capture_output=True, text=True, check=True
    )
    assert "tbf" in qdisc.stdout
    assert "rate 8Mbit" in qdisc.stdout
    device(box, "remove", "eth1")
    assert "fxdhost3" not in _tables(box)
    assert "table bridge" not in _tables(box)
    sh(box, "ip link set eth0 up")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nictype=ipvlan", "parent=flexbr0"), "CONFIG_IPVLAN"),
        (("network=flexbr0", "vlan=5"), "CONFIG_BRIDGE_VLAN_FILTERING"),
        (("nictype=sriov", "parent=flexbr0"), "no SR-IOV virtual functions"),
    ],
)
def test_what_this_kernel_lacks_is_said(box: Machine, words: tuple[str, ...], message: str) -> None:
    done = device(box, "add", "x", "nic", *words, check=False)
    if not done:
        device(box, "remove", "x")
        pytest.skip("this kernel has it")
    assert message in done


def test_other_nics(box: Machine) -> None:
    before = links(box)
    device(box, "add", "eth2", "nic", "nictype=p2p", "host_name=fxdp2p", "ipv4.routes=198.18.41.0/24")
    routes = subprocess.run([*box.enter(), "ip", "route"], capture_output=True, text=True, check=True).stdout
    assert "198.18.41.0/24 dev fxdp2p" in routes
    device(box, "add", "eth3", "nic", "nictype=macvlan", "parent=flexbr0")
    assert "macvlan" in sh(box, "ip -d link show eth3", check=False) or "eth3" in sh(box, "ls /sys/class/net")
    device(box, "add", "eth4", "nic", "nictype=routed", "ipv4.address=198.18.42.5", "host_name=fxdroute")
    assert "198.18.42.5/32" in sh(box, "ip address show eth4")
    ping = ["busybox", "ping", "-c1", "-W5", "198.18.42.5"]
    assert subprocess.run([*box.enter(), *ping], capture_output=True, check=False).returncode == 0
    box.lxc("restart", "-f", NAME)
    assert "198.18.42.5/32" in sh(box, "ip address show eth4")
    for name in ("eth2", "eth3", "eth4"):
        device(box, "remove", name)
    assert links(box) == before


def test_a_physical_nic_comes_home(box: Machine) -> None:
    subprocess.run(
        [*box.enter(), "ip", "link", "add", "fxdphys", "mtu", "1450", "type", "veth", "peer", "fxdpeer"], check=True
    )
    words = ("nictype=physical", "parent=fxdphys", "name=eth6", "mtu=1400")
    for how in (lambda: device(box, "remove", "phys"), lambda: box.lxc("stop", "-f", NAME)):
        device(box, "add", "phys", "nic", *words)
        assert "mtu 1400" in sh(box, "ip link show eth6")
        assert "fxdphys" not in links(box)
        how()
        shown = subprocess.run(
            [*box.enter(), "ip", "link", "show", "fxdphys"], capture_output=True, text=True, check=True
        )
        assert "mtu 1450" in shown.stdout
    box.lxc("start", NAME)
    assert "mtu 1400" in sh(box, "ip link show eth6")
    sh(box, "poweroff", check=False)
    wait_until(lambda: "fxdphys" in links(box))
    device(box, "remove", "phys")
    box.lxc("start", NAME)
    subprocess.run([*box.enter(), "ip", "link", "del", "fxdphys"], check=True)


# --- proxies and nodes ---


def test_a_proxy(box: Machine, tmp_path: Path) -> None:
    sh(box, "mkdir -p /www; echo from inside >/www/x")
    box.lxc("exec", NAME, "--", "httpd", "-p", "127.0.0.1:80", "-h", "/www")
    device(box, "add", "web", "proxy", "listen=tcp:127.0.0.1:18080", "connect=tcp:127.0.0.1:80")

    def fetch() -> str:
        script = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:18080/x').read().decode())"
        done = subprocess.run([*box.enter(), sys.executable, "-c", script], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    assert fetch() == "from inside"
    box.kill()
    assert fetch() == "from inside"
    box.start()
    assert fetch() == "from inside"
    _kill_proxy(box)
    wait_until(lambda: fetch() == "from inside")
    device(box, "set", "web", "listen", "tcp:127.0.0.1:18081")
    assert fetch() == ""
    device(box, "set", "web", "listen", "tcp:127.0.0.1:18080")
    assert fetch() == "from inside"
    said = device(box, "add", "again", "proxy", "listen=tcp:127.0.0.1:18080", "connect=tcp:127.0.0.1:80", check=False)
    assert "Address already in use" in said
    device(box, "remove", "web")
    assert fetch() == ""


def _network_of(box: Machine, name: str) -> list[str]:
    """What to put before a command of the host that is to run in a container's network namespace."""
    pid = box.get(f"/1.0/instances/{name}/state")["pid"]
    return ["nsenter", f"--net=/proc/{pid}/ns/net", "--"]


def _fetch_by_nat(enter: list[str]) -> str:
    script = "import urllib.request as u; print(u.urlopen('http://198.18.77.1:18082/x', timeout=10).read().decode())"
    done = subprocess.run([*enter, sys.executable, "-c", script], capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr


def _kill_proxy(box: Machine) -> None:
    """As the kernel does that is out of memory."""
    (record,) = (box.directory / "devices").glob(f"{NAME}/proxy.*")
    os.kill(json.loads(record.read_text())["pid"], signal.SIGKILL)


def test_a_proxy_by_nat(box: Machine) -> None:
    sh(box, "killall httpd; mkdir -p /www; echo by nat >/www/x", check=False)
    device(box, "override", "eth0", "ipv4.address=198.18.77.50")
    device(box, "add", "web", "proxy", "nat=true", "listen=tcp:198.18.77.1:18082", "connect=tcp:0.0.0.0:8080")
    sh(box, "ip link set eth0 up; ip address flush dev eth0; ip address add 198.18.77.50/24 dev eth0")
    box.lxc("exec", NAME, "--", "httpd", "-p", "8080", "-h", "/www")
    assert _fetch_by_nat(box.enter()) == "by nat"
    # From the instance itself, and from a neighbour on its bridge, which would get the answer of a stranger.
    assert _fetch_by_nat(_network_of(box, NAME)) == "by nat"
    box.lxc("launch", "tiny", "neighbour")
    try:
        neighbour = _network_of(box, "neighbour")
        address = [*neighbour, "ip", "-4", "-o", "address", "show", "dev", "eth0"]
        wait_until(lambda: "198.18.77." in subprocess.run(address, capture_output=True, text=True, check=True).stdout)
        assert _fetch_by_nat(neighbour) == "by nat"
    finally:
        box.lxc("delete", "-f", "neighbour")
    device(box, "remove", "web")
    device(box, "remove", "eth0")
    assert "dnat" not in _tables(box)


def test_a_source_that_comes_later(box: Machine, place: Path) -> None:
    source = place / "later/data"
    device(box, "add", "late", "disk", f"source={source}", "path=/late", "required=false")
    assert "No such file" in sh(box, "ls /late 2>&1", check=False)
    source.mkdir(parents=True)
    (source / "x").write_text("here")
    wait_until(lambda: sh(box, "cat /late/x", check=False).strip() == "here")
    box.restart()
    assert sh(box, "cat /late/x").strip() == "here"
    device(box, "remove", "late")
    assert "No such file" in sh(box, "ls /late/x 2>&1", check=False)


def test_nodes(box: Machine) -> None:
    device(box, "add", "null", "unix-char", "source=/dev/null", "path=/dev/other", "mode=0600", "uid=7")
    assert sh(box, "stat -c '%F %a %u' /dev/other; echo x >/dev/other").strip() == "character special file 600 7"
    device(box, "remove", "null")
    assert sh(box, "ls /dev/other 2>&1", check=False).count("No such file") == 1
    said = device(box, "add", "gpu", "gpu", check=False)
    if said:
        assert "GPU" in said
    else:
        device(box, "remove", "gpu")


def test_a_node_that_comes_later(box: Machine, tmp_path: Path) -> None:
    node = tmp_path / "late"
    device(box, "add", "late", "unix-char", f"source={node}", "path=/dev/late", "required=false")
    assert sh(box, "ls /dev/late 2>&1", check=False).count("No such file") == 1
    os.mknod(node, 0o666 | 0o020000, os.makedev(1, 5))
    wait_until(lambda: "character" in sh(box, "stat -c %F /dev/late", check=False))
    assert sh(box, "head -c 3 /dev/late | wc -c").strip() == "3"
    node.unlink()
    wait_until(lambda: "character" not in sh(box, "stat -c %F /dev/late", check=False))
    device(box, "remove", "late")


def test_nodes_of_a_privileged_container(box: Machine) -> None:
    box.lxc("launch", "tiny", "devicespriv", "-c", "security.privileged=true")
    try:
        box.lxc("config", "device", "add", "devicespriv", "log", "unix-char", "path=/dev/kmsg")
        assert box.lxc("exec", "devicespriv", "--", "sh", "-c", ": >/dev/kmsg && echo yes").stdout == "yes\n"
        box.lxc("restart", "-f", "devicespriv")
        assert box.lxc("exec", "devicespriv", "--", "sh", "-c", ": >/dev/kmsg && echo yes").stdout == "yes\n"
        box.lxc("config", "device", "remove", "devicespriv", "log")
        script = "mknod /run/k c 1 11; : >/run/k"
        assert box.lxc("exec", "devicespriv", "--", "sh", "-c", script, check=False).returncode != 0
    finally:
        box.lxc("delete", "-f", "devicespriv")
