# SPDX-License-Identifier: Apache-2.0
"""Programs that a fake container runs: real ones, in a directory that stands for its root."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

Program = subprocess.Popen[bytes]


def start_program(
    argv: Sequence[str], *, stdio: tuple[int, int, int], env: Mapping[str, str], cwd: Path, terminal: bool
) -> Program:
    """`terminal`: stdin is one, and becomes the controlling one, as liblxc does. Blocking."""
    words = [Path(argv[0]).name, *argv[1:]]
    return subprocess.Popen(
        ["setsid", "--ctty", "--wait", *words] if terminal else words,
        stdin=stdio[0],
        stdout=stdio[1],
        stderr=stdio[2],
        env=dict(env),
        cwd=cwd,
        # setsid(1) makes the session itself; started as the leader of one it would fork, and have another pid.
        start_new_session=not terminal,
    )
