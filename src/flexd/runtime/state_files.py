# SPDX-License-Identifier: Apache-2.0
"""The files of a container's runs: its configuration, why the last one ended, who its monitor is. Blocking."""

import os
import shutil
from pathlib import Path

from flexd.runtime.logs import Logs
from flexd.runtime.paths import ContainerPaths
from flexd.runtime.units import write_units


def write_state(paths: ContainerPaths, config: str) -> bool:
    """Before a start; False if the run before did not end as it should. The configuration holds the environment, so it
    is root's alone, like the logs."""
    clean = paths.target.exists() or not paths.state.exists()
    paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    paths.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    paths.target.unlink(missing_ok=True)
    paths.monitor_pid.unlink(missing_ok=True)
    paths.console.unlink(missing_ok=True)
    write_units(paths.units)
    Logs(paths).begin()
    descriptor = os.open(paths.config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(config)
    return clean


def read_target(paths: ContainerPaths) -> str:
    """What the stop hook wrote; "" if the monitor was killed before it could run it."""
    try:
        return paths.target.read_text()
    except FileNotFoundError:
        return ""


def read_pid(path: Path) -> int:
    """0 (no process) if liblxc did not come as far as its monitor."""
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return 0


def remove_state(paths: ContainerPaths) -> None:
    Logs(paths).remove()
    if paths.state.is_dir():
        shutil.rmtree(paths.state)


def rename_state(old: ContainerPaths, new: ContainerPaths) -> None:
    """The run-time directory holds nothing worth keeping between two runs."""
    remove_state(new)
    if old.logs.is_dir():
        old.logs.rename(new.logs)
        new.config.unlink(missing_ok=True)
    remove_state(old)
