# SPDX-License-Identifier: Apache-2.0
"""System calls that the daemon acts on: what is allowed works, everything else fails as it does without."""

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.system.machine import ApiError, Machine

# For calls that busybox has no command for: `calls setxattr PATH`, `calls sched PRIORITY`, `calls sysinfo`.
_CALLS = r"""
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>
static char verdict[65536];
static int load(int type, int map) { /* a program that denies every device; with `map` it names file descriptor 0 */
    struct bpf_insn code[4] = {{ .code = 0xb7 }, { .code = 0x95 }};
    if (map) {
        struct bpf_insn other[4] = {{ .code = 0x18, .dst_reg = 1, .src_reg = 1 }, {0},
            { .code = 0xb7 }, { .code = 0x95 }};
        memcpy(code, other, sizeof(code));
    }
    union bpf_attr attr = { .prog_type = type, .insn_cnt = map ? 4 : 2, .insns = (unsigned long)code,
        .license = (unsigned long)"Apache-2.0", .log_level = 1, .log_size = sizeof(verdict),
        .log_buf = (unsigned long)verdict };
    return syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof(attr));
}
static int use(int command, int program, int cgroup) {
    union bpf_attr attr = { .target_fd = cgroup, .attach_bpf_fd = program, .attach_type = BPF_CGROUP_DEVICE };
    return syscall(SYS_bpf, command, &attr, sizeof(attr));
}
static int opens_in(const char *group) { /* errno of opening /dev/null in a cgroup */
    pid_t child = fork();
    if (!child) {
        char path[256];
        snprintf(path, sizeof(path), "%s/cgroup.procs", group);
        int procs = open(path, O_WRONLY);
        if (write(procs, "0", 1) != 1) _exit(99);
        _exit(open("/dev/null", O_RDONLY) < 0 ? errno : 0);
    }
    int status;
    waitpid(child, &status, 0);
    return WEXITSTATUS(status);
}
static int devices(const char *group) {
    int cgroup = open(group, O_RDONLY), program = load(BPF_PROG_TYPE_CGROUP_DEVICE, 0);
    printf("load %s", program < 0 ? strerror(errno) : "done");
    if (program >= 0) {
        int flags = fcntl(program, F_GETFD);
        printf("%s", flags & FD_CLOEXEC ? "" : " without close-on-exec");
        printf(", attach %s", use(BPF_PROG_ATTACH, program, cgroup) ? strerror(errno) : "done");
        printf(", open %d", opens_in(group));
        printf(", detach %s", use(BPF_PROG_DETACH, program, cgroup) ? strerror(errno) : "done");
        printf(", open %d", opens_in(group));
    }
    printf("\n");
    return 0;
}
int main(int argc, char **argv) {
    int result = -1;
    if (!strcmp(argv[1], "setxattr")) result = setxattr(argv[2], argv[3], argv[4], 1, 0);
    if (!strcmp(argv[1], "sched")) {
        struct sched_param p = { .sched_priority = atoi(argv[2]) };
        result = sched_setscheduler(0, SCHED_RR, &p);
        if (!result) printf("%d\n", sched_getscheduler(0));
    }
    if (!strcmp(argv[1], "sysinfo")) {
        struct sysinfo i;
        result = sysinfo(&i);
        printf("%ld %lu %lu %d\n", i.uptime, i.totalram * i.mem_unit, i.freeram * i.mem_unit, i.procs);
    }
    if (!strcmp(argv[1], "devices")) return devices(argv[2]);
    if (!strcmp(argv[1], "load")) result = load(atoi(argv[2]), argc > 3) < 0;
    if (result) printf("error %d\n", errno);
    return result != 0;
}
"""


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for a program that makes these calls")
    place = tmp_path_factory.mktemp("calls")
    (place / "calls.c").write_text(_CALLS)
    subprocess.run([compiler, "-static", "-o", place / "calls", place / "calls.c"], check=True)
    return place / "calls"


def push(tiny: Machine, name: str, program: Path) -> None:
    tiny.lxc("file", "push", "--mode=755", str(program), f"{name}/calls")


def launch(tiny: Machine, name: str, config: dict[str, str], **fields: object) -> None:
    source = {"type": "image", "alias": "tiny"}
    tiny.call("POST", "/1.0/instances", {"name": name, "source": source, "config": config, **fields})
    tiny.call("PUT", f"/1.0/instances/{name}/state", {"action": "start"})


@pytest.fixture(scope="module", autouse=True)
def greeted(tiny: Machine) -> None:
    """What the client says to a new user is said before its words are compared."""
    tiny.lxc("list")


@pytest.fixture(scope="module")
def noder(tiny: Machine) -> Iterator[str]:
    launch(tiny, "noder", {"security.syscalls.intercept.mknod": "true", "security.nesting": "true"})
    yield "noder"
    tiny.lxc("delete", "-f", "noder")


def run(tiny: Machine, name: str, script: str, *options: str) -> tuple[int, str]:
    done = tiny.lxc("exec", name, *options, "--", "sh", "-c", script, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_harmless_node_is_made_and_works(tiny: Machine, noder: str):
    assert run(tiny, noder, "mknod -m 640 /tmp/null c 1 3 && echo x >/tmp/null && cat /tmp/null") == (0, "")
    pid = tiny.get(f"/1.0/instances/{noder}/state")["pid"]
    found = Path(f"/proc/{pid}/root/tmp/null").stat()
    assert stat.S_ISCHR(found.st_mode)
    assert found.st_mode & 0o777 == 0o640
    assert found.st_rdev == os.makedev(1, 3)
    assert found.st_uid == Path(f"/proc/{pid}/root/tmp").stat().st_uid


def test_relative_paths_and_chroots(tiny: Machine, noder: str):
    script = "mkdir -p /srv/jail/dev && cd /srv/jail/dev && mknod zero c 1 5 && test -c /srv/jail/dev/zero"
    assert run(tiny, noder, script) == (0, "")
    script = (
        "cp /bin/busybox /srv/jail/busybox; chroot /srv/jail /busybox mknod /dev/full c 1 7; test -c /srv/jail/dev/full"
    )
    status, text = run(tiny, noder, script)
    assert status == 0, text


@pytest.mark.parametrize(
    "what",
    ["m c 1 1", "kmsg c 1 11", "disk b 254 0", "loop b 7 0", "fuse c 10 229", "ram b 1 3"],
)
def test_other_nodes_are_not(tiny: Machine, noder: str, what: str):
    status, text = run(tiny, noder, f"mknod /tmp/{what}")
    assert status != 0
    assert "Operation not permitted" in text


def test_only_who_may_write_there(tiny: Machine, noder: str):
    assert run(tiny, noder, "mkdir -p /srv/roots && chmod 755 /srv/roots")[0] == 0
    # A user without CAP_MKNOD is told no by the kernel; nobody asks on his behalf.
    assert run(tiny, noder, "mknod /tmp/users c 1 3", "--user", "1000")[0] != 0
    # The root user of the container reaches no files of the host through it: /proc/1/root leads nowhere outside.
    assert run(tiny, noder, "mknod /proc/1/root/tmp/magic c 1 3")[0] != 0
    assert run(tiny, noder, "mknod /sys/kernel/x c 1 3")[0] != 0
    assert run(tiny, noder, "ln -s /nonexistent/there /tmp/link; mknod /tmp/link/x c 1 3")[0] != 0
    assert run(tiny, noder, "mknod /tmp/null c 1 3; mknod /tmp/null c 1 3")[0] != 0


def test_a_nested_user_namespace_gets_nothing(tiny: Machine, noder: str):
    status, _ = run(tiny, noder, "unshare -U -r mknod /tmp/nested c 1 3")
    assert status != 0
    assert run(tiny, noder, "test -e /tmp/nested")[0] != 0


def test_nodes_after_a_restart_of_the_daemon(tiny: Machine, noder: str):
    tiny.restart()
    assert run(tiny, noder, "mknod /tmp/again c 1 3 && test -c /tmp/again") == (0, "")


def test_no_listener_before_ours(tiny: Machine, noder: str):
    assert "Seccomp:\t2" in run(tiny, noder, "cat /proc/1/status")[1]


def test_without_it_no_node_is_made(tiny: Machine):
    launch(tiny, "plain", {})
    try:
        assert run(tiny, "plain", "mknod /tmp/null c 1 3")[0] != 0
    finally:
        tiny.lxc("delete", "-f", "plain")


def test_sysinfo_tells_the_containers_figures(tiny: Machine, calls: Path):
    launch(tiny, "small", {"security.syscalls.intercept.sysinfo": "true", "limits.memory": "64MiB"})
    try:
        push(tiny, "small", calls)
        status, text = run(tiny, "small", "/calls sysinfo")
        assert status == 0
        uptime, total, free, processes = (int(word) for word in text.split())
        assert uptime < 60
        assert total == 64 << 20
        assert free <= total
        assert processes < 50
    finally:
        tiny.lxc("delete", "-f", "small")


def test_real_time_priority(tiny: Machine, calls: Path):
    keys = {"security.syscalls.intercept.sched_setscheduler": "true"}
    if list(Path("/sys/fs/cgroup").glob("cpu*/cpu.rt_runtime_us")):
        with pytest.raises(ApiError, match="CONFIG_RT_GROUP_SCHED"):
            launch(tiny, "sched", keys)
        pytest.skip("this kernel gives real-time to cgroups only")
    launch(tiny, "sched", keys)
    launch(tiny, "nosched", {})
    try:
        push(tiny, "sched", calls)
        push(tiny, "nosched", calls)
        assert run(tiny, "nosched", "/calls sched 10") == (1, "error 1\n")
        # SCHED_RR is 2.
        assert run(tiny, "sched", "/calls sched 10") == (0, "2\n")
        assert run(tiny, "sched", "/calls sched 1000") == (1, "error 22\n")
        assert run(tiny, "sched", "/calls sched 10", "--user", "1000") == (1, "error 1\n")
    finally:
        tiny.lxc("delete", "-f", "sched")
        tiny.lxc("delete", "-f", "nosched")


def test_opaque_directories(tiny: Machine, calls: Path):
    launch(tiny, "opaque", {"security.syscalls.intercept.setxattr": "true"})
    try:
        push(tiny, "opaque", calls)
        run(tiny, "opaque", "mkdir /tmp/d; touch /tmp/f; mkdir -m 700 /tmp/u; chown 1000 /tmp/u")
        assert run(tiny, "opaque", "/calls setxattr /tmp/d trusted.overlay.opaque y") == (0, "")
        pid = tiny.get("/1.0/instances/opaque/state")["pid"]
        assert os.getxattr(f"/proc/{pid}/root/tmp/d", "trusted.overlay.opaque") == b"y"
        assert run(tiny, "opaque", "/calls setxattr /tmp/d trusted.overlay.opaque x") == (1, "error 1\n")
        assert run(tiny, "opaque", "/calls setxattr /tmp/d trusted.overlay.origin y") == (1, "error 1\n")
        assert run(tiny, "opaque", "/calls setxattr /tmp/d user.x y") == (0, "")
        assert run(tiny, "opaque", "/calls setxattr /tmp/u trusted.overlay.opaque y", "--user", "1000")[0] == 1
        assert run(tiny, "opaque", "/calls setxattr /none trusted.overlay.opaque y") == (1, "error 2\n")
    finally:
        tiny.lxc("delete", "-f", "opaque")


def test_contradicting_keys(tiny: Machine):
    config = {
        "security.syscalls.intercept.mount": "true",
        "security.syscalls.intercept.mount.allowed": "ext4",
        "security.syscalls.intercept.mount.fuse": "ext4=fuse2fs",
    }
    with pytest.raises(ApiError, match="ext4 cannot appear"):
        launch(tiny, "contra", config)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[str]:
    """A block device with an ext4 file system, and on it a device node that must not be usable."""
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    for program in ("mkfs.ext4", "losetup"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program}")
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "file").write_text("content\n")
    os.mknod(tree / "zero", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    subprocess.run(["mkfs.ext4", "-q", "-d", tree, image], check=True)
    done = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no loop device: {done.stderr}")
    device = done.stdout.strip()
    yield device
    subprocess.run(["losetup", "-d", device], check=True)


def with_disk(disk: str) -> dict[str, dict[str, str]]:
    return {"disk": {"type": "unix-block", "source": disk, "path": "/dev/disk", "mode": "0600"}}


def test_a_mount_by_the_host(tiny: Machine, disk: str):
    keys = {"security.syscalls.intercept.mount": "true", "security.syscalls.intercept.mount.allowed": "ext4"}
    launch(tiny, "mounter", keys, devices=with_disk(disk))
    try:
        assert run(tiny, "mounter", "mount -t ext4 -o ro,noatime /dev/disk /mnt") == (0, "")
        assert run(tiny, "mounter", "cat /mnt/file") == (0, "content\n")
        line = run(tiny, "mounter", "grep ' /mnt ' /proc/mounts")[1]
        assert " ext4 ro,nodev,noatime" in line
        assert run(tiny, "mounter", "umount /mnt") == (0, "")
        # Only allowed file systems, only devices, only by root.
        assert run(tiny, "mounter", "mount -t ext3 /dev/disk /mnt")[0] != 0
        assert run(tiny, "mounter", "mount -t ext4 /tmp /mnt")[0] != 0
        assert run(tiny, "mounter", "mount -t ext4 /dev/none /mnt")[0] != 0
        assert run(tiny, "mounter", "mount -t ext4 /dev/disk /none")[0] != 0
        assert run(tiny, "mounter", "mount -t ext4 /dev/disk /mnt", "--user", "1000")[0] != 0
        # A node on the disk is not the host's device, not even after a remount that forgets "nodev".
        script = "mount -t ext4 /dev/disk /mnt && mount -o remount,bind,dev,rw /mnt; head -c 1 /mnt/zero"
        assert run(tiny, "mounter", script)[0] in (0, 1)
        assert run(tiny, "mounter", "mount -t tmpfs x /tmp && umount /tmp") == (0, "")
    finally:
        tiny.lxc("delete", "-f", "mounter")


def test_a_node_of_a_disk_is_no_way_to_the_host(tiny: Machine, disk: str, tmp_path: Path):
    """/dev/kmsg's numbers on a disk that its root may mount: its cgroup says no."""
    place = tmp_path / "mnt"
    place.mkdir()
    subprocess.run(["mount", disk, place], check=True)
    os.mknod(place / "kmsg", 0o666 | stat.S_IFCHR, os.makedev(1, 11))
    os.chmod(place / "kmsg", 0o666)
    subprocess.run(["umount", place], check=True)
    keys = {"security.syscalls.intercept.mount": "true", "security.syscalls.intercept.mount.allowed": "ext4"}
    launch(tiny, "evil", keys, devices=with_disk(disk))
    try:
        assert run(tiny, "evil", "mount -t ext4 /dev/disk /mnt && test -c /mnt/kmsg") == (0, "")
        run(tiny, "evil", "mount -o remount,bind,dev /mnt")
        assert "nodev" not in run(tiny, "evil", "grep ' /mnt ' /proc/mounts")[1]
        status, text = run(tiny, "evil", "head -c 1 /mnt/kmsg")
        assert status != 0
        assert "Operation not permitted" in text
    finally:
        tiny.lxc("delete", "-f", "evil")


def test_a_shifted_mount_is_its_own(tiny: Machine, disk: str):
    keys = {
        "security.syscalls.intercept.mount": "true",
        "security.syscalls.intercept.mount.allowed": "ext4",
        "security.syscalls.intercept.mount.shift": "true",
    }
    launch(tiny, "shifter", keys, devices=with_disk(disk))
    try:
        assert run(
            tiny, "shifter", "mount -t ext4 /dev/disk /mnt && touch /mnt/new && stat -c %u /mnt/new /mnt/file"
        ) == (
            0,
            "0\n0\n",
        )
        # Live: what is not allowed any more is refused at once.
        tiny.lxc("config", "set", "shifter", "security.syscalls.intercept.mount.allowed", "xfs")
        assert run(tiny, "shifter", "umount /mnt; mount -t ext4 /dev/disk /mnt")[0] != 0
    finally:
        tiny.lxc("delete", "-f", "shifter")


def test_many_commands_at_once(tiny: Machine, noder: str):
    """Each has a listener of its own, and all are served by one monitor."""
    scripts = [f"mknod /tmp/many{number} c 1 3 && test -c /tmp/many{number}" for number in range(24)]
    with ThreadPoolExecutor(len(scripts)) as pool:
        done = list(pool.map(lambda script: run(tiny, noder, script), scripts))
    assert done == [(0, "")] * len(scripts)


_GROUP = "mkdir -p /run/g; mount -t cgroup2 none /run/g 2>/dev/null; mkdir -p /run/g/sub; "


def test_device_programs_of_nested_cgroups(tiny: Machine, calls: Path):
    keys = {"security.syscalls.intercept.bpf": "true", "security.syscalls.intercept.bpf.devices": "true"}
    launch(tiny, "bpf", keys)
    try:
        push(tiny, "bpf", calls)
        # EPERM is 1.
        status, text = run(tiny, "bpf", _GROUP + "/calls devices /run/g/sub")
        assert (status, text) == (0, "load done, attach done, open 1, detach done, open 0\n")
        # Its own cgroup is the host's to rule.
        assert "attach Operation not permitted" in run(tiny, "bpf", _GROUP + "/calls devices /run/g")[1]
        assert "attach Bad file descriptor" in run(tiny, "bpf", "/calls devices /nowhere")[1]
        # Neither programs of other types, nor descriptors of the host, nor anybody but root. EACCES is 13.
        assert run(tiny, "bpf", "/calls load 1") == (1, "error 1\n")
        assert run(tiny, "bpf", "/calls load 15 map") == (1, "error 13\n")
        assert "load Operation not permitted" in run(tiny, "bpf", "/calls devices /run", "--user", "1000")[1]
        # Live: what is not allowed any more is refused at once.
        tiny.lxc("config", "set", "bpf", "security.syscalls.intercept.bpf.devices", "false")
        assert run(tiny, "bpf", "/calls devices /run/g/sub") == (0, "load Operation not permitted\n")
    finally:
        tiny.lxc("delete", "-f", "bpf")


def test_huge_pages_are_its_own(tiny: Machine):
    if "hugetlbfs" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no hugetlbfs")
    keys = {
        "security.syscalls.intercept.mount": "true",
        "security.syscalls.intercept.mount.allowed": "hugetlbfs",
        "security.syscalls.intercept.mount.shift": "true",
    }
    launch(tiny, "huge", keys)
    try:
        assert run(tiny, "huge", "mount -t hugetlbfs none /mnt && stat -c %u:%g /mnt") == (0, "0:0\n")
        assert run(tiny, "huge", "umount /mnt && mount -t hugetlbfs -o uid=1000,gid=100,mode=700 none /mnt") == (0, "")
        assert run(tiny, "huge", "stat -c %u:%g:%a /mnt; touch /mnt/file && ls /mnt") == (0, "1000:100:700\nfile\n")
        assert run(tiny, "huge", "umount /mnt; mount -t hugetlbfs -o uid=2000000000 none /mnt")[0] != 0
        assert run(tiny, "huge", "mount -t hugetlbfs -o uid=x none /mnt")[0] != 0
    finally:
        tiny.lxc("delete", "-f", "huge")
