# SPDX-License-Identifier: Apache-2.0
"""The composition root: builds every object, passes each what it needs, starts and stops them in order.

The only module that imports everything; nothing imports it.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from flexd.api.errors import FlexdError
from flexd.backups.parts import Parts as VolumeParts
from flexd.backups.volume_import import VolumeImport
from flexd.backups.volumes import VolumeBackups
from flexd.configuration import configuration
from flexd.foundation import Foundation
from flexd.host.contract import Features, Host
from flexd.host.linux import LinuxHost
from flexd.host.terminals import LinuxTerminals, Terminals
from flexd.images.archive import Archives
from flexd.images.pack import Packer
from flexd.instances.actions import Actions
from flexd.instances.allocator import IdmapAllocator
from flexd.instances.backup_import import BackupImport
from flexd.instances.backups import Backups
from flexd.instances.confinement import Confinement
from flexd.instances.console import Console
from flexd.instances.creation import Creation
from flexd.instances.edits import Edits
from flexd.instances.exec import Exec
from flexd.instances.files import Files
from flexd.instances.fitness import SERVER_KEY, is_fit
from flexd.instances.guest import Guest
from flexd.instances.instances import Instances
from flexd.instances.lifecycle import Lifecycle
from flexd.instances.limiter import Limiter
from flexd.instances.logs import Logs
from flexd.instances.metadata import Metadata, MetadataDocuments
from flexd.instances.migration.arriving import Arriving
from flexd.instances.migration.handovers import Handovers
from flexd.instances.migration.rsync import Rsync
from flexd.instances.migration.sink import MigrationSink
from flexd.instances.migration.source import MigrationSource
from flexd.instances.migration.volumes import VolumeMigration
from flexd.instances.name_files import NameFiles
from flexd.instances.ports import PortList
from flexd.instances.profiles import Profiles
from flexd.instances.publish import Publishing
from flexd.instances.rebuild import Rebuild
from flexd.instances.resolve import Resolver
from flexd.instances.saving import Saving
from flexd.instances.snapshots import Snapshots
from flexd.instances.state import States
from flexd.instances.stills import Stills
from flexd.instances.templates import Templates
from flexd.instances.volume_users import VolumeUsers
from flexd.operations.events import EventLogHandler, Events
from flexd.operations.journal import Journal
from flexd.operations.locks import Locks
from flexd.operations.minutes import every_minute
from flexd.place import (
    GUEST_DIRECTORY,
    asked_to_stop,
    daemon_id,
    lock_directory,
    make_directories,
    noticed_reboot,
    parse_arguments,
    start_logging,
    tell_systemd,
)
from flexd.runtime.contract import Runtime
from flexd.runtime.lxc import LxcRuntime
from flexd.server.app import Server
from flexd.server.environment import Environment
from flexd.server.guest.server import GuestServer
from flexd.server.identity import Identity, MakeCertificate, make_apart, make_here
from flexd.server.listener import inherited, open_unix
from flexd.server.password import Guesses
from flexd.server.services import Services
from flexd.server.warnings import Warnings, broken_networks, broken_pools, lacking, outdated_revocations, unusable_criu
from flexd.store.mirror import StoreMirror
from flexd.store.sqlite import SqliteStore

log = logging.getLogger("flexd")


class Daemon(Foundation):
    """One daemon on one state directory. Tests build it with a fake host and runtime."""

    def __init__(
        self,
        directory: Path,
        *,
        host: Host,
        runtime: Runtime,
        terminals: Terminals,
        store: SqliteStore,
        mirror: StoreMirror,
        journal: Journal,
        features: Features,
        events: Events,
        identity: Identity,
    ) -> None:
        super().__init__(
            directory,
            host=host,
            runtime=runtime,
            store=store,
            mirror=mirror,
            journal=journal,
            events=events,
            identity=identity,
        )
        self._compose_instances(terminals, self._locks, features)
        sources = (
            partial(lacking, host.machine, runtime),
            partial(unusable_criu, host.criu),
            partial(broken_pools, self.pools),
            partial(broken_networks, self.networks),
            partial(outdated_revocations, identity.outdated_since),
        )
        self.warnings = Warnings(mirror=mirror, events=events, sources=sources)
        self._server: Server | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def _compose_instances(self, terminals: Terminals, locks: Locks, features: Features) -> None:
        """Everything of rank `instances`."""
        registry, runtime, events, operations = self.registry, self.runtime, self.events, self.operations
        mirror = self._mirror
        self.ports = PortList(registry, self.networks)
        limiter = Limiter(self._host)
        self.confinement = Confinement(
            host=self._host,
            registry=registry,
            directory=self.directory / "security",
            guest_directory=self.directory / GUEST_DIRECTORY,
            features=features,
            daemon_id=daemon_id(self.directory),
        )
        self.metadata_documents = MetadataDocuments(mirror, registry, self.images)
        self.metadata = Metadata(registry=registry, documents=self.metadata_documents, locks=locks, events=events)
        templates = Templates(registry=registry, documents=self.metadata_documents, runtime=runtime)
        actions = Actions(
            registry=registry,
            projects=self.projects,
            rules=self.rules,
            devices=self.devices,
            pools=self.pools,
            images=self.images,
            runtime=runtime,
            limiter=limiter,
            confinement=self.confinement,
            templates=templates,
            name_files=NameFiles(networks=self.networks, runtime=runtime),
            journal=self.journal,
            directory=self.directory / "devices",
        )
        allocator = IdmapAllocator(registry=registry, host=self._host)
        self.lifecycle = Lifecycle(
            registry=registry,
            devices=self.devices,
            actions=actions,
            runtime=runtime,
            ports=self.ports,
            allocator=allocator,
            limiter=limiter,
            saving=Saving(registry=registry, actions=actions, runtime=runtime, pools=self.pools),
            fit=self._is_fit,
            journal=self.journal,
            operations=operations,
            locks=locks,
            events=events,
        )
        resolver = Resolver(
            registry=registry,
            devices=self.devices,
            pools=self.pools,
            actions=actions,
            allocator=allocator,
            limiter=limiter,
            confinement=self.confinement,
            rules=self.rules,
            architectures=features.architectures,
        )
        self._compose_requests(terminals, locks, actions, limiter, resolver)

    async def _is_fit(self, config: Mapping[str, str]) -> bool:
        """Whether an instance that starts now is made fit for migration."""
        usable = (await self._host.criu.facts()).usable
        return is_fit(config, self.config.get(SERVER_KEY), usable)

    def _compose_snapshots(self, locks: Locks) -> None:
        self.snapshots = Snapshots(
            registry=self.registry,
            projects=self.projects,
            rules=self.rules,
            lifecycle=self.lifecycle,
            pools=self.pools,
            journal=self.journal,
            operations=self.operations,
            locks=locks,
            events=self.events,
        )

    def _compose_requests(
        self, terminals: Terminals, locks: Locks, actions: Actions, limiter: Limiter, resolver: Resolver
    ) -> None:
        """What the routes of instances call."""
        registry, events, operations = self.registry, self.events, self.operations
        self._compose_snapshots(locks)
        stills = Stills(registry=registry, lifecycle=self.lifecycle, pools=self.pools, locks=locks)
        sink = self._compose_migration(locks, resolver, stills)
        creation = Creation(
            registry=registry,
            projects=self.projects,
            resolver=resolver,
            pools=self.pools,
            images=self.images,
            metadata=self.metadata_documents,
            lifecycle=self.lifecycle,
            sink=sink,
            journal=self.journal,
            operations=operations,
            locks=locks,
            events=events,
        )
        self.rebuild = Rebuild(
            registry=registry,
            projects=self.projects,
            creation=creation,
            pools=self.pools,
            images=self.images,
            metadata=self.metadata_documents,
            lifecycle=self.lifecycle,
            journal=self.journal,
            operations=operations,
            locks=locks,
            events=events,
        )
        edits = self._compose_edits(locks, actions, limiter, resolver)
        self.instances = Instances(
            registry=registry,
            devices=self.devices,
            creation=creation,
            resolver=resolver,
            snapshots=self.snapshots,
            lifecycle=self.lifecycle,
            edits=edits,
            rules=self.rules,
            journal=self.journal,
            operations=operations,
            locks=locks,
            events=events,
        )
        self._compose_archives(locks, resolver, stills)
        self._compose_sessions(terminals, locks)

    def _compose_migration(self, locks: Locks, resolver: Resolver, stills: Stills) -> MigrationSink:
        """Copies and moves from and to other servers."""
        rsync = Rsync(self._host, self.directory / "images" / ".stage")
        self.handovers = Handovers(self._mirror, self.registry)
        self.arriving = Arriving(registry=self.registry, lifecycle=self.lifecycle, journal=self.journal, locks=locks)
        self.migration_source = MigrationSource(
            host=self._host,
            registry=self.registry,
            lifecycle=self.lifecycle,
            metadata=self.metadata_documents,
            stills=stills,
            operations=self.operations,
            lxd=rsync,
            pools=self.pools,
            locks=locks,
            handovers=self.handovers,
        )
        self.volume_migration = VolumeMigration(
            host=self._host,
            volumes=self.volumes,
            pools=self.pools,
            journal=self.journal,
            operations=self.operations,
            locks=locks,
            rsync=rsync,
        )
        return MigrationSink(
            host=self._host,
            registry=self.registry,
            resolver=resolver,
            lifecycle=self.lifecycle,
            pools=self.pools,
            images=self.images,
            metadata=self.metadata_documents,
            projects=self.projects,
            journal=self.journal,
            operations=self.operations,
            locks=locks,
            events=self.events,
            lxd=rsync,
            arriving=self.arriving,
        )

    def _compose_edits(self, locks: Locks, actions: Actions, limiter: Limiter, resolver: Resolver) -> Edits:
        """What changes instances that run, and the profiles that do so too."""
        edits = Edits(
            registry=self.registry,
            devices=self.devices,
            actions=actions,
            lifecycle=self.lifecycle,
            limiter=limiter,
            confinement=self.confinement,
            pools=self.pools,
            runtime=self.runtime,
            journal=self.journal,
            locks=locks,
            projects=self.projects,
            rules=self.rules,
        )
        self.profiles = Profiles(
            registry=self.registry,
            devices=self.devices,
            resolver=resolver,
            lifecycle=self.lifecycle,
            edits=edits,
            projects=self.projects,
            rules=self.rules,
            locks=locks,
            events=self.events,
        )
        return edits

    def _compose_archives(self, locks: Locks, resolver: Resolver, stills: Stills) -> None:
        """What makes files of instances, and instances of files."""
        registry = self.registry
        stage = self.directory / "images" / ".stage"
        packer = Packer(self._host, stage)
        self.publishing = Publishing(
            host=self._host,
            registry=registry,
            lifecycle=self.lifecycle,
            images=self.images,
            metadata=self.metadata_documents,
            stills=stills,
            packer=packer,
            setting=self._setting,
        )
        self.backups = Backups(
            host=self._host,
            registry=registry,
            projects=self.projects,
            pools=self.pools,
            metadata=self.metadata_documents,
            stills=stills,
            packer=packer,
            journal=self.journal,
            operations=self.operations,
            locks=locks,
            events=self.events,
            setting=self._setting,
            directory=self.directory / "backups",
        )
        self.backup_import = BackupImport(
            host=self._host,
            registry=registry,
            resolver=resolver,
            lifecycle=self.lifecycle,
            pools=self.pools,
            metadata=self.metadata_documents,
            archives=Archives(self._host, stage),
            journal=self.journal,
            operations=self.operations,
            locks=locks,
            events=self.events,
            directory=self.directory / "backups",
        )

        place, of = (
            self.directory / "volume-backups",
            (self._host, self.volumes, self.pools, self.projects, self._mirror),
        )
        parts = VolumeParts(*of, self.journal, self.operations, locks, self.events, place)
        self.volume_backups = VolumeBackups(parts, packer, self._setting)
        self.volume_import = VolumeImport(parts, Archives(self._host, stage))

    def _compose_sessions(self, terminals: Terminals, locks: Locks) -> None:
        """What reaches into containers."""
        registry, runtime, events, operations = self.registry, self.runtime, self.events, self.operations
        self.logs = Logs(registry=registry, runtime=runtime, directory=self.directory / "logs")
        self.exec = Exec(
            registry=registry,
            lifecycle=self.lifecycle,
            runtime=runtime,
            terminals=terminals,
            logs=self.logs,
            operations=operations,
            events=events,
        )
        self.console = Console(
            registry=registry,
            lifecycle=self.lifecycle,
            runtime=runtime,
            terminals=terminals,
            operations=operations,
            events=events,
        )
        self.guest = Guest(
            registry=registry,
            projects=self.projects,
            lifecycle=self.lifecycle,
            host=self._host,
            images=self.images,
            events=events,
        )
        self.guest_server = GuestServer(self.guest)
        self.lifecycle.saving.before_dump(self.guest_server.disconnect)
        self.files = Files(registry=registry, lifecycle=self.lifecycle, runtime=runtime, pools=self.pools, locks=locks)
        self.states = States(registry=registry, lifecycle=self.lifecycle, host=self._host, pools=self.pools)
        self.lifecycle.before_start(self.snapshots.at_start)
        self.pools.set_used_by(registry.users_of_pool)
        self.volumes.set_used_by(registry.users_of_volume)
        users = VolumeUsers(
            registry=registry,
            projects=self.projects,
            is_running=lambda record: self.lifecycle.running(record) is not None,
        )
        self.volumes.set_users(running=users.running, rewrite=users.rewrite)
        self.networks.set_used_by(self.ports.users_of)

    async def services(self) -> Services:
        """What the routes call; complete once `start` is done."""
        return Services(
            host=self._host,
            operations=self.operations,
            events=self.events,
            instances=self.instances,
            lifecycle=self.lifecycle,
            states=self.states,
            exec=self.exec,
            console=self.console,
            files=self.files,
            logs=self.logs,
            metadata=self.metadata,
            backups=self.backups,
            backup_import=self.backup_import,
            volume_backups=self.volume_backups,
            volume_import=self.volume_import,
            rebuild=self.rebuild,
            migration_source=self.migration_source,
            volume_migration=self.volume_migration,
            handovers=self.handovers,
            publishing=self.publishing,
            profiles=self.profiles,
            warnings=self.warnings,
            snapshots=self.snapshots,
            projects=self.projects,
            project_service=self.project_service,
            ports=self.ports,
            images=self.images,
            networks=self.networks,
            pools=self.pools,
            volumes=self.volumes,
            volume_snapshots=self.volume_snapshots,
            config=self.config,
            environment=await Environment.probe(self._host, self.runtime, self.pools),
            identity=self._identity,
            listeners=self.listeners,
            connections=self.connections,
            certificates=self.certificates,
            tokens=self.tokens,
            guesses=Guesses(),
            configuration=configuration(),
        )

    async def start(self, *, host_rebooted: bool) -> None:
        """Bring everything up: first what a crash left undone, then what containers need, then the containers."""
        await self.projects.start()
        await self.profiles.start()
        await self.pools.start()
        await self.networks.start()
        # Before anything is asked of instances: what a crash left half-done is finished or undone.
        for failed in await self.journal.recover():
            log.error("could not finish or undo after a crash: %s", failed)
        await self.images.prepare()
        await self.metadata_documents.sweep()
        await self.backups.prepare()
        await self.volume_backups.prepare()
        await self.runtime.supervise(self.confinement.supervision)
        gone = await self.lifecycle.adopt()
        await self.ports.announce_all()
        # Before containers start: cloud-init asks early.
        await self.guest_server.start(self.directory / GUEST_DIRECTORY)
        resume = self.lifecycle.resume(gone, host_rebooted=host_rebooted)
        self._tasks.append(asyncio.create_task(resume, name="resume instances"))
        await self.handovers.tidy()
        self.arriving.resume()
        await self.warnings.refresh()
        volumes = (self.volume_snapshots.run_schedule, self.volume_backups.run_schedule)
        schedules = (self.snapshots.run_schedule, self.backups.run_schedule, *volumes)
        clock = every_minute(lambda _minute: self.warnings.refresh(), *schedules)
        self._tasks.append(asyncio.create_task(clock, name="keep time"))
        self._tasks.append(asyncio.create_task(self.upkeep.run(), name="upkeep of images"))

    async def serve(self, socket_path: Path, group: str) -> None:
        """Answer requests until `close`."""
        listeners = inherited(os.environ) or [await open_unix(socket_path, group)]
        self._server = Server(await self.services())
        await self._server.start(listeners)

    async def close(self) -> None:
        """Stop answering and let go; containers, networks and mounts stay as they are."""
        if self._server is not None:
            await self._server.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.tokens.close()
        await self.arriving.close()
        await self.operations.close()
        await self.guest_server.stop()
        await self.lifecycle.close()
        await self._hotplug.close()
        await self._keeper.close()
        await self.networks.stop()
        await self.runtime.close()
        await self.pools.close()
        await self.journal.close()
        await self._mirror.close()
        await self._store.close()


async def open_daemon(
    directory: Path, *, host: Host, runtime: Runtime, terminals: Terminals, make: MakeCertificate = make_here
) -> Daemon:
    """A daemon on its directory, not yet started."""
    await asyncio.to_thread(make_directories, directory)
    directory = await asyncio.to_thread(directory.resolve)
    database = directory / "database"
    store = await SqliteStore.open(database / "config.db")
    return Daemon(
        directory,
        host=host,
        runtime=runtime,
        terminals=terminals,
        store=store,
        mirror=await StoreMirror.open(store),
        journal=await Journal.open(database / "journal.db"),
        features=await host.machine.features(),
        events=Events(),
        identity=await Identity.open(directory, make),
    )


async def run(directory: Path, group: str) -> None:
    """The daemon's life, until a signal ends it."""
    stop = asked_to_stop()
    host = LinuxHost()
    for name, change in (await host.machine.raise_limits()).items():
        log.info("raised %s: %s", name, change)
    runtime = LxcRuntime(host=host, directory=directory / "containers", log_directory=directory / "logs")
    await runtime.prepare()
    make = partial(make_apart, host.processes)
    daemon = await open_daemon(directory, host=host, runtime=runtime, terminals=LinuxTerminals(), make=make)
    logging.getLogger().addHandler(EventLogHandler(daemon.events))
    socket_path = directory / "unix.socket"
    try:
        await daemon.start(host_rebooted=await noticed_reboot(directory, host))
        await daemon.serve(socket_path, group)
        log.info("ready on %s", socket_path)
        tell_systemd("READY=1")
        if await stop == signal.SIGPWR:
            log.info("the host goes down: stopping all instances")
            await daemon.lifecycle.shut_down_all()
    finally:
        await daemon.close()
        await host.close()


def main() -> None:
    """The `flexd` program."""
    arguments = parse_arguments()
    start_logging(debug=arguments.debug)
    # nohup(1) has the daemon ignore hangups; what it starts would inherit that, container inits included.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if os.geteuid() != 0:
        sys.exit("Error: flexd must run as root: it makes mounts, network devices and user namespaces")
    try:
        lock = lock_directory(arguments.directory)
        asyncio.run(run(arguments.directory, arguments.group))
        os.close(lock)
    except FlexdError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
