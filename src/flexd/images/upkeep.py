# SPDX-License-Identifier: Apache-2.0
"""The daemon's own work on images: newer versions of those kept up to date, the end of those long unused."""

import asyncio
import logging
from datetime import datetime, timedelta

from flexd.api.errors import FlexdError
from flexd.api.times import ZERO_TIME, now
from flexd.images.contract import ImageRecord
from flexd.images.images import Images
from flexd.images.keys import ProjectSettings
from flexd.operations.operations import Operation, Operations

log = logging.getLogger(__name__)

# After a start the machine has better things to do than to download.
_FIRST_LOOK = timedelta(minutes=5)
_TICK_S = 60.0


class Upkeep:
    """`run` is a task of the daemon; settings are read anew every minute, a project's own before the server's."""

    def __init__(
        self, *, images: Images, operations: Operations, setting: ProjectSettings, started_at: datetime
    ) -> None:
        self._images, self._operations, self._setting = images, operations, setting
        self._started_at = started_at
        self._looked_at: dict[str, datetime] = {}

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            try:
                await self.tick(now())
            except Exception:  # border of a background task: the next minute comes anyway
                log.exception("Failed looking after images")

    async def tick(self, at: datetime) -> None:
        await self._expire(at)
        projects = {record.project for record in self._images.all()}
        for project in sorted(projects):
            if self._is_due(project, at):
                self._looked_at[project] = at
                await self._update(project)

    def _is_due(self, project: str, at: datetime) -> bool:
        interval = timedelta(hours=int(self._setting(project, "images.auto_update_interval")))
        if interval <= timedelta():
            return False
        if project not in self._looked_at:
            return at - self._started_at >= min(_FIRST_LOOK, interval)
        return at - self._looked_at[project] >= interval

    async def _update(self, project: str) -> None:
        """One operation for all of a project, so that whoever looks sees what is being done."""
        due = [each for each in self._images.of_project(project) if each.auto_update and has_newer_versions(each)]
        if not due:
            return

        async def run(operation: Operation) -> dict[str, int]:
            results = [await self._refresh(record, operation) for record in due]
            return {"updated": results.count(True), "failed": results.count(None)}

        operation = self._operations.start("task", "Updating images", project, {}, run, may_cancel=True)
        await operation.wait()

    async def _refresh(self, record: ImageRecord, operation: Operation) -> bool | None:
        """Whether there was a newer version; None if that could not be learnt or had."""
        try:
            newer = await self._images.replace_by_newer(record.project, record.fingerprint, operation.progress)
        except FlexdError as error:
            log.warning('Failed updating image "%s" (%s): %s', record.fingerprint, _origin(record), error)
            return None
        if newer is None:
            log.debug('image "%s" (%s) is up to date', record.fingerprint, _origin(record))
            return False
        log.info('updated image "%s" (%s) to "%s"', record.fingerprint, _origin(record), newer.fingerprint)
        return True

    async def _expire(self, at: datetime) -> None:
        for record in self._images.all():
            days = int(self._setting(record.project, "images.remote_cache_expiry"))
            if days > 0 and record.cached and at - last_use(record) > timedelta(days=days):
                log.info('removing image "%s" (%s): unused for %d days', record.fingerprint, _origin(record), days)
                try:
                    operation = await self._images.delete(record.project, record.fingerprint)
                except FlexdError as error:
                    log.warning('Failed removing image "%s": %s', record.fingerprint, error)
                else:
                    await operation.wait()


def has_newer_versions(record: ImageRecord) -> bool:
    """Whether there is a name under which its server will have newer ones."""
    return record.update_source is not None and bool(record.update_source.alias)


def last_use(record: ImageRecord) -> datetime:
    return record.uploaded_at if record.last_used_at == ZERO_TIME else record.last_used_at


def _origin(record: ImageRecord) -> str:
    source = record.update_source
    return f"{source.alias} of {source.server}" if source else "no server"
