# SPDX-License-Identifier: Apache-2.0
"""The networks of this host: managed ones, and the host's own interfaces, which are only shown.

The document of a network is the truth. Its directory is made before anything on the host and removed after, so at start
a directory without a document is what a crash left of a creation or deletion, and is taken down.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from msgspec import structs

from flexd.api.errors import BadRequest, Conflict, Fault, FlexdError, Unavailable, raise_faults
from flexd.api.keys import check_config
from flexd.api.network import Network, NetworkLease, NetworkPost, NetworkPut, NetworksPost, NetworkState
from flexd.api.times import now
from flexd.host.contract import Host, Link
from flexd.network.addresses import interface_of, parse_list
from flexd.network.bridge_keys import interface_name_fault
from flexd.network.contract import (
    Attachment,
    Driver,
    DriverContext,
    NetworkInUse,
    NetworkNotFound,
    NetworkRecord,
    Port,
)
from flexd.network.drivers import load_drivers
from flexd.network.hostlinks import link_type, listed, read_state
from flexd.operations.events import Events
from flexd.operations.locks import Locks
from flexd.operations.undo import Undo
from flexd.projects.projects import Projects
from flexd.projects.record import DEFAULT_PROJECT
from flexd.store.documents import Document, Documents, Mirror

log = logging.getLogger(__name__)

# Bridges are in LXD's default project only; one that has `features.networks` sees none of them.
PROJECT = DEFAULT_PROJECT
_LOCATIONS = ["none"]  # LXD's, of a server that is not in a cluster
_FAMILIES = ("ipv4", "ipv6")
# Held by whatever changes the set of networks or their subnets, so that no two choose the same.
_ALL = "networks"
# A service that ends again and again is started at growing intervals.
_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 60.0

_TYPES = load_drivers()  # scans a folder, so not while the loop runs

UsedBy = Callable[[str], list[str]]
Check = Callable[[str, str], None]


class Networks:
    def __init__(
        self, *, host: Host, mirror: Mirror, projects: Projects, locks: Locks, events: Events, directory: Path
    ) -> None:
        self._host = host
        self._projects = projects
        self._documents = Documents(mirror, "networks", NetworkRecord)
        self._locks = locks
        self._events = events
        self._directory = directory
        self._types = _TYPES
        self._drivers: dict[str, Driver] = {}
        self._errors: dict[str, str] = {}
        self._guards: dict[str, asyncio.Task[None]] = {}
        self._used_by: UsedBy = lambda _name: []
        self._check: Check = lambda _project, _name: None

    @property
    def types(self) -> dict[str, type[Driver]]:
        """Drivers by network type, for `/1.0/metadata/configuration` and the documentation."""
        return self._types

    def set_used_by(self, used_by: UsedBy) -> None:
        """`used_by(name)`: URLs of the instances and profiles with a NIC on a network."""
        self._used_by = used_by

    def set_check(self, check: Check) -> None:
        """`check(project, name)` raises if a project may not have one more network."""
        self._check = check

    # --- the daemon's life ---

    async def start(self) -> None:
        """Restore every managed network. One that fails is `Unavailable`; the daemon starts all the same."""
        await asyncio.to_thread(_make_passable, self._directory)
        for name in await asyncio.to_thread(self._leftovers):
            await self._clear(name)
        for document in self._documents.list(PROJECT):
            name = document.value.name
            async with self._locks.hold(_key(name), "start"):
                await self._bring_up(document.value)

    async def stop(self) -> None:
        """The daemon ends; networks stay up."""
        guards, self._guards = list(self._guards.values()), {}
        for task in guards:
            task.cancel()
        await asyncio.gather(*guards, return_exceptions=True)

    def _leftovers(self) -> list[str]:
        known = {document.value.name for document in self._documents.list(PROJECT)}
        return sorted(path.name for path in self._directory.iterdir() if path.is_dir() and path.name not in known)

    async def _clear(self, name: str) -> None:
        """Take down what a crash left of a network that is no more, or never came to be."""
        log.warning('Removing what is left of network "%s"', name)
        try:
            await self._remove(name, self._make_driver("bridge", name, {}))
        except (FlexdError, OSError) as error:
            log.error('Failed removing what is left of network "%s": %s', name, error)

    async def _bring_up(self, record: NetworkRecord) -> None:
        await self._restore(record)
        self._guard(record.name)

    async def _restore(self, record: NetworkRecord) -> None:
        try:
            await self._prepare_directory(record.name)
            await self._driver(record).start()
        except (FlexdError, OSError) as error:
            self._errors[record.name] = str(error)
            log.error('Failed starting network "%s": %s', record.name, error)
        except Exception as error:  # border: neither the daemon's start nor the guard may end with one network
            self._errors[record.name] = str(error)
            log.exception('Failed starting network "%s"', record.name)
        else:
            self._errors.pop(record.name, None)

    def _guard(self, name: str) -> None:
        """Watch over what a network runs on the host, from now on."""
        self._unguard(name)
        self._guards[name] = asyncio.create_task(self._keep_alive(name), name=f"network {name}")

    def _unguard(self, name: str) -> None:
        task = self._guards.pop(name, None)
        if task is not None:
            task.cancel()

    async def _keep_alive(self, name: str) -> None:
        delay = _FIRST_RETRY_S
        while True:
            if name in self._errors:
                await asyncio.sleep(delay)
            else:
                await self._drivers[name].wait_failed()
            async with self._locks.hold(_key(name), "start"):
                document = self._documents.get(PROJECT, name)
                if document is None:
                    return
                log.warning('Starting network "%s" again: a service of it has ended or could not start', name)
                await self._restore(document.value)
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LAST_RETRY_S)

    # --- showing ---

    def names(self, project: str) -> list[str]:
        """The managed networks that a project uses."""
        owner = self._projects.owner(project, "networks")
        return [document.value.name for document in self._documents.list(owner)]

    async def all_names(self, project: str) -> list[str]:
        """Managed networks and the host's other interfaces, as `GET /1.0/networks` lists them."""
        return [network.name for network in await self.show_all(project)]

    async def show_all(self, project: str) -> list[Network]:
        if self._projects.owner(project, "networks") != PROJECT:
            return []
        links = {link.name: link for link in await self._host.links.all() if listed(link)}
        return [self._show(name, links.get(name)) for name in sorted({*self.names(project), *links})]

    async def show(self, project: str, name: str) -> Network:
        if self._projects.owner(project, "networks") != PROJECT:
            raise NetworkNotFound
        link = None if self._documents.get(PROJECT, name) else await self._host_link(name)
        return self._show(name, link)

    def _show(self, name: str, link: Link | None) -> Network:
        document = self._documents.get(PROJECT, name)
        used_by = sorted(self._used_by(name))
        if document is None:
            if link is None:
                raise NetworkNotFound
            return Network(managed=False, name=name, project=PROJECT, type=link_type(link), used_by=used_by)
        record = document.value
        return Network(
            config=dict(record.config),
            description=record.description,
            locations=list(_LOCATIONS),
            managed=True,
            name=name,
            project=record.project,
            status="Unavailable" if name in self._errors else "Created",
            type=record.type,
            used_by=used_by,
        )

    async def _host_link(self, name: str) -> Link:
        link = await self._host.links.get(name)
        if link is None:
            raise NetworkNotFound
        return link

    async def state(self, name: str) -> NetworkState:
        document = self._documents.get(PROJECT, name)
        if document is not None:
            return await self._driver(document.value).state()
        return await read_state(self._host, await self._host_link(name))

    async def leases(self, name: str) -> list[NetworkLease]:
        return await self._driver(self._get(name).value).leases()

    def warnings(self) -> list[str]:
        """What does not work on this host though it is configured, in words for people."""
        failed = [f'Network "{name}" is unavailable: {error}' for name, error in sorted(self._errors.items())]
        return failed + [text for _, driver in sorted(self._drivers.items()) for text in driver.warnings()]

    # --- changing ---

    async def create(self, post: NetworksPost, project: str = PROJECT) -> None:
        if self._projects.owner(project, "networks") != PROJECT:
            raise BadRequest("Network type does not support non-default projects")
        if not post.name:
            raise BadRequest("No name provided")
        _check_name(post.name)
        kind = post.type or "bridge"
        if kind not in self._types:
            raise BadRequest(f'Unsupported network type "{kind}" (supported: {", ".join(sorted(self._types))})')
        async with self._locks.hold_all([_ALL, _key(post.name)], "create"):
            await self._check_free(post.name)
            self._check(PROJECT, post.name)
            raise_faults(check_config(post.config, self._types[kind].KEYS))
            config = await self._make_driver(kind, post.name, {}).fill(post.config, new=True)
            self._check_whole(post.name, kind, config)
            record = NetworkRecord(post.name, kind, PROJECT, post.description, config, now())
            await self._create(record)
        self._events.lifecycle("network-created", _url(post.name), PROJECT)

    async def _create(self, record: NetworkRecord) -> None:
        async with Undo() as undo:
            driver = self._make_driver(record.type, record.name, record.config)
            undo.push(self._remove, record.name, driver)
            await self._prepare_directory(record.name)
            await driver.start()
            path = (PROJECT, record.name)
            ops, conditions = [self._documents.put(path, record)], [self._documents.unchanged(path, 0)]
            await self._projects.write([PROJECT], ops, conditions, lambda: self._check(PROJECT, record.name))
            self._drivers[record.name] = driver
        self._guard(record.name)

    async def update(self, name: str, put: NetworkPut, *, patch: bool = False) -> None:
        """Replace the configuration, or with `patch` the keys given; applied live."""
        async with self._locks.hold_all([_ALL, _key(name)], "update"):
            document = self._get(name)
            old = document.value
            merged = {**old.config, **put.config} if patch else put.config
            raise_faults(check_config(merged, self._types[old.type].KEYS))
            config = await self._driver(old).fill(merged, new=False)
            self._check_whole(name, old.type, config)
            description = old.description if patch and not put.description else put.description
            new = structs.replace(old, description=description, config=config)
            if new != old:
                await self._update(document, new)
        self._events.lifecycle("network-updated", _url(name), PROJECT)

    async def _update(self, document: Document[NetworkRecord], new: NetworkRecord) -> None:
        """The document goes last: after a crash before it, start() restores the old configuration."""
        old, driver = document.value, self._driver(document.value)
        async with Undo() as undo:
            if new.config != old.config or old.name in self._errors:
                undo.push(driver.update, old.config)
                await self._prepare_directory(old.name)
                await driver.update(new.config)
            await self._documents.update(document.path, new, document.revision)
        self._errors.pop(new.name, None)
        self._guard(new.name)

    async def rename(self, name: str, post: NetworkPost) -> None:
        if not post.name:
            raise BadRequest("New network name not provided")
        _check_name(post.name)
        async with self._locks.hold_all([_ALL, _key(name), _key(post.name)], "rename"):
            document = self._get(name)
            if self._documents.get(PROJECT, post.name) or await self._host.links.get(post.name):
                raise Conflict(f'Network "{post.name}" already exists')
            if self._used_by(name):
                raise NetworkInUse
            await self._rename(document, structs.replace(document.value, name=post.name))
        self._events.lifecycle("network-renamed", _url(post.name), PROJECT, {"old_name": name})

    async def _rename(self, document: Document[NetworkRecord], new: NetworkRecord) -> None:
        old = document.value
        driver, renamed = self._driver(old), self._make_driver(new.type, new.name, new.config)
        self._unguard(old.name)
        async with Undo() as undo:
            undo.push(self._bring_up, old)
            await driver.stop()
            undo.push(asyncio.to_thread, self._move_directory, new.name, old.name)
            await asyncio.to_thread(self._move_directory, old.name, new.name)
            undo.push(renamed.stop)
            await renamed.start()
            path = (PROJECT, new.name)
            await self._documents.txn(
                [self._documents.delete_op(document.path), self._documents.put(path, new)],
                [self._documents.unchanged(document.path, document.revision), self._documents.unchanged(path, 0)],
            )
        self._forget(old.name)
        self._drivers[new.name] = renamed
        self._guard(new.name)

    async def delete(self, name: str) -> None:
        async with self._locks.hold_all([_ALL, _key(name)], "delete"):
            document = self._get(name)
            if self._used_by(name):
                raise NetworkInUse
            self._unguard(name)
            driver = self._driver(document.value)
            async with Undo() as undo:
                undo.push(self._bring_up, document.value)
                await driver.stop()
                await self._documents.delete(document.path)
            self._forget(name)
            await self._remove(name, driver)
        self._events.lifecycle("network-deleted", _url(name), PROJECT)

    async def _check_free(self, name: str) -> None:
        if self._documents.get(PROJECT, name) is not None:
            raise BadRequest("The network already exists")
        if await asyncio.to_thread(self._path(name).exists):
            await self._clear(name)
        if await self._host.links.get(name) is not None:
            raise BadRequest(f'Network interface "{name}" already exists')

    def _check_whole(self, name: str, kind: str, config: dict[str, str]) -> None:
        """Faults of a complete configuration: the rows', the driver's, and subnets that another network has."""
        raise_faults(check_config(config, self._types[kind].KEYS))
        raise_faults([*self._make_driver(kind, name, config).faults(config), *self._overlaps(name, config)])

    def _overlaps(self, name: str, config: dict[str, str]) -> list[Fault]:
        faults = []
        others = [document.value for document in self._documents.list(PROJECT) if document.value.name != name]
        for family in _FAMILIES:
            mine = interface_of(config, family)
            for other in others:
                theirs = interface_of(other.config, family)
                if mine is not None and theirs is not None and mine.network.overlaps(theirs.network):
                    message = f'the subnet {mine.network} overlaps {theirs.network} of network "{other.name}"'
                    faults.append(Fault(f"config.{family}.address", message))
        return faults

    # --- ports ---

    def attachment(self, name: str) -> Attachment:
        """Where an instance's interface on this network is plugged in."""
        return self._driver(self._get(name).value).attachment()

    def check_available(self, name: str) -> None:
        """Before an instance is plugged in: on a network that is half there it would get no address."""
        error = self._errors.get(name)
        if error is not None:
            raise Unavailable(f'Network "{name}" is unavailable: {error}')

    async def set_ports(self, network: str, ports: list[Port]) -> None:
        """The whole list of a network's ports; DHCP and DNS know them when this returns, without a restart."""
        async with self._locks.hold(_key(network), "ports"):
            await self._driver(self._get(network).value).set_ports(ports)

    async def port_address(self, port: Port, *, choose: bool = False) -> Port:
        """Check the static addresses of a port (`InvalidInput`, paths as the device's keys); with `choose` give it free
        ones where it has none. What was chosen is taken only from `set_ports` on."""
        return await self._driver(self._get(port.network).value).port(port, choose=choose)

    # --- parts ---

    def _get(self, name: str) -> Document[NetworkRecord]:
        document = self._documents.get(PROJECT, name)
        if document is None:
            raise NetworkNotFound
        return document

    def _path(self, name: str) -> Path:
        return self._directory / name

    def _driver(self, record: NetworkRecord) -> Driver:
        driver = self._drivers.get(record.name)
        if driver is None:
            driver = self._drivers[record.name] = self._make_driver(record.type, record.name, record.config)
        return driver

    def _make_driver(self, kind: str, name: str, config: dict[str, str]) -> Driver:
        context = DriverContext(self._host, self._path(name), lambda: self._reserved(name))
        return self._types[kind](context, name, config)

    def _reserved(self, name: str) -> list[str]:
        """Subnets of the other managed networks, also of those that are not up."""
        found = []
        for document in self._documents.list(PROJECT):
            config = document.value.config if document.value.name != name else {}
            for family in _FAMILIES:
                interface = interface_of(config, family)
                found.extend([str(interface.network)] if interface is not None else [])
                found.extend(parse_list(config.get(f"{family}.routes")))
        return found

    async def _prepare_directory(self, name: str) -> None:
        await asyncio.to_thread(_make_passable, self._path(name))

    def _move_directory(self, name: str, new_name: str) -> None:
        self._path(name).rename(self._path(new_name))

    async def _remove(self, name: str, driver: Driver) -> None:
        await self._prepare_directory(name)
        await driver.stop()
        await self._host.files.remove_tree(self._path(name))

    def _forget(self, name: str) -> None:
        self._drivers.pop(name, None)
        self._errors.pop(name, None)


def _key(name: str) -> str:
    return f"network/{PROJECT}/{name}"


def _url(name: str) -> str:
    return f"/1.0/networks/{name}"


def _make_passable(directory: Path) -> None:
    """dnsmasq is not root and must reach its files; whatever our umask is."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o711)


def _check_name(name: str) -> None:
    wrong = interface_name_fault(name)
    if wrong is not None:
        raise BadRequest(wrong)
