# SPDX-License-Identifier: Apache-2.0
"""Which signal powers an init off."""

import os
import signal
from pathlib import Path

import pytest

from flexd.runtime.init_signals import choose_signal, configured_signal, program_signal, signal_number


@pytest.mark.parametrize(
    ("executable", "expected"),
    [
        ("/usr/lib/systemd/systemd", signal.SIGRTMIN + 3),
        ("/usr/lib/systemd/systemd (deleted)", signal.SIGRTMIN + 3),
        ("/bin/busybox", signal.SIGUSR2),
        ("/sbin/init", signal.SIGPWR),
        ("/sbin/upstart", signal.SIGPWR),
        ("/sbin/runit", signal.SIGPWR),
    ],
)
def test_by_program(executable: str, expected: int) -> None:
    assert program_signal(executable) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SIGPWR", signal.SIGPWR),
        ("30", 30),
        ("SIGRTMIN", signal.SIGRTMIN),
        ("SIGRTMIN+4", signal.SIGRTMIN + 4),
        ("SIGRTMAX-2", signal.SIGRTMAX - 2),
    ],
)
def test_signal_names(text: str, expected: int) -> None:
    assert signal_number(text) == expected


@pytest.mark.parametrize("text", ["", "PWR", "SIGNOTHING", "SIGRTMIN+", "-1"])
def test_what_is_no_signal(text: str) -> None:
    with pytest.raises(ValueError, match="is not a signal"):
        signal_number(text)


def test_the_last_configured_line_wins() -> None:
    assert configured_signal("lxc.signal.halt = SIGUSR1\nlxc.signal.halt=SIGUSR2\n") == signal.SIGUSR2
    assert configured_signal("lxc.uts.name = lxc.signal.halt\n") is None


def test_configuration_comes_before_the_program(tmp_path: Path) -> None:
    config = tmp_path / "lxc.conf"
    config.write_text("lxc.signal.halt = SIGUSR1\n")
    assert choose_signal(config, os.getpid()) == signal.SIGUSR1
    config.write_text("lxc.signal.halt = nonsense\n")
    assert choose_signal(config, os.getpid()) == signal.SIGPWR
    assert choose_signal(tmp_path / "none", 2**22 + 1) == signal.SIGPWR
