# SPDX-License-Identifier: Apache-2.0
"""Files of backups in one directory, and their documents, each below the path of what the backup is of (its owner).

The document is what counts: a file that none names is swept away.
"""

import asyncio
import logging
import secrets
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Struct

from flexd.api.errors import BadRequest, Conflict, FlexdError
from flexd.api.times import ZERO_TIME
from flexd.operations.contract import Plan, Progress, Step
from flexd.operations.journal import Journal
from flexd.operations.locks import Locks
from flexd.store.contract import If
from flexd.store.documents import Document, Documents

log = logging.getLogger(__name__)

Args = dict[str, Any]
Owner = tuple[str, ...]
_INCOMING = ".incoming-"


class ShelvedBackup(Struct):
    """`file` is its name in the directory, which stays when backup or owner are renamed."""

    name: str
    file: str
    created_at: datetime = ZERO_TIME
    expires_at: datetime = ZERO_TIME


T = TypeVar("T", bound=ShelvedBackup)


class Shelf(Generic[T]):
    """One kind of backups; `prepare` before anything else. `still_there`: the condition that an owner is as it was when
    its backup was begun; raises `NotFound` if it is gone."""

    def __init__(
        self,
        actions: str,
        *,
        documents: Documents[T],
        kind: type[T],
        still_there: Callable[[Owner], If],
        journal: Journal,
        locks: Locks,
        directory: Path,
    ) -> None:
        self._actions = actions
        self._documents = documents
        self._kind = kind
        self._still_there = still_there
        self._journal = journal
        self._locks = locks
        self._directory = directory
        self._reserved: set[tuple[str, ...]] = set()
        journal.register(f"{actions}.place", self._place, self._unplace)
        journal.register(f"{actions}.record", self._record)

    async def prepare(self) -> None:
        """After `journal.recover()`: clear away what a crash left unfinished."""

        def prepare() -> None:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in self._directory.glob(f"{_INCOMING}*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

        await asyncio.to_thread(prepare)
        await self.sweep()

    # --- names ---

    def find(self, owner: Owner, name: str) -> Document[T] | None:
        return self._documents.get(*owner, name)

    def of(self, owner: Owner) -> list[T]:
        """The oldest first."""
        found = [document.value for document in self._documents.list(*owner)]
        return sorted(found, key=lambda backup: (backup.created_at, backup.name))

    def path(self, backup: T) -> Path:
        return self._directory / backup.file

    def next_name(self, owner: Owner) -> str:
        """`backup0`, and so on."""
        taken = {backup.name for backup in self.of(owner)}
        taken |= {name for *of, name in self._reserved if tuple(of) == owner}
        return next(name for number in range(len(taken) + 1) if (name := f"backup{number}") not in taken)

    def check_free(self, owner: Owner, name: str) -> None:
        check_backup_name(name)
        if (*owner, name) in self._reserved or self.find(owner, name) is not None:
            raise Conflict(f'Backup "{owner[-1]}/{name}" already exists')

    def reserve(self, owner: Owner, name: str) -> None:
        """Keep a name for a backup that is being made, until `release`."""
        self._reserved.add((*owner, name))

    def release(self, owner: Owner, name: str) -> None:
        self._reserved.discard((*owner, name))

    # --- putting in and taking out ---

    def incoming(self) -> Path:
        """A place for a file that is being written, gone at the next start. Others named like it go, too."""
        return self._directory / f"{_INCOMING}{secrets.token_hex(8)}"

    async def keep(self, owner: Owner, incoming: Path, made: T, description: str) -> None:
        """Put a file that is whole in its place, with its document; in any case nothing is left at `incoming`."""
        document = msgspec.json.encode(made).decode()
        file = incoming.name.removeprefix(_INCOMING)
        steps = (
            Step(f"{self._actions}.place", {"file": file}),
            Step(f"{self._actions}.record", {"owner": list(owner), "document": document, "file": file}),
        )
        try:
            async with self._locks.hold(self._files_key, "create"):
                await self._journal.run(Plan(description, steps))
        finally:
            await asyncio.to_thread(incoming.unlink, missing_ok=True)

    async def rename(self, owner: Owner, name: str, new_name: str) -> T | None:
        """None if there is no such backup (any more)."""
        found = self.find(owner, name)
        if found is None:
            return None
        renamed = msgspec.structs.replace(found.value, name=new_name)
        path = (*owner, new_name)
        conditions = [self._documents.unchanged(found.path, found.revision), self._documents.unchanged(path, 0)]
        await self._documents.txn(
            [self._documents.delete_op(found.path), self._documents.put(path, renamed)], conditions
        )
        return renamed

    async def delete(self, found: Document[T]) -> None:
        """The document first: a file that nothing names is swept away, whatever happens."""
        await self._documents.delete(found.path)
        await asyncio.to_thread(self.path(found.value).unlink, missing_ok=True)

    async def delete_expired(self, minute: datetime, told: Callable[[Document[T]], None]) -> None:
        """And files whose owner is gone. Nobody waits for it: a failure is logged, and the next one is tried."""
        for found in self._documents.list():
            if ZERO_TIME < found.value.expires_at <= minute:
                try:
                    await self.delete(found)
                    told(found)
                except (FlexdError, OSError) as error:
                    log.error('Failed deleting expired backup "%s": %s', "/".join(found.path[-2:]), error)
        await self.sweep()

    async def sweep(self) -> None:
        def sweep(known: set[str]) -> None:
            for path in self._directory.iterdir():
                if not path.name.startswith(".") and path.name not in known:
                    path.unlink()

        async with self._locks.hold(self._files_key, "sweep"):
            known = {found.value.file for found in self._documents.list()}
            await asyncio.to_thread(sweep, known)

    @property
    def _files_key(self) -> str:
        """The lock of whoever puts a file here and then writes its document, and of whoever removes files without
        one."""
        return f"{self._actions}-files"

    # --- journalled steps ---

    async def _place(self, args: Args, _progress: Progress) -> None:
        incoming, final = self._directory / f"{_INCOMING}{args['file']}", self._directory / args["file"]

        def place() -> None:
            if not final.exists():
                incoming.rename(final)

        await asyncio.to_thread(place)

    async def _unplace(self, args: Args) -> None:
        await asyncio.to_thread((self._directory / args["file"]).unlink, missing_ok=True)

    async def _record(self, args: Args, _progress: Progress) -> None:
        made = msgspec.structs.replace(msgspec.json.decode(args["document"], type=self._kind), file=args["file"])
        owner = tuple(args["owner"])
        path = (*owner, made.name)
        conditions = [self._still_there(owner), self._documents.unchanged(path, 0)]
        await self._documents.txn([self._documents.put(path, made)], conditions)


def check_backup_name(name: str) -> None:
    if "/" in name:
        raise BadRequest("Backup names may not contain slashes")
    if not name or len(name) > 64 or name in (".", "..") or not name.isprintable() or " " in name:
        raise BadRequest(f'Invalid backup name "{name}": 1 to 64 printable characters without slash and space')


def backup_url(owner_url: str, backup: str) -> str:
    """`owner_url` may have a query, which then comes last."""
    base, _, query = owner_url.partition("?")
    return f"{base}/backups/{backup}" + (f"?{query}" if query else "")
