# SPDX-License-Identifier: Apache-2.0
"""Writing an image's templates into a container's root before it starts, as the container's own root would."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from flexd.api.errors import FlexdError, NotFound
from flexd.api.idmap import IdMap
from flexd.api.image import ImageMetadataTemplate
from flexd.api.units import is_true
from flexd.instances.firstboot import APPLY_TEMPLATE
from flexd.instances.metadata import MetadataDocuments, MetadataRecord
from flexd.instances.pongo import render
from flexd.instances.record import Expanded, InstanceRecord
from flexd.instances.registry import Registry
from flexd.runtime.contract import ContainerFiles, Runtime


class Templates:
    """Costs nothing where no template is due: no process, no write."""

    def __init__(self, *, registry: Registry, documents: MetadataDocuments, runtime: Runtime) -> None:
        self._registry = registry
        self._documents = documents
        self._runtime = runtime

    async def apply(self, record: InstanceRecord, expanded: Expanded, rootfs: Path, idmap: IdMap) -> None:
        """Those for what has happened to the instance since it last ran (`volatile.apply_template`), then those for
        every start. The root is mounted and nobody else uses it; may be repeated."""
        triggers = [trigger for trigger in (record.config.get(APPLY_TEMPLATE, ""), "start") if trigger]
        known = self._documents.of(record) or MetadataRecord()
        due = [(trigger, *found) for trigger in triggers for found in _due(known, trigger)]
        if due:
            files = await self._runtime.files(None, rootfs, idmap)
            try:
                for trigger, path, template in due:
                    context = _context(record, expanded, trigger, path, template)
                    await self._write(files, path, template, known.templates, context)
            except FlexdError as error:
                raise FlexdError(f'Failed applying the templates of instance "{record.name}": {error}') from error
            finally:
                await files.close()
        if APPLY_TEMPLATE in record.config:
            await self._done(record)

    async def _write(
        self,
        files: ContainerFiles,
        path: str,
        template: ImageMetadataTemplate,
        texts: Mapping[str, str],
        context: Mapping[str, Any],
    ) -> None:
        if template.create_only and await _exists(files, path):
            return
        if template.template not in texts:
            raise NotFound(f'template "{template.template}" for "{path}" is missing')
        text = await asyncio.to_thread(render, template.template, texts[template.template], context, context["config"])
        await _make_parents(files, path)
        fd = await files.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode=0o644)
        try:
            await asyncio.to_thread(_write_all, fd, text.encode())
        finally:
            os.close(fd)

    async def _done(self, record: InstanceRecord) -> None:
        found = self._registry.find(record.project, record.name)
        config = {key: value for key, value in found.value.config.items() if key != APPLY_TEMPLATE}
        await self._registry.instances.update(
            found.path, msgspec.structs.replace(found.value, config=config), found.revision
        )


def _due(known: MetadataRecord, trigger: str) -> list[tuple[str, ImageMetadataTemplate]]:
    return [(path, each) for path, each in sorted(known.metadata.templates.items()) if trigger in each.when]


def _context(
    record: InstanceRecord, expanded: Expanded, trigger: str, path: str, template: ImageMetadataTemplate
) -> dict[str, Any]:
    """What a template can refer to (LXD: "Image format", templates); all values are texts."""
    instance = {
        "name": record.name,
        "type": record.type,
        "architecture": record.architecture,
        "privileged": str(is_true(expanded.config.get("security.privileged"))).lower(),
        "ephemeral": str(record.ephemeral).lower(),
    }
    return {
        "trigger": trigger,
        "path": path,
        "instance": instance,
        "container": instance,
        "config": expanded.config,
        "devices": expanded.devices,
        "properties": template.properties,
    }


async def _exists(files: ContainerFiles, path: str) -> bool:
    try:
        await files.stat(path, follow=False)
    except NotFound:
        return False
    return True


async def _make_parents(files: ContainerFiles, path: str) -> None:
    parent = os.path.dirname(path)
    if parent in ("", "/") or await _exists(files, parent):
        return
    await _make_parents(files, parent)
    await files.make_directory(parent, mode=0o755, uid=0, gid=0)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
