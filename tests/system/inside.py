# SPDX-License-Identifier: Apache-2.0
"""A program that joins a container and speaks HTTP on a unix socket there: tiny images have no such client.

`python inside.py PID UID METHOD PATH [BODY]`: PID 0 stays on the host. Prints the answer, as it comes."""

import ctypes
import os
import socket
import sys

CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER = 0x20000, 0x20000000, 0x10000000


def main() -> None:
    pid, uid, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    method, url, body = sys.argv[4], sys.argv[5], (sys.argv[6] if len(sys.argv) > 6 else "").encode()
    if pid:
        join(pid)
    if uid:
        os.setgid(uid)
        os.setuid(uid)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(path)
    head = f"{method} {url} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    while piece := connection.recv(65536):
        sys.stdout.buffer.write(piece)
        sys.stdout.flush()


def join(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    own, theirs = os.stat("/proc/self/ns/user").st_ino, os.stat(f"/proc/{pid}/ns/user").st_ino
    flags = CLONE_NEWNS | CLONE_NEWPID | (CLONE_NEWUSER if own != theirs else 0)
    pidfd = os.pidfd_open(pid)
    if libc.setns(pidfd, flags) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    child = os.fork()  # the pid namespace is for children
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
