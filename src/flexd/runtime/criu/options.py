# SPDX-License-Identifier: Apache-2.0
"""What CRIU is asked for, as messages of its rpc.proto; pure. Field numbers are that file's."""

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from pathlib import Path

from msgspec import Struct

from flexd.runtime.criu.fields import Field, decode, encode, first, number_of, text_of


class Kind(IntEnum):
    """criu_req_type."""

    DUMP = 1
    RESTORE = 2
    NOTIFY = 6


_CGROUPS_FULL = 4  # criu_cg_mode FULL: cgroups are made anew, with all their settings
_NFTABLES = 2  # criu_network_lock_method: one transaction through the library, where iptables would be four programs
_LOG_LEVEL = 4
# An unlinked file that a process holds open goes into the images, up to this size; CRIU's own limit is 1 MiB.
_GHOST_BYTES = 64 * 1024 * 1024
# File systems that CRIU restores empty: what a guest mounts of them holds nothing of its own.
_MOUNTED_AGAIN = ("hugetlbfs", "tracefs")


class Cgroups(Struct, frozen=True):
    """`controllers` as /proc/PID/cgroup names them: "" is the v2 hierarchy, `name=systemd` one without controllers."""

    controllers: Sequence[str]
    payload: str


class Answer(Struct, frozen=True):
    """A message of CRIU's: a notification with the name of its stage, or the result."""

    stage: str = ""
    success: bool = False
    message: str = ""


def dump(pid: int, images: Path, cgroups: Cgroups, freezer: Path, external: Iterable[str]) -> bytes:
    """Dump a container whole; CRIU reports its stages, the last of them before anything is decided about the tree."""
    more: list[Field] = [
        (2, pid),
        (21, 1),  # force_irmap: watches are found by path on the target, whose inodes are others
        (44, bytes(freezer)),
        (46, 1),  # tcp_skip_in_flight: who is still shaking hands tries again
        (64, _NFTABLES),
    ]
    more += [(37, name.encode()) for name in external]
    return _request(Kind.DUMP, images, "dump.log", cgroups, more)


def restore(root: Path, images: Path, cgroups: Cgroups, external: Iterable[str], inherited: Mapping[str, int]) -> bytes:
    """Restore below `root`, as a child of CRIU's own parent. `inherited`: what is reached by descriptors of CRIU's."""
    more: list[Field] = [(13, bytes(root)), (26, 1), (64, _NFTABLES)]
    more += [(37, name.encode()) for name in external]
    more += [(27, encode([(1, key.encode()), (2, fd)])) for key, fd in inherited.items()]
    return _request(Kind.RESTORE, images, "restore.log", cgroups, more)


def _request(kind: Kind, images: Path, log: str, cgroups: Cgroups, more: list[Field]) -> bytes:
    options: list[Field] = [
        (1, -1),  # images_dir_fd: a descriptor of ours would lead into our mount namespace, where CRIU is not
        (68, bytes(images)),
        (5, 1),  # tcp_established
        (8, 1),  # file_locks
        (9, _LOG_LEVEL),
        (10, log.encode()),
        (12, 1),  # notify_scripts
        (18, 1),  # link_remap
        (24, 1),  # manage_cgroups
        (34, _CGROUPS_FULL),
        (29, 1),  # ext_sharing
        (30, 1),  # ext_masters
        (35, _GHOST_BYTES),
    ]
    group = f"/{cgroups.payload}".encode()
    options += [(25, encode([(1, name.encode()), (2, group)])) for name in cgroups.controllers]
    options += [(32, name.encode()) for name in _MOUNTED_AGAIN]
    return encode([(1, kind), (2, encode([*options, *more]))])


def go_on(success: bool) -> bytes:
    """The answer to a notification."""
    return encode([(1, Kind.NOTIFY), (3, int(success))])


def parse(data: bytes) -> Answer:
    fields = decode(data)
    if number_of(fields, 1) == Kind.NOTIFY:
        notification = first(fields, 5)
        return Answer(text_of(decode(notification), 1) if isinstance(notification, bytes) else "")
    return Answer(success=bool(number_of(fields, 2)), message=text_of(fields, 9))
