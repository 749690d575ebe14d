# SPDX-License-Identifier: Apache-2.0
"""The documents of instances and profiles, and how an instance's own settings and its profiles' become one."""

from collections.abc import Iterable, Mapping
from datetime import datetime

from msgspec import Struct, field

from flexd.api.errors import NotFound
from flexd.api.times import ZERO_TIME
from flexd.backups.shelf import ShelvedBackup
from flexd.devices.kinds.disk import is_root
from flexd.storage.contract import VolumeRef

Config = dict[str, str]
DeviceEntries = dict[str, dict[str, str]]


class InstanceNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("Instance not found")


class SnapshotNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("Instance snapshot not found")


class ProfileNotFound(NotFound):
    def __init__(self, name: str) -> None:
        super().__init__(f'Profile "{name}" not found')


class Attached(Struct, frozen=True):
    """A device as a container runs with it: the entry and `volatile.DEVICE.*` of when it was plugged in. What was set
    up so is taken down so, whatever the configuration says by then."""

    entry: dict[str, str]
    volatile: Config


class InstanceRecord(Struct):
    """The document `/instances/PROJECT/NAME`. `config` holds `volatile.*` too; `pool` is the root volume's; `attached`
    is of the current or last run; `metadata` names what it keeps of its image (`metadata.py`)."""

    name: str
    project: str = "default"
    type: str = "container"
    architecture: str = "x86_64"
    description: str = ""
    ephemeral: bool = False
    profiles: list[str] = field(default_factory=list)
    config: Config = field(default_factory=dict)
    devices: DeviceEntries = field(default_factory=dict)
    pool: str = ""
    created_at: datetime = ZERO_TIME
    last_used_at: datetime = ZERO_TIME
    attached: dict[str, Attached] = field(default_factory=dict)
    metadata: str = ""
    stateful: bool = False  # stopped with its state, from which it can start

    @property
    def storage_name(self) -> str:
        """The name on pools, in logs and in liblxc: prefixed outside the default project, as LXD does."""
        return self.name if self.project == "default" else f"{self.project}_{self.name}"

    @property
    def volume(self) -> VolumeRef:
        return VolumeRef(self.pool, "container", self.storage_name)

    @property
    def url(self) -> str:
        return instance_url(self.project, self.name)

    @property
    def still_key(self) -> str:
        """The lock of whoever takes the volume away or puts something else in it, and of whoever reads it for long.
        Named so that it comes before the instance's own (`Locks.hold_all`)."""
        return f"backup/{self.project}/{self.name}"

    @property
    def root_key(self) -> str:
        """The lock of whoever mounts or unmounts the root: a start, what follows an end, files of a stopped one."""
        return f"root/{self.project}/{self.name}"


class SnapshotRecord(Struct):
    """The document `/instance-snapshots/PROJECT/INSTANCE/NAME`: what the instance was when it was taken."""

    name: str
    instance: InstanceRecord
    created_at: datetime = ZERO_TIME
    expires_at: datetime = ZERO_TIME
    stateful: bool = False

    @property
    def url(self) -> str:
        base, _, query = self.instance.url.partition("?")
        return f"{base}/snapshots/{self.name}" + (f"?{query}" if query else "")


class BackupRecord(ShelvedBackup):
    """The document `/instance-backups/PROJECT/INSTANCE/NAME`."""

    instance_only: bool = False
    optimized_storage: bool = False


class ProfileRecord(Struct):
    """The document `/profiles/PROJECT/NAME`."""

    name: str
    project: str = "default"
    description: str = ""
    config: Config = field(default_factory=dict)
    devices: DeviceEntries = field(default_factory=dict)


class Expanded(Struct, frozen=True):
    """An instance's settings with its profiles' underneath; later profiles win, the instance wins over all."""

    config: Config
    devices: DeviceEntries

    def root(self) -> tuple[str, dict[str, str]] | None:
        """Name and entry of the root disk."""
        return next(((name, entry) for name, entry in self.devices.items() if is_root(entry)), None)


def expand(profiles: Iterable[ProfileRecord], config: Mapping[str, str], devices: DeviceEntries) -> Expanded:
    """Merge as LXD does: configuration key by key, devices by name and whole."""
    all_config: Config = {}
    all_devices: DeviceEntries = {}
    for profile in profiles:
        all_config.update(profile.config)
        all_devices.update(profile.devices)
    all_config.update(config)
    all_devices.update(devices)
    return Expanded(all_config, all_devices)


def instance_url(project: str, name: str) -> str:
    """The instance's place in the API, as `used_by` and events give it."""
    suffix = "" if project == "default" else f"?project={project}"
    return f"/1.0/instances/{name}{suffix}"


def device_volatile(config: Mapping[str, str], device: str) -> Config:
    """The `volatile.DEVICE.*` keys of a configuration, without that prefix."""
    prefix = f"volatile.{device}."
    return {key[len(prefix) :]: value for key, value in config.items() if key.startswith(prefix)}


def attached_devices(config: Config, devices: DeviceEntries) -> dict[str, Attached]:
    """What a container that starts now is started with."""
    return {name: Attached(entry, device_volatile(config, name)) for name, entry in devices.items()}
