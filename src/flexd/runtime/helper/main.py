# SPDX-License-Identifier: Apache-2.0
"""The helper: imports what its forks need, then forks one process for each request of the daemon.

Entering a container's namespaces must not happen in the daemon (threads, event loop), and a fork of this small process
is ten times cheaper than a fresh interpreter. It ends when the daemon's socket closes."""

import gc
import os
import signal
import socket
import sys

from flexd.runtime.helper import announce, console, exec, files, mount, proxy, supervise, wire
from flexd.runtime.helper.liblxc import Library

# LXD's names for what liblxc can do (`environment.lxc_features`).
_FEATURES = (
    "cgroup2",
    "core_scheduling",
    "devpts_fd",
    "idmapped_mounts_v2",
    "mount_injection_file",
    "network_gateway_device_route",
    "network_ipvlan",
    "network_l2proxy",
    "network_phys_macvlan_mtu",
    "network_veth_router",
    "pidfd",
    "seccomp_allow_deny_syntax",
    "seccomp_notify",
    "seccomp_proxy_send_notify_fd",
)


def main(control_fd: int) -> None:
    """Runs until the daemon is gone. Requests: one byte for the kind, with the connection and other descriptors."""
    control = socket.socket(fileno=control_fd)
    library = Library()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks are nobody's to wait for
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C is for the daemon, which then closes the socket
    gc.collect()
    gc.freeze()  # forks then copy fewer pages: the collector does not write into what is shared
    while True:
        kind, ancillary, _, _ = control.recvmsg(1, socket.CMSG_SPACE(4 * wire.MOST_FDS), socket.MSG_CMSG_CLOEXEC)
        if not kind:
            return
        fds = wire.rights(ancillary)
        if os.fork() == 0:
            control.close()
            _serve(library, kind.decode(), fds)
        for fd in fds:
            os.close(fd)


def _serve(library: Library, kind: str, fds: list[int]) -> None:
    """In the fork. An error is told to the daemon, which names what was asked."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection = socket.socket(fileno=fds[0])
    status = 0
    try:
        _dispatch(library, kind, connection, fds[1:])
    except (wire.Closed, ConnectionError):
        pass
    except Exception as error:  # noqa: BLE001 - the border of a request: whatever it is, the daemon must hear of it
        status = 1
        _report(connection, error)
    os._exit(status)


def _dispatch(library: Library, kind: str, connection: socket.socket, fds: list[int]) -> None:
    match kind:
        case "i":
            features = {name: library.has_extension(name) for name in _FEATURES}
            wire.send(connection, {"version": library.version(), "features": features})
        case "x":
            exec.serve(library, connection, (fds[0], fds[1], fds[2]))
        case "c":
            console.serve(library, connection, fds)
        case "f":
            files.serve(connection)
        case "s":
            files.serve_sftp(connection)
        case "m":
            mount.serve_add(connection)
        case "p":
            proxy.serve(connection)
        case "u":
            mount.serve_remove(connection)
        case "n":
            supervise.serve(connection, fds)
        case "a":
            announce.serve(connection)
        case "g":
            _write_cgroup(library, connection)


def _write_cgroup(library: Library, connection: socket.socket) -> None:
    """A cgroup file of a container, by liblxc: on v2 device rules are a program that its monitor keeps."""
    request = wire.receive(connection)
    library.container(request["name"], request["directory"]).set_cgroup_item(request["file"], request["value"])
    wire.send(connection, {})


def _report(connection: socket.socket, error: Exception) -> None:
    number = error.errno if isinstance(error, OSError) else 0
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    try:
        wire.send(connection, {"error": text or repr(error), "errno": number or 0})
    except OSError as failure:
        print(f"flexd helper: {error!r}, not reported: {failure}", file=sys.stderr)  # noqa: T201 - it has no other voice
