# SPDX-License-Identifier: Apache-2.0
"""Log files of an instance: liblxc's, and the recorded output of exec."""

import asyncio
from pathlib import Path

from flexd.api.errors import BadRequest, NotFound
from flexd.instances.record import InstanceRecord
from flexd.instances.registry import Registry
from flexd.runtime.contract import Runtime


class Logs:
    """The service behind `/1.0/instances/NAME/logs`."""

    def __init__(self, *, registry: Registry, runtime: Runtime, directory: Path) -> None:
        self._registry = registry
        self._runtime = runtime
        self._directory = directory

    async def names(self, project: str, name: str) -> list[str]:
        return sorted(await self._files(project, name))

    async def _files(self, project: str, name: str) -> dict[str, Path]:
        record = self._registry.instance(project, name)
        files = {path.name: path for path in await self._runtime.log_files(record.storage_name)}
        recorded = await asyncio.to_thread(lambda: list(self._folder(record).glob("exec_*")))
        return files | {path.name: path for path in recorded}

    def _folder(self, record: InstanceRecord) -> Path:
        return self._directory / record.storage_name

    async def path(self, project: str, name: str, file: str) -> Path:
        """The file behind a name; only those that `names` lists can be had."""
        found = (await self._files(project, name)).get(file)
        if found is None:
            raise NotFound(f'Log file "{file}" of instance "{name}" not found')
        return found

    async def delete(self, project: str, name: str, file: str) -> None:
        """Only recorded output can be deleted, as in LXD: the other files are in use."""
        path = await self.path(project, name, file)
        if not file.startswith("exec_"):
            raise BadRequest(f'Failed deleting log file "{file}" of instance "{name}": only exec output can be deleted')
        await asyncio.to_thread(path.unlink, missing_ok=True)

    async def exec_output(self, record: InstanceRecord, operation_id: str, stream: str) -> Path:
        """Where a command's recorded output goes."""
        folder = self._folder(record)
        await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
        return folder / f"exec_{operation_id}.{stream}"
