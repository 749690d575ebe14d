# SPDX-License-Identifier: Apache-2.0
"""Log files over several runs, and what of them goes into an error."""

from pathlib import Path

import pytest

from flexd.runtime.logs import Logs
from flexd.runtime.paths import ContainerPaths


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    paths = ContainerPaths("c1", tmp_path / "containers", tmp_path / "logs")
    paths.logs.mkdir(parents=True)
    return Logs(paths)


def test_a_new_run_keeps_the_log_of_the_one_before(logs: Logs) -> None:
    logs.paths.log.write_text("first")
    logs.paths.console_log.write_text("console")
    logs.paths.old_console_log.write_text("older console")
    logs.begin()
    assert logs.paths.old_log.read_text() == "first"
    assert not logs.paths.log.exists()
    assert logs.console() == b""


def test_the_console_is_read_across_the_rotation(logs: Logs) -> None:
    logs.paths.old_console_log.write_bytes(b"one ")
    logs.paths.console_log.write_bytes(b"two")
    assert logs.console() == b"one two"


def test_last_words_are_errors_and_the_console(logs: Logs) -> None:
    logs.paths.log.write_text("lxc-start c1 1 WARN a - odd\nlxc-start c1 1 ERROR b - broken\n")
    logs.paths.console_log.write_bytes(b"\r\nExiting PID 1...\r\n\xff")
    words = logs.last_words("said")
    assert "broken" in words
    assert "odd" not in words
    assert "Exiting PID 1..." in words


def test_last_words_without_a_log_are_what_the_program_said(logs: Logs) -> None:
    assert logs.last_words("lxc-start: no") == "; log: lxc-start: no"
    assert logs.last_words("") == ""


def test_only_the_end_of_a_long_log_is_told(logs: Logs) -> None:
    logs.paths.log.write_text("".join(f"x ERROR number{n}\n" for n in range(1000)))
    words = logs.last_words("")
    assert "number999" in words
    assert "number900" not in words


def test_notes_are_appended(logs: Logs) -> None:
    logs.note("one")
    logs.note("two")
    assert logs.paths.log.read_text() == "flexd c1 one\nflexd c1 two\n"
