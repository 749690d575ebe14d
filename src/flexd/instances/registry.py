# SPDX-License-Identifier: Apache-2.0
"""Reading instances and profiles: lookups with LXD's errors, expansion, and the answers of the API."""

from collections.abc import Iterable, Sequence

from flexd.api.instance import Instance
from flexd.api.instance_backup import InstanceBackup
from flexd.api.instance_snapshot import InstanceSnapshot
from flexd.api.profile import Profile
from flexd.api.times import ZERO_TIME
from flexd.instances.record import (
    BackupRecord,
    DeviceEntries,
    Expanded,
    InstanceNotFound,
    InstanceRecord,
    ProfileNotFound,
    ProfileRecord,
    SnapshotNotFound,
    SnapshotRecord,
    expand,
)
from flexd.projects.projects import Projects
from flexd.projects.record import project_query
from flexd.store.documents import Document, Documents, Mirror

STATUS_CODES = {"Stopped": 102, "Running": 103, "Frozen": 110, "Error": 112, "Ready": 113}


class Registry:
    """Documents of instances and profiles; every read is from memory. A project's profiles are its own, or those of
    `default`: whoever names a profile names a project that uses it."""

    def __init__(self, mirror: Mirror, projects: Projects) -> None:
        self._projects = projects
        self.instances = Documents(mirror, "instances", InstanceRecord)
        self.profiles = Documents(mirror, "profiles", ProfileRecord)
        self.snapshots = Documents(mirror, "instance-snapshots", SnapshotRecord)
        self.backups = Documents(mirror, "instance-backups", BackupRecord)

    def find(self, project: str, name: str) -> Document[InstanceRecord]:
        document = self.instances.get(project, name)
        if document is None:
            raise InstanceNotFound
        return document

    def instance(self, project: str, name: str) -> InstanceRecord:
        return self.find(project, name).value

    def find_snapshot(self, project: str, name: str, snapshot: str) -> Document[SnapshotRecord]:
        document = self.snapshots.get(project, name, snapshot)
        if document is None:
            raise SnapshotNotFound
        return document

    def snapshots_of(self, record: InstanceRecord) -> list[SnapshotRecord]:
        """Oldest first."""
        found = [document.value for document in self.snapshots.list(record.project, record.name)]
        return sorted(found, key=lambda snapshot: (snapshot.created_at, snapshot.name))

    def backups_of(self, record: InstanceRecord) -> list[BackupRecord]:
        """Oldest first."""
        found = [document.value for document in self.backups.list(record.project, record.name)]
        return sorted(found, key=lambda backup: (backup.created_at, backup.name))

    def all_instances(self, project: str | None = None) -> list[InstanceRecord]:
        documents = self.instances.list() if project is None else self.instances.list(project)
        return [document.value for document in documents]

    def find_profile(self, project: str, name: str) -> Document[ProfileRecord]:
        document = self.profiles.get(self._projects.owner(project, "profiles"), name)
        if document is None:
            raise ProfileNotFound(name)
        return document

    def has_profile(self, project: str, name: str) -> bool:
        return self.profiles.get(self._projects.owner(project, "profiles"), name) is not None

    def expand(self, record: InstanceRecord) -> Expanded:
        return self.expand_with(record.project, record.profiles, record.config, record.devices)

    def expand_with(
        self, project: str, profiles: Sequence[str], config: dict[str, str], devices: DeviceEntries
    ) -> Expanded:
        """`ProfileNotFound` if a profile of the list is not there."""
        found = [self.find_profile(project, name).value for name in profiles]
        return expand(found, config, devices)

    def expand_past(self, record: InstanceRecord) -> Expanded:
        """As `expand`, for what a snapshot kept: profiles that are gone meanwhile are left out."""
        known = [name for name in record.profiles if self.has_profile(record.project, name)]
        return self.expand_with(record.project, known, record.config, record.devices)

    def users_of_profile(self, project: str, name: str) -> list[InstanceRecord]:
        """`project`: the one whose profile it is."""
        sharing = self._projects.sharing(project, "profiles")
        return [record for each in sharing for record in self.all_instances(each) if name in record.profiles]

    def users_of_pool(self, pool: str) -> list[str]:
        """URLs of the instances and profiles that name a pool."""
        users = [record.url for record in self.all_instances() if record.pool == pool]
        for document in self.profiles.list():
            profile = document.value
            if any(entry.get("pool") == pool for entry in profile.devices.values()):
                users.append(profile_url(profile.project, profile.name))
        return users

    def users_of_volume(self, pool: str, project: str, name: str) -> list[str]:
        """URLs of the instances and profiles that attach a custom volume of a project."""

        def attaches(entries: DeviceEntries) -> bool:
            return any(entry.get("pool") == pool and entry.get("source") == name for entry in entries.values())

        users = []
        for each in self._projects.sharing(project, "storage.volumes"):
            users += [record.url for record in self.all_instances(each) if attaches(self.expand(record).devices)]
            profiles = [document.value for document in self.profiles.list(each)]
            users += [profile_url(each, profile.name) for profile in profiles if attaches(profile.devices)]
        return users


def profile_url(project: str, name: str) -> str:
    """A profile's place in the API."""
    return f"/1.0/profiles/{name}{project_query(project)}"


def show_instance(record: InstanceRecord, expanded: Expanded, status: str) -> Instance:
    """The instance as `GET /1.0/instances/NAME` shows it."""
    return Instance(
        name=record.name,
        project=record.project,
        type=record.type,
        architecture=record.architecture,
        description=record.description,
        ephemeral=record.ephemeral,
        profiles=record.profiles,
        config=record.config,
        devices=record.devices,
        expanded_config=expanded.config,
        expanded_devices=expanded.devices,
        created_at=record.created_at,
        last_used_at=record.last_used_at,
        location="none",
        stateful=record.stateful,
        status=status,
        status_code=STATUS_CODES[status],
    )


def show_snapshot(record: SnapshotRecord, expanded: Expanded) -> InstanceSnapshot:
    """The snapshot as the API shows it; `expanded` with today's profiles, as LXD does."""
    instance = record.instance
    return InstanceSnapshot(
        name=record.name,
        architecture=instance.architecture,
        config=instance.config,
        devices=instance.devices,
        ephemeral=instance.ephemeral,
        expanded_config=expanded.config,
        expanded_devices=expanded.devices,
        profiles=instance.profiles,
        created_at=record.created_at,
        expires_at=record.expires_at,
        last_used_at=ZERO_TIME,
        stateful=record.stateful,
        size=-1,
    )


def show_backup(record: BackupRecord) -> InstanceBackup:
    return InstanceBackup(
        name=record.name,
        created_at=record.created_at,
        expires_at=record.expires_at,
        instance_only=record.instance_only,
        container_only=record.instance_only,
        optimized_storage=record.optimized_storage,
    )


def show_profile(record: ProfileRecord, used_by: Iterable[str]) -> Profile:
    return Profile(
        name=record.name,
        project=record.project,
        description=record.description,
        config=record.config,
        devices=record.devices,
        used_by=list(used_by),
    )
