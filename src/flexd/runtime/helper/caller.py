# SPDX-License-Identifier: Apache-2.0
"""The thread behind an intercepted system call, read through the /proc directory that liblxc opened for it.

It waits in the kernel, so what is read stays true while the notification is valid."""

import ctypes
import errno
import fcntl
import os
import stat
import struct

_libc = ctypes.CDLL(None, use_errno=True)

# linux/seccomp.h SECCOMP_IOCTL_NOTIF_ID_VALID, in its right form (Linux 5.17) and the one of before.
_ID_VALID = (0x40082102, 0x80082102)
# SECCOMP_IOCTL_NOTIF_ADDFD (Linux 5.9); struct seccomp_notif_addfd: id; flags, srcfd, newfd, newfd_flags
_ADD_FD, _ADDITION = 0x40182103, struct.Struct("@QIIII")
_PAGE_BYTES = 4096
PATH_MAX = 4096

# (inside, outside, count)
IdMap = list[tuple[int, int, int]]


class Gone(Exception):
    """The thread was killed, or interrupted out of the call."""


class Caller:
    """Ids are the host's; capabilities are a bit mask over the thread's own user namespace."""

    def __init__(self, directory: int, memory: int, listener: int, identity: int) -> None:
        self.directory = directory
        self._memory = memory
        self._listener = listener
        self._identity = identity
        fields = dict(line.split(":\t", 1) for line in self.read("status").splitlines() if ":\t" in line)
        self.fsuid = int(fields["Uid"].split()[3])
        self.fsgid = int(fields["Gid"].split()[3])
        self.groups = [int(word) for word in fields["Groups"].split()]
        self.capabilities = int(fields["CapEff"], 16)
        self.umask = int(fields["Umask"], 8)
        self.inside_pid = int(fields["NSpid"].split()[-1])
        self.uid_map = self._id_map("uid_map")
        self.gid_map = self._id_map("gid_map")
        self.check()

    def read(self, name: str) -> str:
        with open(
            os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.directory), encoding="utf-8", errors="replace"
        ) as file:
            return file.read()

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """A file or link of /proc/PID."""
        return os.open(name, flags | os.O_CLOEXEC, dir_fd=self.directory)

    def _id_map(self, name: str) -> IdMap:
        """As seen from here."""
        return [(int(a), int(b), int(c)) for a, b, c in (line.split() for line in self.read(name).splitlines())]

    def namespace(self, kind: str) -> int:
        """Inode number of a namespace (`user`)."""
        return os.stat(f"ns/{kind}", dir_fd=self.directory).st_ino

    def may(self, capability: int) -> bool:
        return bool(self.capabilities & (1 << capability))

    def check(self) -> None:
        """`Gone` if the thread no longer waits for us; all that was read before is then about somebody else."""
        number = ctypes.c_uint64(self._identity)
        for request in _ID_VALID:
            # Reads 8 bytes during the call only.
            if _libc.ioctl(self._listener, ctypes.c_ulong(request), ctypes.byref(number)) == 0:
                return
            if ctypes.get_errno() not in (errno.EINVAL, errno.ENOTTY):
                break
        raise Gone

    def text(self, address: int) -> bytes:
        """A string of the thread's memory; EFAULT and ENAMETOOLONG as the kernel would say."""
        found = b""
        while b"\0" not in found:
            if len(found) >= PATH_MAX:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
            # Not over the end of a page: the next one may not be there.
            found += self.memory(address + len(found), _PAGE_BYTES - (address + len(found)) % _PAGE_BYTES)
        return found.split(b"\0", 1)[0]

    def memory(self, address: int, count: int) -> bytes:
        try:
            data = os.pread(self._memory, count, address)
        except (OSError, OverflowError) as error:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT)) from error
        if len(data) != count:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        self.check()
        return data

    def write(self, address: int, data: bytes) -> None:
        self.check()
        try:
            os.pwrite(self._memory, data, address)
        except (OSError, OverflowError) as error:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT)) from error

    def give(self, descriptor: int) -> int:
        """Put a copy of a descriptor of ours among the thread's, closed on exec; its number there."""
        addition = bytearray(_ADDITION.pack(self._identity, 0, descriptor, 0, os.O_CLOEXEC))
        return int(fcntl.ioctl(self._listener, _ADD_FD, addition))

    def directory_of(self, descriptor: int) -> int:
        """What the thread's descriptor, or with AT_FDCWD (-100) its working directory, is. Caller closes it."""
        number = ctypes.c_int32(descriptor & 0xFFFFFFFF).value
        name = "cwd" if number == -100 else f"fd/{number}"
        try:
            found = self.open(name, os.O_PATH)
        except OSError as error:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from error
        if not stat.S_ISDIR(os.fstat(found).st_mode):
            os.close(found)
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return found


def outside(number: int, id_map: IdMap) -> int | None:
    """The host id behind one of its user namespace."""
    for first, host, count in id_map:
        if first <= number < first + count:
            return host + number - first
    return None


def inside(number: int, id_map: IdMap) -> int | None:
    """The id of its user namespace behind a host id."""
    for first, host, count in id_map:
        if host <= number < host + count:
            return first + number - host
    return None
