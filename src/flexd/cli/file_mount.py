# SPDX-License-Identifier: Apache-2.0
"""`flexc file mount`: an instance's SFTP, given to sshfs or served over SSH."""

from __future__ import annotations

import os
import socket
import sys

from flexd.cli.errors import CliError
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from flexd.client.client import Client
    from flexd.client.connection import Wire

_PIECE_BYTES = 64 * 1024
# sshfs ends at once when it is unmounted, unless somebody waits for a file.
_END_TIMEOUT_S = 5
# How long a caller of --listen may take to say who it is.
_LOGIN_TIMEOUT_S = 60


def open_sftp(client: Client, instance: str) -> Wire:
    """A raw connection that speaks SFTP (LXD's upgrade)."""
    return client.upgrade(path_of("instances", instance, "sftp"), "sftp")


def mount_sshfs(client: Client, instance: str, path: str, target: str) -> None:
    """Mount with sshfs, which speaks over our pipes, until it is unmounted or interrupted."""
    import shutil
    import subprocess

    if shutil.which("sshfs") is None:
        raise CliError("sshfs not found. Install it (apt install sshfs), or use --listen to serve the files over SSH")
    if not os.path.isdir(target):
        raise CliError(f"The target path {target} is no directory")
    wire = open_sftp(client, instance)
    argv = ["sshfs", "-o", "slave", f"{instance}:{path}", target]
    print(f"sshfs mounting {instance}{path} on {target}\nPress ctrl+c to finish", flush=True)
    lost = interrupted = False
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            lost = pump(wire, process.stdout.fileno(), process.stdin.fileno())
        except KeyboardInterrupt:
            interrupted = True
        if lost or interrupted:
            _unmount(target)
        process.stdin.close()
        wire.close()
        try:
            process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()  # somebody still has a file open there; the mount is detached
    if lost:
        raise CliError(f"The connection to {instance} ended (is it still running?)")
    if process.returncode and not interrupted:
        raise CliError(f"sshfs ended with status {process.returncode}")
    print("sshfs has stopped")


def _unmount(target: str) -> None:
    import shutil
    import subprocess

    # fuse 2 and 3 name it differently; some distributions have only one of them. -z: also while it is in use.
    program = shutil.which("fusermount3") or "fusermount"
    subprocess.run([program, "-u", "-z", target], check=False, stderr=subprocess.DEVNULL)


def pump(wire: Wire, read_fd: int, write_fd: int) -> bool:
    """Move bytes between a connection and two descriptors until either side ends; whether it was the connection."""
    import select

    try:
        _write_all(write_fd, wire.take(len(wire.buffer)))
        while True:
            ready = select.select([wire.sock.fileno(), read_fd], [], [])[0]
            if read_fd in ready:
                data = os.read(read_fd, _PIECE_BYTES)
                if not data:
                    return False
                wire.sock.sendall(data)
            if wire.sock.fileno() in ready:
                data = wire.sock.recv(_PIECE_BYTES)
                if not data:
                    return True
                _write_all(write_fd, data)
    except BrokenPipeError:  # sshfs has ended
        return False
    except ConnectionError:
        return True


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def listen_ssh(client: Client, instance: str, address: str, user: str, no_auth: bool) -> None:
    """Serve the instance's files to any SSH client's sftp, one connection of ours for each of theirs."""
    import threading

    import paramiko

    from flexd.cli.ssh_server import SftpDoor

    host, _, port = address.rpartition(":")
    if not port.isdigit():
        raise CliError(f'Invalid address "{address}": expected ADDRESS:PORT')
    key = paramiko.ECDSAKey.generate()
    name, password = _credentials(user, no_auth)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host.strip("[]"), int(port)), family=family) as server:
        print(f"SSH SFTP listening on {address}", flush=True)
        if not no_auth:
            print(f'Login with username "{name}" and password "{password}"', flush=True)
        while True:
            peer, _ = server.accept()
            door = SftpDoor(lambda: open_sftp(client, instance), name, password)
            threading.Thread(target=_serve, args=(peer, key, door), daemon=True).start()


def _credentials(user: str, no_auth: bool) -> tuple[str, str]:
    import secrets

    return ("", "") if no_auth else (user or secrets.token_hex(4), secrets.token_urlsafe(12))


def _serve(peer: socket.socket, key: object, door: object) -> None:
    import paramiko

    transport = paramiko.Transport(peer)
    transport.add_server_key(key)  # type: ignore[arg-type]
    try:
        transport.start_server(server=door)  # type: ignore[arg-type]
        if transport.accept(_LOGIN_TIMEOUT_S) is not None:
            transport.join()
    except (paramiko.SSHException, OSError, EOFError) as error:
        print(f"SSH client lost: {error}", file=sys.stderr)
    finally:
        transport.close()
