# SPDX-License-Identifier: Apache-2.0
"""The default seccomp policy of containers, in liblxc's format (version 2, deny list); pure.

Denied is what reaches past namespaces into the host's kernel or file systems, for every architecture of the kernel.
"""

from pathlib import Path

_HEADER = "2\ndenylist\n"

# No umount of what is busy by force: MNT_FORCE on a network file system hits everyone who uses it.
_REJECT_FORCED_UMOUNT = "reject_force_umount\n"

# System call -> error. EPERM (1) says "you may not"; ENOSYS (38) sends a C library to its older way.
_DENIED = {
    "kexec_load": 1,
    "kexec_file_load": 1,
    "init_module": 1,
    "finit_module": 1,
    "delete_module": 1,
    # A file handle names an inode past any mount point, so past the container's root (the 2014 "shocker" escape).
    "open_by_handle_at": 1,
}

# A 32-bit program on a 64-bit kernel calls through another table; "[all]" makes liblxc add those that the kernel has.
_EVERY_ARCHITECTURE = "[all]\n"

# Architectures where liblxc cannot filter (no seccomp in libseccomp 2.5 or kernel); a profile would fail the start.
_WITHOUT_SECCOMP = frozenset({"alpha", "sparc64", "ia64"})


def default_policy(kernel_architecture: str, *, allowed: frozenset[str] = frozenset()) -> str:
    """The text of the policy; `allowed` are system calls taken off the list. "" where there can be none."""
    if kernel_architecture in _WITHOUT_SECCOMP:
        return ""
    rules = "".join(f"{name} errno {errno}\n" for name, errno in _DENIED.items() if name not in allowed)
    return _HEADER + _REJECT_FORCED_UMOUNT + _EVERY_ARCHITECTURE + rules


def write_default_policy(path: Path, kernel_architecture: str) -> str:
    """Blocking. Write the policy at the daemon's start; the path for `ContainerSpec.seccomp_profile`, "" if none."""
    policy = default_policy(kernel_architecture)
    if not policy:
        return ""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Containers may be starting (of a daemon before this one): they read the old file or the new one, never half.
    new = path.with_name(path.name + ".new")
    new.write_text(policy)
    new.replace(path)
    return str(path)
