# SPDX-License-Identifier: Apache-2.0
"""What making and restoring backups of volumes have in common."""

from dataclasses import dataclass
from pathlib import Path

from flexd.host.contract import Host
from flexd.operations.events import Events
from flexd.operations.journal import Journal
from flexd.operations.locks import Locks
from flexd.operations.operations import Operations
from flexd.projects.projects import Projects
from flexd.storage.contract import VolumeRecord
from flexd.storage.pools import Pools
from flexd.storage.volumes import Volumes
from flexd.store.documents import Documents, Mirror


@dataclass(frozen=True)
class Parts:
    """Parts of the daemon. `directory`: of the files, those on their way in as well."""

    host: Host
    volumes: Volumes
    pools: Pools
    projects: Projects
    mirror: Mirror
    journal: Journal
    operations: Operations
    locks: Locks
    events: Events
    directory: Path

    @property
    def records(self) -> Documents[VolumeRecord]:
        return Documents(self.mirror, "storage-volumes", VolumeRecord)
