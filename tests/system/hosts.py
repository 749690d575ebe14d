# SPDX-License-Identifier: Apache-2.0
"""Several hosts on one machine: daemons in network and mount namespaces of their own, on one switch, that a person with
`flexc` and `lxc` knows as remotes. Plain classes, for tests, benchmarks and demonstrations alike.

`with hosts(directory) as (a, b)`, or `Hosts(directory)`, `add`, `close`. The person is `hosts.person`, at the switch.
"""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from tests.bench.place import remove_cgroups
from tests.system.machine import ApiError, Machine, wait_until

Daemon = Literal["flexd", "lxd"]
PREFIX_LENGTH = 22
_NETWORK = "198.18.44"
_PORT = 8443
_LISTEN = "0A"  # as /proc/net/tcp has it
_PERSON = f"{_NETWORK}.250"
# The bridge of every host: its link to the switch, and its instances' interfaces, are on one segment.
LAN = "lan0"
_DHCP_RANGE = "198.18.45.10,198.18.45.250"
# A mount namespace in which /sys shows the new network namespace, but still holds the machine's cgroups.
_ISOLATE = """set -e
ip link set lo up
mkdir -p "$0/cgroup"
mount --rbind /sys/fs/cgroup "$0/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$0/cgroup" /sys/fs/cgroup
umount -l "$0/cgroup"
rmdir "$0/cgroup"
: >"$0/ready"
exec sleep infinity
"""


class Host(Machine):
    """A machine whose mounts are its own, too; `name` is also how the person calls it."""

    def __init__(self, directory: Path, name: str, address: str, daemon: Daemon = "flexd") -> None:
        self.name = name
        self.address = address
        self.daemon = daemon
        directory.mkdir(mode=0o711)
        super().__init__(directory)

    def _open_namespaces(self) -> "subprocess.Popen[bytes]":
        argv = ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", _ISOLATE, str(self.directory)]
        self._anchor = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
        ready = self.directory / "ready"
        deadline = time.monotonic() + 10
        while not ready.exists():
            if self._anchor.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"no namespaces for {self.name}")
            time.sleep(0.005)
        ready.unlink()
        return self._anchor

    @property
    def anchor(self) -> int:
        """A process in the host's namespaces, for as long as the host exists."""
        return self._anchor.pid

    def enter(self) -> list[str]:
        where = f"/proc/{self._anchor.pid}/ns"
        return ["nsenter", f"--mount={where}/mnt", f"--net={where}/net", "--"]

    def _daemon(self) -> list[str]:
        return super()._daemon() if self.daemon == "flexd" else ["lxd", "--group", "root"]

    def inside(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command in the host's namespaces."""
        return self.run(*self.enter(), *argv, check=check)

    def serve(self) -> None:
        """Be reachable from the switch."""
        self.call("PATCH", "/1.0", {"config": {"core.https_address": f"{self.address}:{_PORT}"}})

    def restart(self, number: int = signal.SIGTERM) -> None:
        """The daemon answers on its socket a little before it is ready, which it is when it listens here, too."""
        super().restart(number)
        if self.get("/1.0")["config"].get("core.https_address"):
            wait_until(self._listens)

    def _listens(self) -> bool:
        sockets = [line.split() for line in Path(f"/proc/{self._anchor.pid}/net/tcp").read_text().splitlines()[1:]]
        return any(each[1].endswith(f":{_PORT:04X}") and each[3] == _LISTEN for each in sockets)

    def init(self, driver: str = "overlay") -> None:
        """A pool, and a profile whose instances sit on the segment."""
        config = {"size": "4GiB"} if driver == "btrfs" else {}
        self.call("POST", "/1.0/storage-pools", {"name": "default", "driver": driver, "config": config})
        devices = {
            "root": {"type": "disk", "path": "/", "pool": "default"},
            "eth0": {"type": "nic", "nictype": "bridged", "parent": LAN, "name": "eth0"},
        }
        self.call("PUT", "/1.0/profiles/default", {"devices": devices})

    def add_pool(self, name: str, driver: str) -> None:
        config = {"size": "4GiB"} if driver == "btrfs" else {}
        self.call("POST", "/1.0/storage-pools", {"name": name, "driver": driver, "config": config})

    def purge(self) -> None:
        """Volumes first: a pool that holds some is in use."""
        self.clear()
        for pool in self.get("/1.0/storage-pools") if self.daemon == "flexd" else ():
            for volume in self.get(f"{pool}/volumes/custom?recursion=1"):
                if "/" not in volume["name"]:
                    self.call("DELETE", f"{pool}/volumes/custom/{volume['name']}")
        super().purge()

    def instances(self) -> dict[str, str]:
        """Names and states."""
        return {each["name"]: each["status"] for each in self.get("/1.0/instances?recursion=1")}

    def leftovers(self) -> list[str]:
        """As of every machine, with the mounts of its own namespace."""
        place = os.fspath(self.directory)
        try:
            lines = Path(f"/proc/{self._anchor.pid}/mountinfo").read_text().splitlines()
        except OSError:
            lines = []
        mounts = [f"mount {line.split()[4]}" for line in lines if line.split()[4].startswith(place + "/")]
        return [left for left in super().leftovers() if place not in left.partition("unshare")[2]] + mounts

    def processes(self) -> list[int]:
        """Everything in the host's mount namespace, and what descends from that (its containers)."""
        return [pid for pid in _family(self._anchor.pid) if pid != self._anchor.pid]

    def _sweep(self) -> None:
        """What is left goes with the namespaces."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _close_namespaces(self) -> None:
        deadline = time.monotonic() + 20
        while (left := self.processes()) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        super()._close_namespaces()
        remove_cgroups((self.group(),))
        for _ in range(20):  # a mount namespace is taken down a little after its last process
            shutil.rmtree(self.directory, ignore_errors=True)
            if not self.directory.exists():
                break
            time.sleep(0.1)
        shutil.rmtree(self.home, ignore_errors=True)

    def stop(self) -> list[str]:
        if self.daemon == "flexd":
            return super().stop()
        try:
            if self._process is not None and self._process.poll() is None:
                with contextlib.suppress(ApiError, OSError):
                    self.clear()
        finally:
            self._sweep()
            self._close_namespaces()
        return []


class Person:
    """Somebody at the switch with a configuration of their own; the hosts are remotes by their names."""

    def __init__(self, home: Path, enter: list[str]) -> None:
        self.home = home
        self._enter = enter
        home.mkdir(parents=True)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("LXD_", "FLEX", "INCUS_"))}
        self.environment = kept | {"HOME": os.fspath(home), "FLEXD_DIR": "/nowhere", "LXD_DIR": "/nowhere"}

    def argv(self, *argv: str) -> list[str]:
        command = str(Path(sys.executable).parent / "flexc") if argv[0] == "flexc" else argv[0]
        return [*self._enter, command, *argv[1:]]

    def run(
        self, *argv: str, stdin: bytes = b"", check: bool = True, timeout_s: float = 180
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.argv(*argv), input=stdin, capture_output=True, env=self.environment, timeout=timeout_s, check=False
        )
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(argv)} failed ({done.returncode}):\n{out}{err}")
        return subprocess.CompletedProcess(argv, done.returncode, out, err)

    def spawn(self, *argv: str) -> "subprocess.Popen[bytes]":
        """Started and left to itself, its output gone."""
        quiet = subprocess.DEVNULL
        return subprocess.Popen(self.argv(*argv), env=self.environment, stdin=quiet, stdout=quiet, stderr=quiet)

    def flexc(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("flexc", *argv, check=check)

    def lxc(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("lxc", *argv, check=check)

    def meet(self, host: Host) -> None:
        """Make the host a remote, for both commands."""
        for command in ("flexc", "lxc"):
            if shutil.which(self.argv(command)[-1]) is None:
                continue
            body = {"type": "client", "name": command, "token": True}
            _, _, data = host.request("POST", "/1.0/certificates", body)
            operation = json.loads(data)["metadata"]
            made = operation["metadata"]
            token = {
                "client_name": command,
                "fingerprint": made["fingerprint"],
                "addresses": [f"{host.address}:{_PORT}"],
                "secret": made["secret"],
                "expires_at": made.get("expiresAt", "0001-01-01T00:00:00Z"),
            }
            self.run(command, "remote", "add", host.name, base64.b64encode(json.dumps(token).encode()).decode())


class Hosts:
    """The switch, its hosts and the person. `close` takes all of it down, whatever state it is in."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.all: list[Host] = []
        self._dhcp: subprocess.Popen[bytes] | None = None
        quiet = subprocess.DEVNULL
        self._anchor = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], stdin=quiet, start_new_session=True)
        own = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{self._anchor.pid}/ns/net") == own:
            time.sleep(0.005)
        self._enter = ["nsenter", f"--net=/proc/{self._anchor.pid}/ns/net", "--"]
        for line in ("link set lo up", f"link add {LAN} type bridge forward_delay 0", f"link set {LAN} up"):
            self._ip(self._enter, line)
        self._ip(self._enter, f"addr add {_PERSON}/{PREFIX_LENGTH} dev {LAN}")
        self.person = Person(directory / "person", self._enter)

    def _ip(self, enter: list[str], line: str) -> None:
        subprocess.run([*enter, "ip", *line.split()], check=True, stdin=subprocess.DEVNULL)

    def add(self, name: str, *, driver: str = "overlay", daemon: Daemon = "flexd") -> Host:
        """A started host with a pool of that driver, known to the person and to the other hosts' networks."""
        number = len(self.all) + 1
        host = Host(self.directory / name, name, f"{_NETWORK}.{number}", daemon)
        self.all.append(host)
        self._connect(host)
        host.start()
        host.init(driver)
        host.serve()
        self.person.meet(host)
        return host

    def _connect(self, host: Host) -> None:
        port = f"port-{host.name}"
        self._ip(self._enter, f"link add {port} type veth peer name wire netns {host.anchor}")
        self._ip(self._enter, f"link set {port} master {LAN} up")
        enter = host.enter()
        for line in (
            f"link add {LAN} type bridge forward_delay 0",
            f"link set wire master {LAN} up",
            f"link set {LAN} up",
            f"addr add {host.address}/{PREFIX_LENGTH} dev {LAN}",
        ):
            self._ip(enter, line)

    def cut(self, host: Host) -> None:
        """Pull the host's cable; `mend` puts it back."""
        self._ip(self._enter, f"link set port-{host.name} down")

    def mend(self, host: Host) -> None:
        self._ip(self._enter, f"link set port-{host.name} up")

    def serve_dhcp(self) -> None:
        """Give addresses of the segment to instances, whichever host they are on."""
        argv = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", f"--interface={LAN}"]
        argv += [
            "--bind-interfaces",
            f"--dhcp-range={_DHCP_RANGE},255.255.252.0",
            "--dhcp-authoritative",
            "--user=root",
        ]
        argv += [f"--dhcp-leasefile={self.directory / 'leases'}", "--pid-file=", "--log-facility=-"]
        with (self.directory / "dhcp.log").open("ab") as log:
            self._dhcp = subprocess.Popen([*self._enter, *argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def close(self) -> list[str]:
        """What daemons should have removed and had not."""
        left: list[str] = []
        for host in reversed(self.all):
            with contextlib.suppress(subprocess.CalledProcessError):
                self.mend(host)
            try:
                left += host.stop()
            except (AssertionError, ApiError, OSError, subprocess.SubprocessError) as error:
                left.append(f"{host.name}: {error}")
        for process in filter(None, (self._dhcp, self._anchor)):
            process.kill()
            process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)
        return left


@contextlib.contextmanager
def hosts(directory: Path, *, drivers: tuple[str, str] = ("overlay", "overlay")) -> Iterator[Hosts]:
    """Two flexd hosts, `a` and `b`; at the end nothing of them is left."""
    made = Hosts(directory)
    try:
        for name, driver in zip(("a", "b"), drivers, strict=True):
            made.add(name, driver=driver)
        yield made
    finally:
        left = made.close()
    assert left == [], left


def _family(anchor: int) -> list[int]:
    try:
        namespace = os.readlink(f"/proc/{anchor}/ns/mnt")
    except OSError:
        return []
    parents: dict[int, int] = {}
    inside: set[int] = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{name}/stat").read_text(errors="replace")
            parents[int(name)] = int(text.rpartition(")")[2].split()[1])
            if os.readlink(f"/proc/{name}/ns/mnt") == namespace:
                inside.add(int(name))
    while more := {pid for pid, parent in parents.items() if parent in inside} - inside:
        inside |= more
    return sorted(inside)
