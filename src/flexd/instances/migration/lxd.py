# SPDX-License-Identifier: Apache-2.0
"""The file system's part of a migration to or from an LXD: rsync on the channel, as LXD runs it."""

from typing import Any

from flexd.instances.migration.peer import MigrationFailed


class LxdSender:
    async def send(self, *_arguments: Any) -> None:
        raise MigrationFailed("The other server is no flexd")


class LxdReceiver:
    async def receive(self, *_arguments: Any) -> None:
        raise MigrationFailed("The other server is no flexd")
