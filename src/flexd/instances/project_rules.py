# SPDX-License-Identifier: Apache-2.0
"""Whether a project allows what is about to be written: its limits over everything that counts, its restrictions over
the instances and profiles that change.

Asked before the work, and again by `Projects.write` in the moment of writing."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from flexd.api.errors import Forbidden
from flexd.api.units import parse_size
from flexd.images.contract import ImageRecord
from flexd.instances.record import Expanded, InstanceRecord, ProfileRecord, expand
from flexd.instances.registry import Registry
from flexd.instances.restrictions import faults, volatile_faults
from flexd.instances.usage import Contents, Sized, limits_of, over, shares, too_low, total
from flexd.projects.keys import SUMS, Rules
from flexd.projects.projects import Feature, Projects
from flexd.projects.record import ProjectRecord
from flexd.storage.contract import VolumeRecord

T = TypeVar("T")

# What `GET /1.0/projects/NAME/state` shows of every project.
_SHOWN = ("containers", "cpu", "disk", "instances", "memory", "networks", "processes", "virtual-machines")

Changed = Mapping[tuple[str, str], InstanceRecord]
ChangedProfiles = Mapping[tuple[str, str], ProfileRecord]


class ProjectRules:
    """`volumes`, `images`, `networks`: what a project has that owns such things."""

    def __init__(
        self,
        *,
        projects: Projects,
        registry: Registry,
        volumes: Callable[[str], Iterable[VolumeRecord]],
        images: Callable[[str], Iterable[ImageRecord]],
        networks: Callable[[str], Iterable[str]],
    ) -> None:
        self._projects = projects
        self._registry = registry
        self._volumes, self._images, self._networks = volumes, images, networks

    # --- what there is ---

    def contents(self, project: str) -> Contents:
        return Contents(
            tuple((record, self._registry.expand(record)) for record in self._registry.all_instances(project)),
            tuple(_sized_volume(each) for each in self._owned(project, "storage.volumes", self._volumes)),
            tuple(_sized_image(each) for each in self._owned(project, "images", self._images)),
            tuple(self._owned(project, "networks", self._networks)),
        )

    def _owned(self, project: str, feature: Feature, found: Callable[[str], Iterable[T]]) -> Iterable[T]:
        return found(project) if self._projects.owner(project, feature) == project else ()

    def usage(self, project: str) -> dict[str, tuple[int | None, int]]:
        """Limit (None: none) and use of each of what projects are limited in; `disk.POOL` where that is limited."""
        contents = self.contents(project)
        limits = limits_of(self._projects.find(project).value.config)
        names = {f"limits.{name}" for name in _SHOWN} | set(limits)
        found = {}
        for key in sorted(names):
            name = key.removeprefix("limits.").replace("disk.pool.", "disk.")
            found[name] = limits.get(key), total(shares(key, project, contents))
        return found

    # --- what may be written ---

    def check(self, instances: Sequence[InstanceRecord] = (), profiles: Sequence[ProfileRecord] = ()) -> None:
        """Instances and profiles as they are to be; `Forbidden` tells all that is wrong with that."""
        changed = {(record.project, record.name): record for record in instances}
        changed_profiles = {(record.project, record.name): record for record in profiles}
        found = [fault for profile in profiles for fault in self._profile_faults(profile)]
        for project in self._concerned(changed, changed_profiles):
            found += self._faults(project, changed, changed_profiles)
        _refuse(found)

    def _profile_faults(self, profile: ProfileRecord) -> list[str]:
        rules = self._projects.rules(profile.project)
        return faults(rules, f'profile "{profile.name}"', profile.config, profile.devices, whole=False)

    def _concerned(self, instances: Changed, profiles: ChangedProfiles) -> list[str]:
        projects = {project for project, _ in instances}
        for owner, _ in profiles:
            projects |= set(self._projects.sharing(owner, "profiles"))
        return sorted(projects)

    def _faults(self, project: str, instances: Changed, profiles: ChangedProfiles) -> list[str]:
        rules = self._projects.rules(project)
        limits = limits_of(rules.config)
        if not rules.restricted and not limits:
            return []
        after = self._after(project, instances, profiles)
        found = []
        for record, expanded in after:
            if (project, record.name) in instances or self._uses(record, profiles):
                found += self._instance_faults(rules, record, expanded)
        if limits:
            now = self.contents(project)
            then = msgspec.structs.replace(now, instances=tuple(after))
            found += [fault for key, limit in limits.items() for fault in over(key, project, limit, now, then)]
        return found

    def _instance_faults(self, rules: Rules, record: InstanceRecord, expanded: Expanded) -> list[str]:
        return faults(rules, f'{record.type} "{record.name}"', expanded.config, expanded.devices, whole=True)

    def _after(
        self, project: str, instances: Changed, profiles: ChangedProfiles
    ) -> list[tuple[InstanceRecord, Expanded]]:
        known = {record.name: record for record in self._registry.all_instances(project)}
        known |= {record.name: record for record in instances.values() if record.project == project}
        return [(record, self._expand(record, profiles)) for _, record in sorted(known.items())]

    def _uses(self, record: InstanceRecord, profiles: ChangedProfiles) -> bool:
        owner = self._projects.owner(record.project, "profiles")
        return any((owner, name) in profiles for name in record.profiles)

    def _expand(self, record: InstanceRecord, profiles: ChangedProfiles) -> Expanded:
        owner = self._projects.owner(record.project, "profiles")
        used = [
            profiles.get((owner, name)) or self._registry.find_profile(owner, name).value for name in record.profiles
        ]
        return expand(used, record.config, record.devices)

    def check_volatile(self, record: InstanceRecord, sent: Mapping[str, str]) -> None:
        """`record` as it is; what a client sent as its configuration."""
        rules = self._projects.rules(record.project)
        _refuse(volatile_faults(rules, f'{record.type} "{record.name}"', sent, record.config))

    def check_volume(self, record: VolumeRecord) -> None:
        """A custom volume as it is to be."""
        self._projects.check_pool(record.project, record.pool)
        self._check_sized(record.project, "volumes", _sized_volume(record))

    def check_image(self, record: ImageRecord) -> None:
        self._check_sized(record.project, "images", _sized_image(record))

    def check_network(self, project: str, name: str) -> None:
        self._check_contents(project, lambda now: msgspec.structs.replace(now, networks=(*now.networks, name)))

    def _check_sized(self, project: str, kind: str, new: Sized) -> None:
        def after(now: Contents) -> Contents:
            others = [each for each in getattr(now, kind) if (each.label, each.pool) != (new.label, new.pool)]
            return msgspec.structs.replace(now, **{kind: (*others, new)})

        self._check_contents(project, after)

    def _check_contents(self, project: str, change: Callable[[Contents], Contents]) -> None:
        limits = limits_of(self._projects.rules(project).config)
        if limits:
            now = self.contents(project)
            after = change(now)
            _refuse([fault for key, limit in limits.items() for fault in over(key, project, limit, now, after)])

    # --- what a project may become ---

    def project_faults(self, new: ProjectRecord) -> list[str]:
        """Why a project's configuration cannot be this: whom it has that would break its limits and restrictions."""
        rules, contents = Rules(new.name, new.config), self.contents(new.name)
        found = []
        if rules.restricted:
            for record, expanded in contents.instances:
                found += self._instance_faults(rules, record, expanded)
            for document in self._registry.profiles.list(new.name):
                profile = document.value
                subject = f'profile "{profile.name}"'
                found += faults(rules, subject, profile.config, profile.devices, whole=False)
        limits = limits_of(new.config)
        ordered = sorted(limits, key=lambda key: (key in SUMS, key))
        return found + [fault for key in ordered for fault in too_low(key, new.name, limits[key], contents)]


def _refuse(found: Sequence[str]) -> None:
    if found:
        raise Forbidden("; ".join(found))


def _sized_volume(record: VolumeRecord) -> Sized:
    size = record.config.get("size", "")
    return Sized(f'volume "{record.name}"', record.pool, parse_size(size) if size else None)


def _sized_image(record: ImageRecord) -> Sized:
    return Sized(f'image "{record.fingerprint[:12]}"', "", record.size)
