# SPDX-License-Identifier: Apache-2.0
"""Containers inside a container: podman with its overlay driver, flexd inside flexd, and file systems by FUSE."""

import fcntl
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import flexd
from tests.system.images import cache_directory, tiny_image
from tests.system.machine import Machine, machine, wait_until

_PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "podman", "crun", "lxc", "dnsmasq-base", "nftables", "iproute2", "python3"),
    *("uidmap", "squashfs-tools", "rsync", "busybox-static", "fuse2fs", "fuse3", "e2fsprogs", "procps"),
)
_METADATA = "architecture: x86_64\ncreation_date: 1700000000\nproperties:\n  os: Debian\n  release: bookworm\n"
# Hosts with cgroup v1 mounts of their own making have hierarchies that systemd looks for elsewhere; whoever runs
# containers in a container there has to put them where liblxc and crun look.
_CGROUPS = """
[ -e /sys/fs/cgroup/cgroup.controllers ] && exit 0
mount -o remount,rw /sys/fs/cgroup
for c in $(sed -n 's/^[1-9][0-9]*:\\([a-z]*\\):.*/\\1/p' /proc/self/cgroup); do
  grep -q " /sys/fs/cgroup/$c cgroup " /proc/mounts && continue
  if [ -h /sys/fs/cgroup/$c ]; then rm /sys/fs/cgroup/$c; fi
  mkdir -p /sys/fs/cgroup/$c && mount -t cgroup -o $c cgroup /sys/fs/cgroup/$c
done
"""
_TREE = """
mkdir -p /srv/tree/bin /srv/tree/proc /srv/tree/sys /srv/tree/dev /srv/tree/etc /srv/tree/tmp
cp /bin/busybox /srv/tree/bin/
for i in sh cat id; do ln -sf busybox /srv/tree/bin/$i; done
"""


def nest_image() -> Path:
    """A Debian with what the tests run inside; made once, from the mirror. Skips where it cannot be made."""
    if shutil.which("mmdebstrap") is None:
        pytest.skip("no mmdebstrap")
    digest = hashlib.sha256(" ".join(_PACKAGES).encode()).hexdigest()[:12]
    path = cache_directory() / f"nest-{digest}.tar"
    with (cache_directory() / "nest.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            rootfs = cache_directory() / f"nest-{digest}.rootfs"
            argv = ["mmdebstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", "bookworm", str(rootfs)]
            done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=900)
            if done.returncode != 0:
                pytest.skip(f"the image cannot be made: {done.stderr[-300:]}")
            (rootfs / "etc/resolv.conf").unlink(missing_ok=True)
            (cache_directory() / "metadata.yaml").write_text(_METADATA)
            fresh = path.with_suffix(".new")
            with tarfile.open(fresh, "w") as archive:
                archive.add(cache_directory() / "metadata.yaml", "metadata.yaml")
                archive.add(rootfs, "rootfs")
            shutil.rmtree(rootfs)
            fresh.rename(path)
    return path


@pytest.fixture(scope="module")
def outer(state_root: Path) -> Iterator[Machine]:
    image = nest_image()
    with machine(state_root / "outer") as made:
        made.import_image(image, "nest")
        made.lxc("launch", "nest", "nest", "-c", "security.nesting=true")
        try:
            for name, path in (("podman", "/var/lib/containers"), ("flexd", "/var/lib/flexd")):
                made.lxc("storage", "volume", "create", "default", name)
                device = ("disk", "pool=default", f"source={name}", f"path={path}")
                made.lxc("config", "device", "add", "nest", name, *device)
            wait_until(lambda: run(made, "systemctl is-active basic.target")[0] == 0, 90)
            assert run(made, _CGROUPS)[0] == 0
            yield made
        finally:
            made.lxc("delete", "-f", "nest")
            for name in ("podman", "flexd"):
                made.lxc("storage", "volume", "delete", "default", name, check=False)


def run(outer: Machine, script: str, name: str = "nest") -> tuple[int, str]:
    done = outer.lxc("exec", name, "--", "sh", "-c", script, check=False)
    return done.returncode, done.stdout + done.stderr


def test_podman_on_overlay(outer: Machine):
    """Its images lie on a custom volume: the kernel has no overlay on an overlay, which a pool of that driver is."""
    status, text = run(outer, "podman info --format '{{.Store.GraphDriverName}}'")
    assert (status, text.split()[-1]) == (0, "overlay")
    run(outer, _TREE)
    assert run(outer, "tar -C /srv/tree -c . | podman import - tiny >/dev/null 2>&1")[0] == 0
    status, text = run(outer, "podman run --rm --network none tiny /bin/sh -c 'id -u; cat /proc/mounts' 2>/dev/null")
    assert status == 0
    assert text.startswith("0\noverlay / overlay ")
    assert run(outer, "podman run --rm --network none --rootfs /srv/tree /bin/cat /proc/1/comm 2>/dev/null") == (
        0,
        "cat\n",
    )


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11) or sys.base_prefix != "/usr", reason="needs the Python of Debian 12 in here, too"
)
def test_flexd_inside_flexd(outer: Machine):
    source = Path(flexd.__path__[0]).parent
    for name, path in (("source", source), ("venv", Path(sys.prefix))):
        outer.lxc("config", "device", "add", "nest", name, "disk", f"source={path}", f"path={path}", "readonly=true")
    outer.lxc("file", "push", str(tiny_image()), "nest/root/tiny.tar.gz")
    python = f"PYTHONPATH={source} FLEXD_DIR=/var/lib/flexd {sys.prefix}/bin/python"
    run(outer, f"cd /root; {python} -m flexd.daemon >/root/flexd.log 2>&1 </dev/null &")
    try:
        wait_until(lambda: run(outer, "test -S /var/lib/flexd/unix.socket")[0] == 0)
        command = f"cd /root; {python} -m flexd.cli.main"
        for words in ("admin init --auto", "image import tiny.tar.gz --alias tiny", "launch tiny inner"):
            status, text = run(outer, f"{command} {words}")
            assert status == 0, text
        status, text = run(outer, f"{command} exec inner -- cat /proc/self/uid_map")
        assert status == 0
        inside, outside, _ = (int(word) for word in text.split())
        assert inside == 0
        assert outside > 0
        assert run(outer, f"{command} exec inner -- ls -ln /bin/busybox")[1].split()[2:4] == ["0", "0"]
        # Inside is a guest of the inner daemon, not of the outer one.
        assert run(outer, f"{command} exec inner -- test -S /dev/lxd/sock")[0] == 0
        for words in (
            "snapshot inner s0",
            "restart -f inner",
            "copy inner/s0 other",
            "start other",
            "delete -f inner other",
        ):
            status, text = run(outer, f"{command} {words}")
            assert status == 0, text
        status, text = run(outer, f"{command} launch tiny no -c security.syscalls.intercept.mknod=true")
        assert status != 0
        assert "flexd itself runs in a container" in text
    finally:
        run(
            outer,
            "pkill -f flexd.daemon; for i in $(seq 50); do pgrep -f flexd.daemon >/dev/null || break; sleep 0.1; done",
        )
        for name in ("source", "venv"):
            outer.lxc("config", "device", "remove", "nest", name)


def test_a_mount_by_fuse(outer: Machine, tmp_path: Path):
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("content\n")
    os.chown(tree / "file", 0, 0)
    subprocess.run(["mkfs.ext4", "-q", "-d", tree, image], check=True)
    done = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no loop device: {done.stderr}")
    device = done.stdout.strip()
    assert stat.S_ISBLK(os.stat(device).st_mode)
    try:
        keys = ("security.syscalls.intercept.mount=true", "security.syscalls.intercept.mount.fuse=ext4=fuse2fs")
        outer.lxc("init", "nest", "fuse", *(word for key in keys for word in ("-c", key)))
        outer.lxc("config", "device", "add", "fuse", "disk", "unix-block", f"source={device}", "path=/dev/disk")
        outer.lxc("start", "fuse")
        status, text = run(outer, "mount -t ext4 -o ro /dev/disk /mnt && cat /mnt/file", "fuse")
        assert (status, text) == (0, "content\n"), text
        assert " /mnt fuse." in run(outer, "cat /proc/mounts", "fuse")[1]
        # The program lives in the container: among its processes, with its ids.
        status, text = run(outer, "ps -o uid= -C fuse2fs", "fuse")
        assert (status, text.strip()) == (0, "0")
        assert run(outer, "touch /mnt/new", "fuse")[0] != 0
        assert run(outer, "mount -t ext4 /dev/nothing /media", "fuse")[0] != 0
    finally:
        outer.lxc("delete", "-f", "fuse")
        subprocess.run(["losetup", "-d", device], check=True)
