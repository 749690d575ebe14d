# SPDX-License-Identifier: Apache-2.0
"""Which signal asks an init to power off. LXD sends SIGPWR to all but systemd; other inits have their own."""

import os
import re
import signal
from pathlib import Path

# systemd(1): SIGRTMIN+3 halts. busybox init and s6-linux-init: SIGUSR2 powers off. openrc-init: SIGINT reboots, and is
# all that its first versions know; who was asked to stop and reboots is not started again. runit(8) looks at a file
# when it gets SIGCONT, so it gets SIGPWR like sysvinit (init(8)) and upstart.
_BY_PROGRAM = {
    "systemd": signal.SIGRTMIN + 3,
    "busybox": signal.SIGUSR2,
    "openrc-init": signal.SIGINT,
    "s6-svscan": signal.SIGUSR2,
    "dinit": signal.SIGTERM,
    "tini": signal.SIGTERM,
    "dumb-init": signal.SIGTERM,
    "catatonit": signal.SIGTERM,
}
_DEFAULT = signal.SIGPWR

_REALTIME = re.compile(r"SIGRT(MIN|MAX)(?:([+-])(\d+))?")


def signal_number(text: str) -> int:
    """`SIGPWR`, `SIGRTMIN+3` or a number, as `lxc.signal.halt` takes them; `ValueError` for anything else."""
    if text.isdigit():
        return int(text)
    realtime = _REALTIME.fullmatch(text)
    if realtime:
        base = signal.SIGRTMIN if realtime[1] == "MIN" else signal.SIGRTMAX
        offset = int(realtime[3] or 0)
        return base + (-offset if realtime[2] == "-" else offset)
    try:
        return signal.Signals[text]
    except KeyError:
        raise ValueError(f"{text!r} is not a signal") from None


def program_signal(executable: str) -> int:
    """For the path of init's program, which an upgrade may have replaced (` (deleted)`, proc_pid_exe(5))."""
    return int(_BY_PROGRAM.get(Path(executable.removesuffix(" (deleted)")).name, _DEFAULT))


def configured_signal(config: str) -> int | None:
    """What the configuration that the container was started with says; the last line wins."""
    values = re.findall(r"^\s*lxc\.signal\.halt\s*=\s*(\S+)\s*$", config, re.MULTILINE)
    return signal_number(values[-1]) if values else None


def choose_signal(config: Path, init: int) -> int:
    """Blocking: reads the configuration and `/proc/INIT/exe`."""
    try:
        configured = configured_signal(config.read_text())
    except (OSError, ValueError):
        configured = None
    if configured is not None:
        return configured
    try:
        return program_signal(os.readlink(f"/proc/{init}/exe"))
    except OSError:
        return int(_DEFAULT)
