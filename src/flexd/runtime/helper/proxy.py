# SPDX-License-Identifier: Apache-2.0
"""Forwarding between the host and a container, in a fork of the helper that outlives helper and daemon.

A fork shares most of its memory with the others. Listeners of the container's side are made by a child inside; a
process that connects inside is the container's root itself, with nothing of the host left to reach."""

import os
import resource
import signal
import socket

from flexd.runtime.helper import enter, relay, wire

_BACKLOG = 1024


def serve(connection: socket.socket) -> None:
    """Answers {"pid": N} once all listen, and forwards from the next message on until it is killed."""
    request = wire.receive(connection)
    os.setsid()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    # A connection takes six descriptors.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    inside = request["inside"]
    listeners = _listen_inside(request) if inside else [_listen(request, listen) for listen, _ in request["pairs"]]
    if not inside:
        enter.enter_network(request["init"], request["start_time"])
        enter.enter_running(request["init"], request["start_time"])
    _drop(request["drop_uid"], request["drop_gid"])
    wire.send(connection, {"pid": os.getpid()})
    wire.receive(connection)  # now the daemon has written down who we are
    wire.send(connection, {})
    connection.close()
    _close_standard_streams()
    header = request["proxy_protocol"]
    targets = [relay.Target(connect["kind"], _address(connect), header) for _, connect in request["pairs"]]
    relay.run(list(zip(listeners, targets, strict=True)))


def _close_standard_streams() -> None:
    null = os.open(os.devnull, os.O_RDWR) if os.path.exists(os.devnull) else -1
    for fd in range(3):
        if null >= 0:
            os.dup2(null, fd)
        else:
            os.close(fd)


def _drop(uid: int, gid: int) -> None:
    if gid:
        os.setresgid(gid, gid, gid)
    if uid:
        os.setresuid(uid, uid, uid)


def _listen_inside(request: wire.Message) -> list[socket.socket]:
    """A child enters and binds; the sockets keep its network namespace."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        _bind_and_send(request, theirs)
    theirs.close()
    message, fds = b"", list[int]()
    count = len(request["pairs"])
    while True:
        data, received, _, _ = socket.recv_fds(ours, 4096, wire.MOST_FDS)
        fds += received
        if not data:
            break
        message += data
    os.waitpid(child, 0)
    if len(fds) != count:
        number, _, text = message.lstrip(b".").decode().partition(" ")
        raise OSError(int(number or 0), text or "the listener inside could not be made")
    return [socket.socket(fileno=fd) for fd in fds]


def _bind_and_send(request: wire.Message, channel: socket.socket) -> None:
    status = 0
    try:
        enter.enter_network(request["init"], request["start_time"])
        enter.enter_running(request["init"], request["start_time"])
        for listen, _ in request["pairs"]:
            made = _listen(request, listen)
            socket.send_fds(channel, [b"."], [made.fileno()])
    except OSError as error:
        channel.send(f"{error.errno or 0} {error.strerror or error}".encode())
        status = 1
    os._exit(status)


def _address(address: wire.Message) -> str | tuple[str, int]:
    if address["kind"] != "unix":
        return address["host"], address["port"]
    host: str = address["host"]
    return "\0" + host[1:] if host.startswith("@") else host


def _listen(request: wire.Message, address: wire.Message) -> socket.socket:
    kind, where = address["kind"], _address(address)
    stream = socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM
    made = socket.socket(_family(kind, where), stream | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        if kind == "unix":
            _bind_unix(made, where, request)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(where)
        if kind != "udp":
            made.listen(_BACKLOG)
    except OSError as error:
        text = f"listen on {kind}:{address['host']}" + (f":{address['port']}" if address["port"] else "")
        raise OSError(error.errno or 0, f"{text}: {error.strerror}") from error
    return made


def _family(kind: str, where: str | tuple[str, int]) -> socket.AddressFamily:
    if kind == "unix" or isinstance(where, str):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in where[0] else socket.AF_INET


def _bind_unix(made: socket.socket, where: str | tuple[str, int], request: wire.Message) -> None:
    path = str(where)
    if not path.startswith("\0"):
        _unlink_dead(path)
    made.bind(path)
    if not path.startswith("\0"):
        os.chmod(path, request["socket_mode"])
        os.chown(path, request["socket_uid"], request["socket_gid"])


def _unlink_dead(path: str) -> None:
    """A socket that nobody answers on is left of a run that was killed."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            return
