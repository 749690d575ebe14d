# SPDX-License-Identifier: Apache-2.0
"""What an instance may see and say of itself from inside (LXD's devlxd): who asks, and what is answered."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from msgspec import Struct

from flexd.api.errors import BadRequest, Forbidden, NotFound
from flexd.api.times import now
from flexd.api.units import is_true
from flexd.host.contract import Host, Peer
from flexd.images.contract import ExportFiles
from flexd.images.images import Images
from flexd.instances.allocator import current_idmap
from flexd.instances.lifecycle import Lifecycle
from flexd.instances.record import Config, DeviceEntries, Expanded, InstanceRecord
from flexd.instances.registry import Registry
from flexd.instances.security import has_guest_api
from flexd.operations.events import Events
from flexd.projects.projects import Projects
from flexd.runtime.contract import RunningContainer

_VISIBLE = ("user.", "cloud-init.")
_READY = "volatile.last_state.ready"
_STATES = {"Ready": "true", "Started": "false"}
# After these the container that asked is no more, even if its successor has the same name.
_ENDS = frozenset({"instance-stopped", "instance-shutdown", "instance-restarted", "instance-deleted"})
_EDITS = frozenset({"instance-updated", "instance-restored", "profile-updated"})
# An init may ask before its start is over here, which takes some hundredths of a second.
_PATIENCE_S = (0.05, 0.1, 0.25, 0.5, 1.0)
EVENT_KINDS = frozenset({"config", "device"})


class GuestInstance(Struct, frozen=True):
    """Who asks: a running container of an instance."""

    project: str
    name: str
    container: RunningContainer
    is_root: bool  # as the container's own root user; LXD answers nobody else


class GuestEvent(Struct, frozen=True):
    type: str
    timestamp: Any
    metadata: dict[str, Any]


class Guest:
    """One per daemon."""

    def __init__(
        self,
        *,
        registry: Registry,
        projects: Projects,
        lifecycle: Lifecycle,
        host: Host,
        images: Images,
        events: Events,
    ) -> None:
        self._registry = registry
        self._projects = projects
        self._lifecycle = lifecycle
        self._host = host
        self._images = images
        self._events = events
        self._namespaces: dict[RunningContainer, int] = {}

    # --- who asks ---

    async def identify(self, connection: socket.socket) -> GuestInstance | None:
        """The container from whose processes this connection comes; None if from none, or from one that is gone.

        By pid namespace: no process can leave its own or enter one outside of it, whatever it calls itself. Its number
        is unique while a process of it lives, so both ends are asked again once they are known to match.
        """
        peer = await self._host.processes.peer(connection)
        if peer is None:
            return None
        found = await self._find(peer)
        for delay_s in _PATIENCE_S:
            if found is not None or len(peer.pid_namespaces) < 2:
                break  # one namespace: ours, so a process of the host
            await asyncio.sleep(delay_s)
            found = await self._find(peer)
        if found is None or await self._host.processes.peer(connection) != peer:
            return None
        record, container = found
        root = current_idmap(record.config).host_uid(0)
        return GuestInstance(record.project, record.name, container, is_root=peer.uid == root)

    async def _find(self, peer: Peer) -> tuple[InstanceRecord, RunningContainer] | None:
        running = {}
        for record in self._registry.all_instances():
            container = self._lifecycle.running(record)
            if container is not None:
                running[container] = record
        await self._learn(list(running))
        for container, record in running.items():
            number = self._namespaces.get(container)
            if number in peer.pid_namespaces and (await self._namespace(container)) == number:
                return record, container
        return None

    async def _learn(self, running: list[RunningContainer]) -> None:
        self._namespaces = {
            container: self._namespaces[container] for container in running if container in self._namespaces
        }
        for container in running:
            if container not in self._namespaces:
                number = await self._namespace(container)
                if number:
                    self._namespaces[container] = number

    async def _namespace(self, container: RunningContainer) -> int:
        """0 if the container is gone."""
        return next(iter(await self._host.processes.pid_namespaces(container.init)), 0)

    def check(self, asking: GuestInstance) -> InstanceRecord:
        """Its record, if the same container still runs and may ask at all."""
        known = self._registry.instances.get(asking.project, asking.name)
        if known is None or self._lifecycle.running(known.value) != asking.container:
            raise Forbidden("not authorized")
        if not has_guest_api(self._registry.expand(known.value).config):
            raise Forbidden("not authorized")
        return known.value

    # --- what is answered ---

    def state(self, asking: GuestInstance) -> str:
        """ "Ready" once the instance has said so in this run, else "Started"."""
        return "Ready" if is_true(self.check(asking).config.get(_READY)) else "Started"

    async def set_state(self, asking: GuestInstance, state: str) -> None:
        """Extension: instance_ready_state."""
        if state not in _STATES:
            raise BadRequest(f'Invalid instance state "{state}" (expected Ready or Started)')
        record = self.check(asking)
        found = self._registry.find(record.project, record.name)
        config = record.config | {_READY: _STATES[state]}
        changed = msgspec.structs.replace(found.value, config=config)
        await self._registry.instances.update((record.project, record.name), changed, found.revision)
        if state == "Ready":
            self._events.lifecycle("instance-ready", record.url, record.project)

    def config(self, asking: GuestInstance) -> Config:
        """`user.*` and `cloud-init.*`, profiles' included."""
        return visible(self._expanded(asking).config)

    def config_value(self, asking: GuestInstance, key: str) -> str:
        config = self._expanded(asking).config
        if not key.startswith(_VISIBLE):
            raise Forbidden("not authorized")
        if key not in config:
            raise NotFound("not found")
        return config[key]

    def meta_data(self, asking: GuestInstance) -> str:
        """cloud-init's meta-data, then the user's own."""
        record = self.check(asking)
        more = self._registry.expand(record).config.get("user.meta-data", "")
        identity = record.config.get("volatile.cloud-init.instance-id") or record.name
        return f"#cloud-config\ninstance-id: {identity}\nlocal-hostname: {record.name}\n{more}"

    def devices(self, asking: GuestInstance) -> DeviceEntries:
        """With the hardware address of each NIC, by which cloud-init finds it."""
        record = self.check(asking)
        found = {name: dict(entry) for name, entry in self._registry.expand(record).devices.items()}
        for name, entry in found.items():
            known = record.config.get(f"volatile.{name}.hwaddr", "")
            if entry.get("type") == "nic" and not entry.get("hwaddr") and known:
                entry["hwaddr"] = known
        return found

    async def image_files(self, asking: GuestInstance, fingerprint: str) -> ExportFiles:
        """For flexd or LXD inside the instance: images that are anybody's, if `security.devlxd.images` says so."""
        record = self.check(asking)
        if not is_true(self._registry.expand(record).config.get("security.devlxd.images")):
            raise Forbidden("not authorized")
        owner = self._projects.owner(record.project, "images")
        image = self._images.resolve(owner, fingerprint)
        if not image.public and not image.cached:
            raise NotFound("not found")
        return await self._images.export_files(owner, image.fingerprint)

    async def events(self, asking: GuestInstance, kinds: frozenset[str]) -> AsyncIterator[GuestEvent]:
        """Changes of what the instance may see, until its container ends."""
        before = self._expanded(asking)
        url = self.check(asking).url
        with self._events.subscribe(["lifecycle"], asking.project) as stream:
            async for event in stream:
                action = event.metadata["action"]
                if action in _ENDS and event.metadata["source"] == url:
                    return
                if action not in _EDITS:
                    continue
                after = self._expanded(asking)
                for change in (*config_events(before, after), *device_events(before, after)):
                    if change.type in kinds:
                        yield change
                before = after

    def _expanded(self, asking: GuestInstance) -> Expanded:
        return self._registry.expand(self.check(asking))


def visible(config: Config) -> Config:
    return {key: value for key, value in sorted(config.items()) if key.startswith(_VISIBLE)}


def config_events(before: Expanded, after: Expanded) -> list[GuestEvent]:
    old, new = visible(before.config), visible(after.config)
    return [
        GuestEvent("config", now(), {"key": key, "old_value": old.get(key, ""), "value": new.get(key, "")})
        for key in sorted(old | new)
        if old.get(key, "") != new.get(key, "")
    ]


def device_events(before: Expanded, after: Expanded) -> list[GuestEvent]:
    events = []
    for name in sorted(before.devices | after.devices):
        old, new = before.devices.get(name), after.devices.get(name)
        if old == new:
            continue
        action = "added" if old is None else "removed" if new is None else "updated"
        events.append(GuestEvent("device", now(), {"action": action, "name": name, "config": new or old}))
    return events
