# SPDX-License-Identifier: Apache-2.0
"""What the routes call; `daemon.py` fills it once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flexd.api.keys import Key
from flexd.backups.volume_import import VolumeImport
from flexd.backups.volumes import VolumeBackups
from flexd.host.contract import Host
from flexd.images.images import Images
from flexd.instances.backup_import import BackupImport
from flexd.instances.backups import Backups
from flexd.instances.console import Console
from flexd.instances.exec import Exec
from flexd.instances.files import Files
from flexd.instances.instances import Instances
from flexd.instances.lifecycle import Lifecycle
from flexd.instances.logs import Logs
from flexd.instances.metadata import Metadata
from flexd.instances.migration.handovers import Handovers
from flexd.instances.migration.source import MigrationSource
from flexd.instances.migration.volumes import VolumeMigration
from flexd.instances.ports import PortList
from flexd.instances.profiles import Profiles
from flexd.instances.publish import Publishing
from flexd.instances.rebuild import Rebuild
from flexd.instances.snapshots import Snapshots
from flexd.instances.state import States
from flexd.network.networks import Networks
from flexd.operations.events import Events
from flexd.operations.operations import Operations
from flexd.projects.projects import Projects
from flexd.server.config import ServerConfig
from flexd.server.connections import Connections
from flexd.server.environment import Environment
from flexd.server.identity import Identity
from flexd.server.listeners import Listeners
from flexd.server.password import Guesses
from flexd.server.projects import ProjectService
from flexd.server.tokens import Tokens
from flexd.server.trust import Certificates
from flexd.server.warnings import Warnings
from flexd.storage.pools import Pools
from flexd.storage.volume_snapshots import VolumeSnapshots
from flexd.storage.volumes import Volumes


@dataclass(frozen=True)
class Services:
    """`configuration` is what `/1.0/metadata/configuration` shows: entity ("instance", "network-bridge") -> rows."""

    host: Host
    operations: Operations
    events: Events
    instances: Instances
    lifecycle: Lifecycle
    states: States
    exec: Exec
    console: Console
    files: Files
    logs: Logs
    backups: Backups
    backup_import: BackupImport
    volume_backups: VolumeBackups
    volume_import: VolumeImport
    metadata: Metadata
    rebuild: Rebuild
    migration_source: MigrationSource
    volume_migration: VolumeMigration
    handovers: Handovers
    publishing: Publishing
    profiles: Profiles
    snapshots: Snapshots
    projects: Projects
    project_service: ProjectService
    ports: PortList
    warnings: Warnings
    images: Images
    networks: Networks
    pools: Pools
    volumes: Volumes
    volume_snapshots: VolumeSnapshots
    config: ServerConfig
    environment: Environment
    identity: Identity
    listeners: Listeners
    connections: Connections
    certificates: Certificates
    tokens: Tokens
    guesses: Guesses
    configuration: Mapping[str, Sequence[Key]] = field(default_factory=dict)
