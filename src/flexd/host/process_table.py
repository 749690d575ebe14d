# SPDX-License-Identifier: Apache-2.0
"""Telling processes apart by `/proc/PID/stat`."""

from pathlib import Path

from flexd.host.contract import ProcessRef


def parse_stat(text: str) -> tuple[str, int]:
    """(state, start time in ticks since boot) of `/proc/PID/stat` (proc_pid_stat(5) fields 3 and 22)."""
    # The name in field 2 may itself hold blanks and parentheses.
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def identify(pid: int) -> ProcessRef | None:
    """Blocking."""
    try:
        state, start_time = parse_stat(Path(f"/proc/{pid}/stat").read_text(errors="replace"))
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else ProcessRef(pid, start_time)
