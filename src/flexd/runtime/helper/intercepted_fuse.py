# SPDX-License-Identifier: Apache-2.0
"""mount(2) of a file system redirected to a FUSE program of the container: it runs as the caller, in the caller's
namespaces and cgroups, so the kernel is never asked to trust the data."""

import ctypes
import errno
import os

from flexd.runtime.helper import wire
from flexd.runtime.helper.caller import Caller
from flexd.runtime.helper.filter import Filter
from flexd.runtime.helper.resolver import become

_libc = ctypes.CDLL(None, use_errno=True)

_CLONE_NEWPID = 0x20000000
# mount(2) flag -> option of mount(8)
_OPTIONS = {0x1: "ro", 0x2: "nosuid", 0x4: "nodev", 0x8: "noexec", 0x10: "sync", 0x400: "noatime", 0x800: "nodiratime"}
_ENVIRONMENT = {b"PATH": b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
_PROGRAM = "mount.fuse"
# The caller's filter cannot be taken along: its own mount of /dev/fuse would wait for a monitor that waits for us.
# So what it denies by default is denied anew.
_DENIED = ("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "open_by_handle_at")
_POLICY = "2\ndenylist\n" + "".join(f"{name} errno 38\n" for name in _DENIED)


def mount(caller: Caller, program: str, source: bytes, target: bytes, flags: int, options: bytes) -> wire.Message:
    words = [options] if options else []
    words += [name.encode() for flag, name in _OPTIONS.items() if flags & flag]
    argv = [_PROGRAM.encode(), program.encode() + b"#" + source, target]
    argv += [b"-o", b",".join(words)] if words else []
    for path in _groups(caller):
        _join(path)
    start, root = caller.directory_of(-100), caller.open("root", os.O_PATH | os.O_DIRECTORY)
    user, names, processes = caller.open("ns/user"), caller.open("ns/mnt"), caller.open("ns/pid")
    caller.check()
    _check(_libc.setns(processes, _CLONE_NEWPID), "setns")
    policy = Filter(_POLICY)
    child = os.fork()
    if child == 0:
        os._exit(_run(caller, (user, names, root, start), argv, policy))
    _, status = os.waitpid(child, 0)
    # The program has told its reasons to nobody; "invalid" is what mount(8) expects of a file system that is none.
    return {"errno": errno.EINVAL} if status else {"value": 0}


def _groups(caller: Caller) -> list[str]:
    """Directories of the caller's cgroups on this host."""
    found = []
    mounts = _hierarchies()
    for line in caller.read("cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            if name in mounts:
                found.append(mounts[name] + path)
    return found


def _hierarchies() -> dict[str, str]:
    """Controller ("" for cgroup v2, `name=systemd`) -> where it is mounted."""
    mounts = {}
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            _, target, fstype, options, *_ = line.split()
            if fstype == "cgroup2":
                mounts[""] = target
            elif fstype == "cgroup":
                mounts |= dict.fromkeys(options.split(","), target)
    return mounts


def _join(directory: str) -> None:
    try:
        with open(f"{directory}/cgroup.procs", "w", encoding="ascii") as file:
            file.write(str(os.getpid()))
    except FileNotFoundError:
        return  # a hierarchy without controllers may lack the group


def _run(caller: Caller, where: tuple[int, int, int, int], argv: list[bytes], policy: Filter) -> int:
    """Only returns if it fails."""
    try:
        become(caller, *where)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.closerange(3, 1024)
        os.setsid()
        policy.load()
        os.execvpe(argv[0], argv, _ENVIRONMENT)
    except OSError:
        return 1


def _check(result: int, call: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
