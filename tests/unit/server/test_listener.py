# SPDX-License-Identifier: Apache-2.0
"""The unix socket, and sockets from systemd."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from flexd.api.errors import Conflict
from flexd.server.listener import close_unix, inherited, open_unix


async def test_the_socket_is_for_root_and_one_group(tmp_path: Path) -> None:
    path = tmp_path / "unix.socket"
    listener = await open_unix(path, "root")
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    await close_unix(listener, path)
    assert not path.exists()


async def test_without_the_group_only_root_may_connect(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "unix.socket"
    listener = await open_unix(path, "no-such-group")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "no-such-group" in caplog.text
    listener.close()


async def test_a_dead_daemons_socket_is_replaced_and_a_living_ones_is_not(tmp_path: Path) -> None:
    path = tmp_path / "unix.socket"
    (await open_unix(path, "root")).close()
    living = await open_unix(path, "root")
    with pytest.raises(Conflict, match="another daemon answers there"):
        await open_unix(path, "root")
    living.close()


def test_variables_for_another_process_are_ignored_and_removed() -> None:
    environment = {"LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x", "PATH": "/bin"}
    assert inherited(environment) == []
    assert environment == {"PATH": "/bin"}


def test_nothing_is_inherited_without_systemd() -> None:
    assert inherited({}) == []


def test_sockets_of_systemd_are_taken(tmp_path: Path) -> None:
    """In a process of its own, as the file descriptor must be number 3."""
    path = tmp_path / "s"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    program = (
        f"import os; os.dup2({listener.fileno()}, 3)\n"
        "from flexd.server.listener import inherited\n"
        "found = inherited({'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1'})\n"
        "print(*(s.getsockname() for s in found), *(s.get_inheritable() for s in found))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, pass_fds=[listener.fileno()], env=environment, capture_output=True, check=True)
    assert done.stdout.decode().split() == [str(path), "False"]
    listener.close()
