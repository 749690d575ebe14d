# SPDX-License-Identifier: Apache-2.0
"""Reading `/proc/self/mountinfo` (proc_pid_mountinfo(5)) and the options that mount(8) takes; pure."""

import os
import re
from pathlib import Path

from flexd.host import syscalls
from flexd.host.contract import MountInfo

# The kernel writes space, tab, newline, backslash (and, in options, comma and colon) as \ooo.
_OCTAL = re.compile(rb"\\([0-7]{3})")
_ESCAPED = re.compile(rb"[ \t\n\\]")

# mount(8), "FILESYSTEM-INDEPENDENT MOUNT OPTIONS": what to add and what to take away.
_FLAGS: dict[str, tuple[int, int]] = {
    "defaults": (0, 0),
    "ro": (syscalls.MS_RDONLY, 0),
    "rw": (0, syscalls.MS_RDONLY),
    "nosuid": (syscalls.MS_NOSUID, 0),
    "suid": (0, syscalls.MS_NOSUID),
    "nodev": (syscalls.MS_NODEV, 0),
    "dev": (0, syscalls.MS_NODEV),
    "noexec": (syscalls.MS_NOEXEC, 0),
    "exec": (0, syscalls.MS_NOEXEC),
    "sync": (syscalls.MS_SYNCHRONOUS, 0),
    "async": (0, syscalls.MS_SYNCHRONOUS),
    "dirsync": (syscalls.MS_DIRSYNC, 0),
    "remount": (syscalls.MS_REMOUNT, 0),
    "bind": (syscalls.MS_BIND, 0),
    "rbind": (syscalls.MS_BIND | syscalls.MS_REC, 0),
    "noatime": (syscalls.MS_NOATIME, 0),
    "atime": (0, syscalls.MS_NOATIME),
    "nodiratime": (syscalls.MS_NODIRATIME, 0),
    "diratime": (0, syscalls.MS_NODIRATIME),
    "relatime": (syscalls.MS_RELATIME, 0),
    "norelatime": (0, syscalls.MS_RELATIME),
    "strictatime": (syscalls.MS_STRICTATIME, 0),
    "lazytime": (syscalls.MS_LAZYTIME, 0),
}


def unescape(text: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes((int(match[1], 8) & 0xFF,)), text))


def escape(path: str | Path) -> bytes:
    """A path as mountinfo writes it."""
    return _ESCAPED.sub(lambda match: b"\\%03o" % match[0][0], os.fsencode(path))


def parse_line(line: bytes) -> MountInfo:
    """`36 35 98:0 /root /target rw,noatime master:1 - ext3 /dev/root rw,errors=continue`."""
    head, _, tail = line.partition(b" - ")
    fields = head.split(b" ")
    fstype, source, super_options = (*tail.split(b" "), b"", b"")[:3]
    return MountInfo(
        target=Path(unescape(fields[4])),
        source=unescape(source),
        fstype=unescape(fstype),
        options=unescape(b",".join(part for part in (fields[5], super_options) if part)),
        root=unescape(fields[3]),
    )


def parse(text: bytes) -> list[MountInfo]:
    return [parse_line(line) for line in text.splitlines() if line]


def is_target(text: bytes, path: str) -> bool:
    """Whether something is mounted exactly there; far cheaper than parsing where hundreds of containers run."""
    wanted = b" " + escape(path) + b" "
    return any(line.split(b" ", 5)[4:5] == [wanted[1:-1]] for line in text.splitlines() if wanted in line)


def at_or_below(text: bytes, path: str) -> list[MountInfo]:
    wanted = escape(path.rstrip("/"))
    prefix = wanted + b"/"
    chosen = []
    for line in text.splitlines():
        if wanted not in line:
            continue
        target = line.split(b" ", 5)[4]
        if target == (wanted or b"/") or target.startswith(prefix):
            chosen.append(parse_line(line))
    return chosen


def holding(mounts: list[MountInfo], path: Path) -> MountInfo | None:
    """The mount that a resolved path is on: the longest target above it, the last one mounted there."""
    best: MountInfo | None = None
    for mount in mounts:
        fits = path == mount.target or mount.target in path.parents
        if fits and (best is None or len(mount.target.parts) >= len(best.target.parts)):
            best = mount
    return best


def parse_options(text: str) -> tuple[int, str]:
    """mount(8)'s option string as (flags, the rest for the file system)."""
    flags, rest = 0, []
    for option in filter(None, text.split(",")):
        if option in _FLAGS:
            add, remove = _FLAGS[option]
            flags = flags & ~remove | add
        else:
            rest.append(option)
    return flags, ",".join(rest)
