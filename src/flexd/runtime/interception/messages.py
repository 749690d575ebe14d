# SPDX-License-Identifier: Apache-2.0
"""What liblxc's monitor and its proxy (us) say to each other about a system call (seccomp.h: seccomp_notify_proxy_msg).

Three structs of the machine's byte order follow each other: liblxc's head, the kernel's seccomp_notif and
seccomp_notif_resp (linux/seccomp.h), then the container's cookie. The answer is the first three again."""

import struct

from msgspec import Struct

# __u64 reserved; pid_t monitor, init; struct seccomp_notif_sizes { __u16 notif, resp, data }; __u64 cookie_len
_HEAD = struct.Struct("@QiiHHHxxQ")
# __u64 id; __u32 pid, flags; struct seccomp_data { int nr; __u32 arch; __u64 instruction_pointer, args[6] }
_NOTIFICATION = struct.Struct("@QIIiIQ6Q")
# __u64 id; __s64 val; __s32 error; __u32 flags
_RESPONSE = struct.Struct("@QqiI")
_DATA_BYTES = 64
# SECCOMP_USER_NOTIF_FLAG_CONTINUE: the kernel goes on with the call as if nobody had looked, with all of its checks.
_CONTINUE = 1
_BASE_BYTES = _HEAD.size + _NOTIFICATION.size + _RESPONSE.size
# Names of containers are its cookies.
LONGEST = _BASE_BYTES + 4096


class BadMessage(Exception):
    """Not what this version of liblxc and kernel should send."""


class Notification(Struct, frozen=True):
    """A thread of a container waits in a system call. `pid` is the thread's as the daemon sees it."""

    raw: bytes  # head, notification and response, for the answer
    init: int
    cookie: str
    id: int
    pid: int
    number: int
    architecture: int  # AUDIT_ARCH_*
    arguments: tuple[int, ...]


class Verdict(Struct, frozen=True):
    """What the thread gets: the kernel's own answer, a value, or an error."""

    proceed: bool = False
    value: int = 0
    errno: int = 0


PROCEED = Verdict(proceed=True)


def parse(data: bytes) -> Notification:
    if len(data) < _BASE_BYTES:
        raise BadMessage(f"{len(data)} bytes")
    reserved, _monitor, init, *sizes, cookie_length = _HEAD.unpack_from(data)
    if reserved != 0:
        raise BadMessage("the reserved member is not 0")
    if sizes != [_NOTIFICATION.size, _RESPONSE.size, _DATA_BYTES]:
        raise BadMessage(f"structs of other sizes: {sizes}")
    if len(data) != _BASE_BYTES + cookie_length:
        raise BadMessage("the cookie's length is wrong")
    identity, pid, _flags, number, architecture, _pointer, *arguments = _NOTIFICATION.unpack_from(data, _HEAD.size)
    return Notification(
        raw=data[:_BASE_BYTES],
        init=init,
        cookie=data[_BASE_BYTES:].decode(errors="replace"),
        id=identity,
        pid=pid,
        number=number,
        architecture=architecture,
        arguments=tuple(arguments),
    )


def answer(notification: Notification, verdict: Verdict) -> bytes:
    flags = _CONTINUE if verdict.proceed else 0
    response = _RESPONSE.pack(notification.id, verdict.value, -verdict.errno, flags)
    return notification.raw[: -_RESPONSE.size] + response
