# SPDX-License-Identifier: Apache-2.0
"""The seccomp policy of a container, in liblxc's format (version 2); pure.

Denied by default is what reaches past namespaces into the host's kernel or file systems. liblxc applies every rule to
every architecture that the kernel runs (a 32-bit program calls through another table).
"""

import re
from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

Interception = Literal["mknod", "setxattr", "mount", "bpf", "sched_setscheduler", "sysinfo"]

# LXD's list; ENOSYS (38) reads as "this kernel has no such thing", which programs are made for.
_DENIED = (
    "kexec_load",
    "kexec_file_load",
    "init_module",
    "finit_module",
    "delete_module",
    # A file handle names an inode past any mount point, so past the container's root (the 2014 "shocker" escape).
    "open_by_handle_at",
)
# No umount of what is busy by force: MNT_FORCE on a network file system hits everyone who uses it.
_REJECT_FORCED_UMOUNT = "reject_force_umount"

# What a supervised program must not do: put a listener of its own before the daemon's (EINVAL, 22), or be traced out of
# it. Arguments of seccomp(2): flags 8 is SECCOMP_FILTER_FLAG_NEW_LISTENER; 0x7ff00000 is SECCOMP_RET_TRACE.
_NO_OWN_LISTENER = (
    "seccomp errno 22 [1,2146435072,SCMP_CMP_MASKED_EQ,2146435072]",
    "seccomp errno 22 [1,8,SCMP_CMP_MASKED_EQ,8]",
)
# The mount calls of Linux 5.2 hold their arguments in file descriptors, so nobody can see what is to be mounted:
# ENOSYS sends programs to mount(2). openat2 is not among them; LXD denies it, too, but nothing is mounted with it.
_NEW_MOUNT_CALLS = ("fsopen", "fsconfig", "fsinfo", "fsmount", "fspick", "open_tree", "move_mount")
# mode & S_IFMT is S_IFCHR (8192) or S_IFBLK (24576); the mask is S_IFMT.
_DEVICE_MODES = (8192, 24576)
# mount(2) makes a new superblock unless one of these flags is set: MS_REMOUNT, MS_BIND, MS_MOVE, the propagations …
# The mask is every flag but those that only qualify a new mount (MS_RDONLY, MS_NOSUID … MS_LAZYTIME).
_OLD_SUPERBLOCK_FLAGS = 18446744070422410016
# bpf(2) commands BPF_PROG_LOAD, BPF_PROG_ATTACH, BPF_PROG_DETACH (linux/bpf.h).
_BPF_COMMANDS = (5, 8, 9)

_INTERCEPTED: dict[Interception, tuple[str, ...]] = {
    "mknod": tuple(
        f"{call} notify [{argument},{mode},SCMP_CMP_MASKED_EQ,61440]"
        for call, argument in (("mknod", 1), ("mknodat", 2))
        for mode in _DEVICE_MODES
    ),
    "sched_setscheduler": ("sched_setscheduler notify",),
    # Only a value of one byte: trusted.overlay.opaque is "y".
    "setxattr": ("setxattr notify [3,1,SCMP_CMP_EQ]",),
    "mount": (
        f"mount notify [3,0,SCMP_CMP_MASKED_EQ,{_OLD_SUPERBLOCK_FLAGS}]",
        *(f"{call} errno 38" for call in _NEW_MOUNT_CALLS),
    ),
    "bpf": tuple(f"bpf notify [0,{command},SCMP_CMP_EQ]" for command in _BPF_COMMANDS),
    "sysinfo": ("sysinfo notify",),
}

# What has no image, for a container whose state is to be saved: bpf (EPERM, 1), io_uring (ENOSYS, 38: programs fall
# back), and namespaces of one's own. systemd then starts sandboxed services without a sandbox. clone(2) stays, which
# its credentials need. Flags: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
_NAMESPACE_FLAGS = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
_MIGRATABLE = (
    "bpf errno 1",
    "io_uring_setup errno 38",
    *(f"unshare errno 1 [0,{flag},SCMP_CMP_MASKED_EQ,{flag}]" for flag in _NAMESPACE_FLAGS),
)

# Architectures where liblxc cannot filter (no seccomp in libseccomp 2.5 or kernel); a profile would fail the start.
_WITHOUT_SECCOMP = frozenset({"alpha", "sparc64", "ia64"})

_ARCHITECTURES = frozenset(
    {
        *("all", "x86", "x32", "x86_64", "arm", "arm64", "ppc", "ppc64", "ppc64le", "s390", "s390x"),
        *("mips", "mips64", "mips64n32", "mipsel", "mipsel64", "mipsel64n32"),
    }
)
_RULE = re.compile(
    r"(?P<call>[a-z_][a-z0-9_]*)"
    r"(?:\s+(?:kill|trap|allow|notify|errno\s+\d{1,4}|trace))?"
    r"(?:\s+\[\s*[0-5]\s*,\s*\d+\s*,\s*SCMP_CMP_[A-Z_]+\s*(?:,\s*\d+\s*)?\])*\s*"
)


class SeccompRules(Struct, frozen=True):
    """What an instance's keys ask for. `allow` and `deny` are lines of rules as liblxc reads them; with `allow` all
    else is forbidden. `raw` replaces everything."""

    allow: str = ""
    deny: str = ""
    deny_default: bool = True
    raw: str = ""
    intercept: frozenset[Interception] = frozenset()
    migratable: bool = False


def render_policy(rules: SeccompRules, kernel_architecture: str) -> str:
    """The text of the policy; "" where none is asked for or there can be none."""
    if kernel_architecture in _WITHOUT_SECCOMP:
        return ""
    if rules.raw:
        return rules.raw if rules.raw.endswith("\n") else rules.raw + "\n"
    lines = list(_lines(rules))
    return "".join(f"{line}\n" for line in lines) if len(lines) > len(_HEAD) + 1 else ""


_HEAD = ("2",)


def _lines(rules: SeccompRules) -> Iterator[str]:
    yield from _HEAD
    yield "allowlist" if rules.allow else "denylist"
    if rules.allow:
        yield "[all]"
        yield from rules.allow.split("\n")
    elif rules.deny_default:
        yield _REJECT_FORCED_UMOUNT
        yield "[all]"
        yield from (f"{call} errno 38" for call in _DENIED)
    if rules.intercept:
        yield "[all]"
        yield from _NO_OWN_LISTENER
        for name in sorted(rules.intercept):
            yield from _INTERCEPTED[name]
    if rules.migratable:
        yield "[all]"
        yield from _MIGRATABLE
    if rules.deny and not rules.allow:
        yield "[all]"
        yield from rules.deny.split("\n")


def rules_fault(text: str) -> str | None:
    """What is wrong with lines of rules; liblxc would refuse the start, or take a word for something else."""
    for line in text.split("\n"):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            if line.removeprefix("[").removesuffix("]").lower() not in _ARCHITECTURES:
                return f'invalid line "{line}" (no such architecture)'
        elif _RULE.fullmatch(line) is None:
            return f'invalid line "{line}" (expected a system call, and optionally an action and arguments)'
    return None


def named_calls(text: str) -> list[str]:
    """The system calls that lines of rules name."""
    matches = (_RULE.fullmatch(line.strip()) for line in text.split("\n"))
    return [match["call"] for match in matches if match is not None and match["call"] != _REJECT_FORCED_UMOUNT]
