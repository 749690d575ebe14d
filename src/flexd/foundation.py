# SPDX-License-Identifier: Apache-2.0
"""What a daemon stands on before it has instances: trust, projects, storage, networks, images, devices.

The first half of the composition root (`daemon.py`), which alone uses it.
"""

from pathlib import Path

from flexd.api.times import now
from flexd.api.units import is_true
from flexd.devices.contract import Parts
from flexd.devices.devices import Devices
from flexd.devices.hotplug import Hotplug
from flexd.devices.keeper import Keeper
from flexd.host.contract import Host
from flexd.images.images import Images
from flexd.images.upkeep import Upkeep
from flexd.instances.project_rules import ProjectRules
from flexd.instances.registry import Registry
from flexd.network.networks import Networks
from flexd.operations.events import Events
from flexd.operations.journal import Journal
from flexd.operations.locks import Locks
from flexd.operations.operations import Operations
from flexd.place import daemon_id
from flexd.projects.projects import Projects
from flexd.runtime.contract import Runtime
from flexd.server.config import ServerConfig
from flexd.server.connections import Connections
from flexd.server.identity import Identity
from flexd.server.listeners import Listeners
from flexd.server.network_keys import TRUST_CA
from flexd.server.projects import ProjectService
from flexd.server.tokens import Tokens
from flexd.server.trust import Certificates
from flexd.storage.pools import Pools
from flexd.storage.volume_snapshots import VolumeSnapshots
from flexd.storage.volumes import Volumes
from flexd.store.mirror import StoreMirror
from flexd.store.sqlite import SqliteStore


class Foundation:
    def __init__(
        self,
        directory: Path,
        *,
        host: Host,
        runtime: Runtime,
        store: SqliteStore,
        mirror: StoreMirror,
        journal: Journal,
        events: Events,
        identity: Identity,
    ) -> None:
        self.directory = directory
        self._identity = identity
        self._host = host
        self._store = store
        self._mirror = mirror
        self.runtime = runtime
        self.journal = journal
        self.events = events
        self.operations = Operations(events)
        self.config = ServerConfig(mirror, events)
        self._locks = locks = Locks()
        self.projects = Projects(mirror, locks)
        self._compose_trust(mirror)
        self._compose_storage(locks)
        self._compose_networks_and_images(locks)
        self._hotplug = Hotplug(host)
        self._keeper = Keeper()
        parts = Parts(host, self.pools, self.networks, runtime, self._hotplug, self._keeper, daemon_id(directory))
        self.devices = Devices(parts)
        self.registry = Registry(mirror, self.projects)
        self._compose_projects()

    def _compose_networks_and_images(self, locks: Locks) -> None:
        self.networks = Networks(
            host=self._host,
            mirror=self._mirror,
            projects=self.projects,
            locks=locks,
            events=self.events,
            directory=self.directory / "networks",
        )
        self.images = Images(
            host=self._host,
            mirror=self._mirror,
            journal=self.journal,
            operations=self.operations,
            locks=locks,
            events=self.events,
            directory=self.directory / "images",
            delete_unpacked=self.pools.delete_image,
            projects=self.projects,
            settings=self.config.get,
        )
        self.upkeep = Upkeep(images=self.images, operations=self.operations, setting=self._setting, started_at=now())

    def _setting(self, project: str, key: str) -> str:
        """What a project sets comes before what the server does."""
        return self.projects.value(project, key) or self.config.get(key)

    def _compose_projects(self) -> None:
        self.rules = ProjectRules(
            projects=self.projects,
            registry=self.registry,
            volumes=self.volumes.of_project,
            images=self.images.of_project,
            networks=self.networks.names,
        )
        self.volumes.set_check(self.rules.check_volume)
        self.images.set_check(self.rules.check_image)
        self.networks.set_check(self.rules.check_network)
        self.project_service = ProjectService(
            projects=self.projects,
            rules=self.rules,
            registry=self.registry,
            images=self.images,
            networks=self.networks,
            pools=self.pools,
            volumes=self.volumes,
            certificates=self.certificates,
            operations=self.operations,
            events=self.events,
        )

    def _compose_storage(self, locks: Locks) -> None:
        mirror, journal, events = self._mirror, self.journal, self.events
        self.pools = Pools(
            host=self._host,
            mirror=mirror,
            journal=journal,
            locks=locks,
            events=events,
            directory=self.directory / "storage-pools",
        )
        self.volumes = Volumes(
            pools=self.pools,
            projects=self.projects,
            mirror=mirror,
            journal=journal,
            operations=self.operations,
            locks=locks,
            events=events,
        )
        self.volume_snapshots = VolumeSnapshots(
            volumes=self.volumes,
            pools=self.pools,
            projects=self.projects,
            mirror=mirror,
            journal=journal,
            operations=self.operations,
            locks=locks,
        )

    def _compose_trust(self, mirror: StoreMirror) -> None:
        """Who may come in over the network, and where."""
        self.certificates = Certificates(
            mirror,
            self.events,
            projects=self.projects,
            authority=lambda: self._identity.authority,
            signature_suffices=lambda: is_true(self.config.get(TRUST_CA)),
        )
        self.connections = Connections(self.certificates.is_trusted)
        self.certificates.on_loss(self.connections.drop)
        self.listeners = Listeners(self._identity, self.connections, self._host.links, self.config.get)
        self.config.guard(self.listeners.changing)
        self.tokens = Tokens(self.operations)
