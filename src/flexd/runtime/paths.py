# SPDX-License-Identifier: Apache-2.0
"""Where the runtime keeps its files: run-time state below one directory, logs below another."""

import hashlib
from pathlib import Path

from msgspec import Struct


class ContainerPaths(Struct, frozen=True):
    """The files of one container. `state` is empty while it does not run, save for `target`."""

    name: str
    directory: Path
    log_directory: Path

    @property
    def state(self) -> Path:
        return self.directory / self.name

    @property
    def target(self) -> Path:
        """Written by the stop hook: "stop" or "reboot"."""
        return self.state / "target"

    @property
    def monitor_pid(self) -> Path:
        """Written by liblxc when its monitor starts, so that a failed start can wait for it."""
        return self.state / "monitor.pid"

    @property
    def logs(self) -> Path:
        return self.log_directory / self.name

    @property
    def config(self) -> Path:
        return self.logs / "lxc.conf"

    @property
    def restore_config(self) -> Path:
        """`config` as a restored container's monitor reads it."""
        return self.state / "restore.conf"

    @property
    def console(self) -> Path:
        """Which descriptor of its monitor holds a restored container's console."""
        return self.state / "console.json"

    @property
    def units(self) -> Path:
        """What systemd in containers fit for migration reads before its own units; shared by all of the daemon's."""
        return self.directory / ".units"

    @property
    def log(self) -> Path:
        return self.logs / "lxc.log"

    @property
    def old_log(self) -> Path:
        return self.logs / "lxc.log.old"

    @property
    def console_log(self) -> Path:
        return self.logs / "console.log"

    @property
    def old_console_log(self) -> Path:
        """Where liblxc moves the log when it has reached its size (`lxc.console.rotate`)."""
        return self.logs / "console.log.1"

    @property
    def group_prefix(self) -> str:
        return group_prefix(self.directory)

    @property
    def payload_group(self) -> str:
        return f"{self.group_prefix}/lxc.payload.{self.name}"

    @property
    def monitor_group(self) -> str:
        return f"{self.group_prefix}/lxc.monitor.{self.name}"

    @property
    def pivot_group(self) -> str:
        """Where the monitor goes to be able to remove its own cgroup; shared by all containers of the daemon."""
        return f"{self.group_prefix}/lxc.pivot"


def group_prefix(directory: Path) -> str:
    """The cgroup above all containers of one daemon. liblxc's own names do not tell two daemons apart."""
    return f"flexd-{hashlib.sha256(str(directory).encode()).hexdigest()[:8]}"
