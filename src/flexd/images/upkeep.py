# SPDX-License-Identifier: Apache-2.0
"""The daemon's own work on images: newer versions of those kept up to date, the end of those long unused."""

import asyncio
import logging
from datetime import datetime, timedelta

from flexd.api.errors import FlexdError
from flexd.api.times import ZERO_TIME, now
from flexd.images.contract import ImageRecord
from flexd.images.images import Images
from flexd.images.keys import Settings
from flexd.operations.operations import Operation, Operations

log = logging.getLogger(__name__)

# After a start the machine has better things to do than to download.
_FIRST_LOOK = timedelta(minutes=5)
_TICK_S = 60.0


class Upkeep:
    """`run` is a task of the daemon; settings are read anew every minute."""

    def __init__(self, *, images: Images, operations: Operations, settings: Settings, started_at: datetime) -> None:
        self._images, self._operations, self._settings = images, operations, settings
        self._started_at = started_at
        self._looked_at: datetime | None = None

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            try:
                await self.tick(now())
            except Exception:  # border of a background task: the next minute comes anyway
                log.exception("Failed looking after images")

    async def tick(self, at: datetime) -> None:
        await self._expire(at)
        if self._is_due(at):
            self._looked_at = at
            await self._update()

    def _is_due(self, at: datetime) -> bool:
        interval = timedelta(hours=int(self._settings("images.auto_update_interval")))
        if not interval:
            return False
        if self._looked_at is None:
            return at - self._started_at >= min(_FIRST_LOOK, interval)
        return at - self._looked_at >= interval

    async def _update(self) -> None:
        """One operation for all, so that whoever looks sees what is being done."""
        due = [record for record in self._images.all() if record.auto_update and has_newer_versions(record)]
        if not due:
            return

        async def run(operation: Operation) -> dict[str, int]:
            results = [await self._refresh(record, operation) for record in due]
            return {"updated": results.count(True), "failed": results.count(None)}

        operation = self._operations.start("task", "Updating images", "default", {}, run, may_cancel=True)
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
        days = int(self._settings("images.remote_cache_expiry"))
        for record in self._images.all():
            if days and record.cached and at - last_use(record) > timedelta(days=days):
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
