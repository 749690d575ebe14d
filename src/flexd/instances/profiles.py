# SPDX-License-Identifier: Apache-2.0
"""Profiles: settings shared by instances."""

import contextlib
from collections.abc import Mapping
from functools import partial

import msgspec

from flexd.api.errors import BadRequest, Conflict, Fault, Forbidden, raise_faults
from flexd.api.profile import Profile, ProfilePost, ProfilePut, ProfilesPost
from flexd.devices.devices import Devices
from flexd.devices.kinds.disk import is_root
from flexd.instances.check import new_volatile, without_stale_volatile
from flexd.instances.edits import Edit, Edits, profile_write
from flexd.instances.firstboot import edited
from flexd.instances.keys import config_faults
from flexd.instances.lifecycle import Lifecycle
from flexd.instances.names import check_profile_name
from flexd.instances.project_rules import ProjectRules
from flexd.instances.record import DeviceEntries, Expanded, InstanceRecord, ProfileRecord, expand
from flexd.instances.registry import Registry, profile_url, show_profile
from flexd.instances.resolve import Resolver
from flexd.operations.events import Events
from flexd.operations.locks import Locks
from flexd.projects.projects import Projects
from flexd.projects.record import DEFAULT_PROJECT
from flexd.store.contract import Delete, If, Put, RevisionConflict


class Profiles:
    """The service behind `/1.0/profiles`; every change is one transaction. Projects are those that own profiles."""

    def __init__(
        self,
        *,
        registry: Registry,
        devices: Devices,
        resolver: Resolver,
        lifecycle: Lifecycle,
        edits: Edits,
        projects: Projects,
        rules: ProjectRules,
        locks: Locks,
        events: Events,
    ) -> None:
        self._registry = registry
        self._devices = devices
        self._resolver = resolver
        self._lifecycle = lifecycle
        self._edits = edits
        self._projects = projects
        self._rules = rules
        self._locks = locks
        self._events = events

    async def start(self) -> None:
        """The default profile is always there."""
        profiles = self._registry.profiles
        if profiles.get(DEFAULT_PROJECT, "default") is None:
            record = ProfileRecord("default", description="Default LXD profile")
            await profiles.create((DEFAULT_PROJECT, "default"), record)

    def names(self, project: str) -> list[str]:
        return [document.value.name for document in self._registry.profiles.list(project)]

    def show(self, project: str, name: str) -> Profile:
        record = self._registry.find_profile(project, name).value
        return show_profile(record, [user.url for user in self._registry.users_of_profile(project, name)])

    def show_all(self, project: str) -> list[Profile]:
        users: dict[str, list[str]] = {}
        for sharing in self._projects.sharing(project, "profiles"):
            for instance in self._registry.all_instances(sharing):
                for name in instance.profiles:
                    users.setdefault(name, []).append(instance.url)
        documents = self._registry.profiles.list(project)
        return [show_profile(document.value, users.get(document.value.name, [])) for document in documents]

    def _check(self, config: Mapping[str, str], devices: DeviceEntries) -> None:
        faults: list[Fault] = config_faults(config, profile=True)
        raise_faults(faults + self._devices.faults(devices))

    async def create(self, project: str, post: ProfilesPost) -> None:
        check_profile_name(post.name)
        self._check(post.config, post.devices)
        record = ProfileRecord(post.name, project, post.description, post.config, post.devices)
        profiles, path = self._registry.profiles, (project, post.name)
        check = partial(self._rules.check, profiles=[record])
        try:
            await self._projects.write([project], [profiles.put(path, record)], [profiles.unchanged(path, 0)], check)
        except RevisionConflict as error:
            raise Conflict(f'Profile "{post.name}" already exists') from error
        self._events.lifecycle("profile-created", profile_url(project, post.name), project)

    async def update(self, project: str, name: str, put: ProfilePut) -> None:
        """Replace the settings, live in every running instance that uses the profile; in all of them or in none."""
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._locks.hold(f"profile/{project}/{name}", "update"))
            found = self._registry.find_profile(project, name)
            self._check(put.config, put.devices)
            self._check_users(project, name, put)
            changed = msgspec.structs.replace(
                found.value, description=put.description, config=put.config, devices=put.devices
            )
            self._rules.check(profiles=[changed])
            users = [user for user in self._registry.users_of_profile(project, name) if self._concerns(user, changed)]
            keys = [f"instance/{user.project}/{user.name}" for user in users]
            await stack.enter_async_context(self._locks.hold_all(keys, "update"))
            await stack.enter_async_context(self._edits.locked(users))
            users = [user for user in users if self._registry.instances.get(user.project, user.name) is not None]
            edits = [await self._edit(self._registry.instance(user.project, user.name), changed) for user in users]
            title = f'update profile "{name}"'
            await self._edits.apply(title, edits, [profile_write(found.value, changed)])
        await self._lifecycle.rebalance()
        for edit in edits:
            await self._lifecycle.announce_ports(edit.before)
            await self._lifecycle.announce_ports(edit.after)
        self._events.lifecycle("profile-updated", profile_url(project, name), project)

    def _concerns(self, instance: InstanceRecord, changed: ProfileRecord) -> bool:
        """Whether the instance's own document changes too: it runs, or cloud-init is to look at it anew."""
        before, after = self._registry.expand(instance), self._expand(instance, changed)
        return self._lifecycle.running(instance) is not None or edited({}, before, after) != {}

    def _expand(self, instance: InstanceRecord, changed: ProfileRecord) -> Expanded:
        profiles = [
            changed if name == changed.name else self._registry.find_profile(instance.project, name).value
            for name in instance.profiles
        ]
        return expand(profiles, instance.config, instance.devices)

    async def _edit(self, instance: InstanceRecord, changed: ProfileRecord) -> Edit:
        """What the profile's new settings make of an instance."""
        before, after = self._registry.expand(instance), self._expand(instance, changed)
        config = without_stale_volatile(instance.config, after)
        config |= new_volatile(self._devices, after, config)
        new = msgspec.structs.replace(instance, config=edited(config, before, after))
        await self._resolver.check_host(new, after)
        return Edit(instance, new, before, after)

    def _check_users(self, project: str, name: str, put: ProfilePut) -> None:
        """An edit must not take the root disk from an instance, or move it to another pool."""
        for instance in self._registry.users_of_profile(project, name):
            root = self._root_with(instance, name, put)
            if root is None or root.get("pool") != instance.pool:
                raise BadRequest(
                    f'Failed updating profile "{name}": instance "{instance.name}" would lose its root disk '
                    f'on pool "{instance.pool}"'
                )

    def _root_with(self, instance: InstanceRecord, name: str, put: ProfilePut) -> dict[str, str] | None:
        devices: DeviceEntries = {}
        for profile in instance.profiles:
            entries = self._registry.find_profile(instance.project, profile).value.devices
            devices.update(put.devices if profile == name else entries)
        devices.update(instance.devices)
        return next((entry for entry in devices.values() if is_root(entry)), None)

    async def rename(self, project: str, name: str, post: ProfilePost) -> None:
        """Rename, and the name in every instance that uses it, in one transaction."""
        found = self._registry.find_profile(project, name)
        if name == "default":
            raise BadRequest('The "default" profile cannot be renamed')
        check_profile_name(post.name)
        if self._registry.profiles.get(project, post.name) is not None:
            raise Conflict(f'Profile "{post.name}" already exists')
        profiles, instances = self._registry.profiles, self._registry.instances
        ops: list[Put | Delete] = [
            profiles.delete_op((project, name)),
            profiles.put((project, post.name), msgspec.structs.replace(found.value, name=post.name)),
        ]
        conditions: list[If] = [
            profiles.unchanged((project, name), found.revision),
            profiles.unchanged((project, post.name), 0),
        ]
        sharing = self._projects.sharing(project, "profiles")
        for document in (found for each in sharing for found in instances.list(each)):
            if name in document.value.profiles:
                renamed = [post.name if profile == name else profile for profile in document.value.profiles]
                ops.append(instances.put(document.path, msgspec.structs.replace(document.value, profiles=renamed)))
                conditions.append(instances.unchanged(document.path, document.revision))
        await profiles.txn(ops, conditions)
        self._events.lifecycle("profile-renamed", profile_url(project, post.name), project, {"old_name": name})

    async def delete(self, project: str, name: str) -> None:
        self._registry.find_profile(project, name)
        if name == "default":
            raise Forbidden('The "default" profile cannot be deleted')
        if self._registry.users_of_profile(project, name):
            raise BadRequest("Profile is currently in use")
        await self._registry.profiles.delete((project, name))
        self._events.lifecycle("profile-deleted", profile_url(project, name), project)
