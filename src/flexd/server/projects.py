# SPDX-License-Identifier: Apache-2.0
"""`/1.0/projects`: made, edited, renamed and deleted; what uses them, and how much they use."""

from collections.abc import Mapping
from functools import partial

import msgspec

from flexd.api.errors import BadRequest, Conflict, Forbidden, raise_faults
from flexd.api.project import Project, ProjectPost, ProjectPut, ProjectsPost, ProjectState, ProjectStateResource
from flexd.api.units import is_true
from flexd.images.images import Images
from flexd.images.keys import PROJECT_KEYS as IMAGE_KEYS
from flexd.images.urls import image_url
from flexd.instances.backups import KEYS as BACKUP_KEYS
from flexd.instances.project_rules import ProjectRules
from flexd.instances.record import ProfileRecord
from flexd.instances.registry import Registry, profile_url
from flexd.network.networks import Networks
from flexd.operations.events import Events
from flexd.operations.operations import Operation, Operations
from flexd.projects import keys
from flexd.projects.keys import FEATURES, NEW_FEATURES, config_faults
from flexd.projects.projects import Projects
from flexd.projects.record import (
    DEFAULT_PROJECT,
    ProjectRecord,
    check_project_name,
    project_query,
    project_url,
)
from flexd.server.trust import Certificates
from flexd.storage.names import volume_url
from flexd.storage.pools import Pools
from flexd.storage.volumes import Volumes
from flexd.store.contract import Delete, If, Put, RevisionConflict
from flexd.store.documents import Document

KEYS = (*keys.KEYS, *(msgspec.structs.replace(key, default="") for key in BACKUP_KEYS), *IMAGE_KEYS)

_UNLIMITED = -1


class ProjectService:
    """Reads are from memory; each change is one transaction."""

    def __init__(
        self,
        *,
        projects: Projects,
        rules: ProjectRules,
        registry: Registry,
        images: Images,
        networks: Networks,
        pools: Pools,
        volumes: Volumes,
        certificates: Certificates,
        operations: Operations,
        events: Events,
    ) -> None:
        self._projects = projects
        self._rules = rules
        self._registry = registry
        self._images = images
        self._networks = networks
        self._pools = pools
        self._volumes = volumes
        self._certificates = certificates
        self._operations = operations
        self._events = events

    # --- reading ---

    def names(self) -> list[str]:
        return self._projects.names()

    def show(self, name: str) -> Project:
        record = self._projects.find(name).value
        return Project(
            config=dict(record.config), description=record.description, name=name, used_by=self._used_by(name)
        )

    def _used_by(self, project: str) -> list[str]:
        """In LXD's order: what a project must not have to be deleted, and its default profile."""
        owner = partial(self._projects.owner, project)
        urls = [record.url for record in self._registry.all_instances(project)]
        urls += [image_url(project, image.fingerprint) for image in self._images.of_project(project)]
        urls += [profile_url(project, document.value.name) for document in self._registry.profiles.list(project)]
        urls += [volume_url(volume) for volume in self._volumes.of_project(project)]
        if owner("networks") == project:
            urls += [f"/1.0/networks/{name}{project_query(project)}" for name in self._networks.names(project)]
        return urls

    def state(self, name: str) -> ProjectState:
        resources = {
            kind: ProjectStateResource(Limit=_UNLIMITED if limit is None else limit, Usage=usage)
            for kind, (limit, usage) in self._rules.usage(name).items()
        }
        return ProjectState(resources=resources)

    # --- creating ---

    async def create(self, post: ProjectsPost) -> None:
        """With LXD's features, unless the request names them, and a default profile if profiles are its own."""
        check_project_name(post.name)
        config = dict.fromkeys(NEW_FEATURES, "true") | _without_empty(post.config)
        raise_faults(config_faults(config, KEYS, self._pools.names()))
        record = ProjectRecord(post.name, post.description, config)
        documents, profiles = self._projects.documents, self._registry.profiles
        ops = [documents.put((post.name,), record)]
        if is_true(config.get("features.profiles")):
            ops.append(profiles.put((post.name, "default"), _default_profile(post.name)))
        try:
            await documents.txn(ops, [documents.unchanged((post.name,), 0)])
        except RevisionConflict as error:
            raise Conflict(f'Project "{post.name}" already exists') from error
        self._events.lifecycle("project-created", project_url(post.name), post.name)

    # --- editing ---

    async def update(self, name: str, put: ProjectPut) -> None:
        """`BadRequest` tells whom it would break a limit or a restriction for."""
        found = self._projects.find(name)
        config = _without_empty(put.config)
        raise_faults(config_faults(config, KEYS, self._pools.names()))
        record = msgspec.structs.replace(found.value, config=config, description=put.description)
        ops: list[Put | Delete] = [self._projects.documents.put((name,), record)]
        ops += self._profile_ops(found, record)
        await self._projects.write([name], ops, check=lambda: self._check(self._projects.find(name), record))
        self._events.lifecycle("project-updated", project_url(name), name)

    def _check(self, found: Document[ProjectRecord], new: ProjectRecord) -> None:
        self._check_features(found.value.config, new)
        faults = self._rules.project_faults(new)
        if faults:
            raise BadRequest(f'Failed updating project "{new.name}": {"; ".join(faults)}')

    def _check_features(self, old: Mapping[str, str], new: ProjectRecord) -> None:
        changed = [key for key in FEATURES if is_true(old.get(key)) != is_true(new.config.get(key))]
        if changed and new.name == DEFAULT_PROJECT:
            raise BadRequest("You can't change the features of the default project")
        if changed and not self._is_empty(new.name):
            verb = "enabled" if is_true(new.config.get(changed[0])) else "disabled"
            raise BadRequest(
                f'Project feature "{changed[0]}" cannot be {verb} on non-empty projects ({self._users(new.name)})'
            )

    def _profile_ops(self, found: Document[ProjectRecord], new: ProjectRecord) -> list[Put | Delete]:
        """Its default profile comes and goes with `features.profiles`; it is empty when that changes."""
        before, after = (is_true(record.config.get("features.profiles")) for record in (found.value, new))
        profiles, path = self._registry.profiles, (new.name, "default")
        if before == after or new.name == DEFAULT_PROJECT:
            return []
        return [profiles.put(path, _default_profile(new.name))] if after else [profiles.delete_op(path)]

    def _is_empty(self, name: str) -> bool:
        return not self._others(name)

    def _others(self, name: str) -> list[str]:
        return [url for url in self._used_by(name) if url != profile_url(name, "default")]

    def _users(self, name: str) -> str:
        others = self._others(name)
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        return f"used by {', '.join(others[:5])}{more}"

    # --- renaming and deleting ---

    def rename(self, name: str, post: ProjectPost) -> Operation:
        self._projects.find(name)
        if name == DEFAULT_PROJECT:
            raise Forbidden("The 'default' project cannot be renamed")
        check_project_name(post.name)

        async def run(_operation: Operation) -> None:
            await self._rename(name, post.name)

        return self._operations.start("task", "Renaming project", DEFAULT_PROJECT, {}, run)

    async def _rename(self, name: str, new_name: str) -> None:
        """Its default profile, and certificates that are restricted to it, know it by the new name."""
        documents, profiles = self._projects.documents, self._registry.profiles
        record = msgspec.structs.replace(self._projects.find(name).value, name=new_name)
        ops: list[Put | Delete] = [documents.put((new_name,), record), *self._projects.gone(name)]
        conditions: list[If] = [documents.unchanged((new_name,), 0)]
        profile = profiles.get(name, "default")
        if profile is not None:
            moved = msgspec.structs.replace(profile.value, project=new_name)
            ops += [profiles.delete_op(profile.path), profiles.put((new_name, "default"), moved)]
            conditions.append(profiles.unchanged(profile.path, profile.revision))
        certificates, unchanged = self._certificates.replace_project(name, new_name)
        try:
            await self._projects.write(
                [name], [*ops, *certificates], [*conditions, *unchanged], partial(self._check_unused, name, "renamed")
            )
        except RevisionConflict as error:
            if self._projects.has(new_name):
                raise Conflict(f'A project named "{new_name}" already exists') from error
            raise
        self._events.lifecycle("project-renamed", project_url(new_name), new_name, {"old_name": name})

    def _check_unused(self, name: str, verb: str) -> None:
        if not self._is_empty(name):
            raise BadRequest(f"Only empty projects can be {verb} ({self._users(name)})")

    async def delete(self, name: str) -> None:
        self._projects.find(name)
        if name == DEFAULT_PROJECT:
            raise Forbidden("The 'default' project cannot be deleted")
        ops: list[Put | Delete] = [*self._projects.gone(name)]
        ops.append(self._registry.profiles.delete_op((name, "default")))
        certificates, unchanged = self._certificates.replace_project(name, None)
        check = partial(self._check_unused, name, "removed")
        await self._projects.write([name], [*ops, *certificates], unchanged, check)
        self._events.lifecycle("project-deleted", project_url(name), name)


def _without_empty(config: Mapping[str, str]) -> dict[str, str]:
    """An empty value unsets a key."""
    return {key: value for key, value in config.items() if value}


def _default_profile(project: str) -> ProfileRecord:
    return ProfileRecord("default", project, f"Default LXD profile for project {project}")
