# SPDX-License-Identifier: Apache-2.0
"""An SSH server with nothing behind it but an instance's SFTP."""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable

import paramiko
from paramiko.common import (
    AUTH_FAILED,
    AUTH_SUCCESSFUL,
    OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED,
    OPEN_SUCCEEDED,
)

from flexd.client.connection import Wire
from flexd.client.errors import ClientError

_PIECE_BYTES = 32 * 1024


class SftpDoor(paramiko.ServerInterface):
    """One caller: a password (or none, if the name is empty), then the subsystem sftp and nothing else."""

    def __init__(self, open_wire: Callable[[], Wire], user: str, password: str) -> None:
        self._open_wire = open_wire
        self._user = user
        self._password = password

    def get_allowed_auths(self, username: str) -> str:  # noqa: ARG002
        return "password" if self._user else "none,password"

    def check_auth_none(self, username: str) -> int:  # noqa: ARG002
        return AUTH_FAILED if self._user else AUTH_SUCCESSFUL

    def check_auth_password(self, username: str, password: str) -> int:
        if not self._user:
            return AUTH_SUCCESSFUL
        right = hmac.compare_digest(username.encode(), self._user.encode())
        right &= hmac.compare_digest(password.encode(), self._password.encode())
        return AUTH_SUCCESSFUL if right else AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:  # noqa: ARG002
        return OPEN_SUCCEEDED if kind == "session" else OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        if name != "sftp":
            return False
        try:
            wire = self._open_wire()
        except ClientError:
            return False
        threading.Thread(target=_to_instance, args=(channel, wire), daemon=True).start()
        threading.Thread(target=_to_caller, args=(channel, wire), daemon=True).start()
        return True


def _to_instance(channel: paramiko.Channel, wire: Wire) -> None:
    try:
        while data := channel.recv(_PIECE_BYTES):
            wire.sock.sendall(data)
    except OSError:
        pass  # one side has gone; so does the other, below
    finally:
        wire.close()
        channel.close()


def _to_caller(channel: paramiko.Channel, wire: Wire) -> None:
    try:
        channel.sendall(wire.take(len(wire.buffer)))
        while data := wire.sock.recv(_PIECE_BYTES):
            channel.sendall(data)
    except OSError:
        pass  # as above
    finally:
        wire.close()
        channel.close()
