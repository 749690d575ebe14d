# SPDX-License-Identifier: Apache-2.0
"""What is measured: flexd, Debian's LXD on two kinds of pool, and liblxc's own programs by hand as the floor."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexd.api.idmap import IdMap
from flexd.host.linux import LinuxHost
from flexd.runtime.paths import group_prefix
from tests.bench.images import Image
from tests.bench.place import Place, remove_cgroups
from tests.bench.rest import Api

PREFIX = "fxb"
_UP_TIMEOUT_S = 60.0
# Pools of LXD are files with a file system of their own: ext4 in which large trees were deleted lately is slow.
_POOL_SIZE = "16G"
_ID_BASE, _ID_COUNT = 1000000, 1000000000


class Server:
    """A daemon in a place of its own, driven over its socket."""

    def __init__(self, name: str, place: Place, pid: int, client_environment: dict[str, str]) -> None:
        self.name = name
        self.place = place
        self.pid = pid
        self.client_environment = client_environment
        self.images: dict[str, str] = {}
        self._local = threading.local()

    @property
    def api(self) -> Api:
        """A connection for each thread."""
        if not hasattr(self._local, "api"):
            self._local.api = Api(self.place.directory / "unix.socket")
        api: Api = self._local.api
        return api

    def add_pool(self, name: str, driver: str, source: str = "", size: str = "") -> None:
        config = {key: value for key, value in (("source", source), ("size", size)) if value}
        self.api.call("POST", "/1.0/storage-pools", {"name": name, "driver": driver, "config": config})

    def add_network(self, subnet: str) -> None:
        config = {"ipv4.address": subnet, "ipv4.nat": "false", "ipv6.address": "none"}
        self.api.call("POST", "/1.0/networks", {"name": f"{PREFIX}br0", "type": "bridge", "config": config})

    def add_image(self, image: Image) -> None:
        self.images[image.alias] = image.upload(self.api)

    def clear(self) -> None:
        """Delete every instance, those of a measurement that failed too."""
        for instance in self.api.get("/1.0/instances?recursion=1"):
            url = f"/1.0/instances/{instance['name']}"
            if instance["status"] != "Stopped":
                self.api.call("PUT", f"{url}/state", {"action": "stop", "force": True})
            self.api.call("DELETE", url)


@dataclass
class RestPeer:
    """A column of the table: a server and one of its pools."""

    title: str
    server: Server
    pool: str

    @property
    def api(self) -> Api:
        return self.server.api

    def create(self, name: str, image: str = "debian", *, nic: bool = True) -> None:
        devices = {"root": {"type": "disk", "path": "/", "pool": self.pool}}
        if nic:
            devices["eth0"] = {"type": "nic", "name": "eth0", "network": f"{PREFIX}br0"}
        source = {"type": "image", "fingerprint": self.server.images[image]}
        body = {"name": name, "source": source, "devices": devices, "profiles": []}
        self.api.call("POST", "/1.0/instances", body)

    def create_empty(self, name: str) -> None:
        """Without an image: as cheap as an instance that only is there can be."""
        devices = {"root": {"type": "disk", "path": "/", "pool": self.pool}}
        devices["eth0"] = {"type": "nic", "name": "eth0", "network": f"{PREFIX}br0"}
        body = {"name": name, "source": {"type": "none"}, "devices": devices, "profiles": []}
        self.api.call("POST", "/1.0/instances", body)

    def start(self, name: str) -> None:
        self._change(name, {"action": "start"})

    def stop(self, name: str, *, force: bool) -> None:
        self._change(name, {"action": "stop", "force": force, "timeout": -1 if force else 60})

    def _change(self, name: str, body: dict[str, Any]) -> None:
        self.api.call("PUT", f"/1.0/instances/{name}/state", body)

    def delete(self, name: str) -> None:
        self.api.call("DELETE", f"/1.0/instances/{name}")

    def remove(self, name: str) -> None:
        """Whatever state it is in."""
        if self.api.get(f"/1.0/instances/{name}")["status"] != "Stopped":
            self.stop(name, force=True)
        self.delete(name)

    def pid(self, name: str) -> int:
        return int(self.api.get(f"/1.0/instances/{name}/state")["pid"])


def start_flexd(place: Place) -> Server:
    environment = _environment(place, FLEXD_DIR=str(place.directory), LXD_DIR=str(place.directory))
    process = place.spawn(sys.executable, "-m", "flexd.daemon", env=environment)
    return _wait_up("flexd", place, process, environment)


def start_lxd(place: Place) -> Server:
    environment = _environment(place, LXD_DIR=str(place.directory))
    process = place.spawn("lxd", "--group", "root", env=environment)
    return _wait_up("lxd", place, process, environment)


def _environment(place: Place, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LXD_", "FLEXD_", "INCUS_"))}
    return kept | {"HOME": str(place.directory)} | more


def _wait_up(name: str, place: Place, process: "subprocess.Popen[bytes]", environment: dict[str, str]) -> Server:
    # nsenter(1) replaces itself by the daemon, so this is its pid.
    server = Server(name, place, process.pid, environment)
    if not server.api.answers(_UP_TIMEOUT_S):
        raise RuntimeError(f"{name} did not come up:\n{place.log_tail()}")
    return server


def add_ext4(place: Place, name: str = "ext4") -> str:
    """A fresh ext4 in a file, mounted inside the place; the loop device goes with the mount."""
    # Not below LXD's own directory: it refuses that.
    file, target = place.directory.parent / f"{name}.img", place.directory.parent / name
    target.mkdir()
    subprocess.run(["truncate", "-s", _POOL_SIZE, str(file)], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(file)], check=True)
    place.run("mount", "-o", "loop", str(file), str(target))
    place.run("mkdir", str(target / "pool"))
    return str(target / "pool")


class ByHand:
    """`lxc-start` on an overlay whose lower layer is idmapped; no daemon, no network."""

    title = "by hand"

    def __init__(self, directory: Path, image: Path) -> None:
        self._directory = directory
        self._image = image
        self._loop = asyncio.new_event_loop()
        self._host = LinuxHost()
        directory.mkdir(mode=0o711)

    def create(self, name: str) -> None:
        top = self._directory / name
        upper, work, rootfs = top / "upper", top / "work", top / "rootfs"
        for path in (top, upper, work, rootfs):
            path.mkdir(mode=0o755)
        os.chown(upper, _ID_BASE, _ID_BASE)
        idmap = IdMap.single(_ID_BASE, _ID_COUNT)
        mounting = self._host.mounts.overlay(rootfs, lower=self._image, upper=upper, work=work, lower_idmap=idmap)
        self._loop.run_until_complete(mounting)
        (top / "config").write_text(self._config(name, rootfs))

    def _config(self, name: str, rootfs: Path) -> str:
        return (
            f"lxc.uts.name = {name}\nlxc.rootfs.path = dir:{rootfs}\n"
            f"lxc.idmap = u 0 {_ID_BASE} {_ID_COUNT}\nlxc.idmap = g 0 {_ID_BASE} {_ID_COUNT}\n"
            f"lxc.cgroup.dir.monitor = {PREFIX}.monitor.{name}\nlxc.cgroup.dir.container = {PREFIX}.payload.{name}\n"
            f"lxc.cgroup.dir.monitor.pivot = {PREFIX}.pivot\n"
            "lxc.mount.auto = proc:rw sys:rw\nlxc.autodev = 1\nlxc.tty.max = 0\nlxc.pty.max = 1024\n"
            "lxc.apparmor.profile = unconfined\nlxc.net.0.type = empty\n"
        )

    def _lxc(self, program: str, name: str, *arguments: str, plain: bool = False) -> str:
        # Without newuidmap(1) in sight liblxc writes the maps itself, as flexd has it do.
        environment = None if plain else {"PATH": "/nonexistent"}
        argv = [f"/usr/bin/{program}", "-P", str(self._directory), "-n", name, *arguments]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    def start(self, name: str) -> None:
        self._lxc("lxc-start", name, "-d")

    def execute(self, name: str) -> None:
        self._lxc("lxc-attach", name, "--", "true", plain=True)

    def stop(self, name: str, *, force: bool) -> None:
        self._lxc("lxc-stop", name, *(["-k"] if force else ["-t", "60"]))

    def delete(self, name: str) -> None:
        top = self._directory / name
        self._loop.run_until_complete(self._host.mounts.unmount(top / "rootfs"))
        shutil.rmtree(top)

    def pid(self, name: str) -> int:
        return int(self._lxc("lxc-info", name, "-p", "-H"))

    def close(self) -> None:
        for name in os.listdir(self._directory):
            with contextlib.suppress(subprocess.CalledProcessError):
                self.stop(name, force=True)
            self.delete(name)
        self._loop.run_until_complete(self._host.close())
        self._loop.close()
        shutil.rmtree(self._directory, ignore_errors=True)
        remove_cgroups((f"{PREFIX}.",))


def remove_flexd_cgroups(directory: Path) -> None:
    """What stays if its containers had to be killed."""
    remove_cgroups((group_prefix(directory / "containers"),))


def remove_lxd_cgroups() -> None:
    remove_cgroups((f"lxc.payload.{PREFIX}-", f"lxc.monitor.{PREFIX}-"))
