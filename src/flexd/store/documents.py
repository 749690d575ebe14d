# SPDX-License-Identifier: Apache-2.0
"""Typed documents over a store, read from memory.

`Mirror` holds every entry below a prefix, filled by list and kept by watch, so a read never touches the engine; a
write returns only when the mirror shows it. `Documents[T]` is one folder of it, decoded once per revision.
"""

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import msgspec

from flexd.store.contract import Delete, Entry, If, Put

T = TypeVar("T")

# What was decoded of so many deleted documents may be kept, at most; a sweep of 1,000 costs 0.1 ms.
_SWEEP_AFTER = 128


class Mirror(Protocol):
    """What `Documents` needs of a mirror (`flexd.store.mirror.StoreMirror`)."""

    def get(self, key: str) -> Entry | None: ...
    def list(self, prefix: str) -> list[Entry]: ...
    async def txn(self, ops: Sequence[Put | Delete], conditions: Sequence[If] = ()) -> int: ...


class Document(msgspec.Struct, Generic[T], frozen=True):
    """A decoded value and the revision it was read at. Treat `value` as read-only: it is shared."""

    path: tuple[str, ...]
    value: T
    revision: int


class Documents(Generic[T]):
    """The documents of one kind below `/folder/`, addressed by path segments: `("default", "c1")`."""

    def __init__(self, mirror: Mirror, folder: str, kind: type[T]) -> None:
        self._mirror = mirror
        self._prefix = f"/{folder}/"
        self._decoder = msgspec.json.Decoder(kind)
        self._decoded: dict[str, Document[T]] = {}
        self._new = 0  # decoded since the last sweep

    def key(self, *path: str) -> str:
        return self._prefix + "/".join(path)

    def get(self, *path: str) -> Document[T] | None:
        entry = self._mirror.get(self.key(*path))
        return None if entry is None else self._decode(entry)

    def list(self, *path: str) -> list[Document[T]]:
        """All documents below a path, sorted by key; without a path the whole folder."""
        prefix = self.key(*path) + "/" if path else self._prefix
        return [self._decode(entry) for entry in self._mirror.list(prefix)]

    def put(self, path: Sequence[str], value: T) -> Put:
        """The operation that writes a document, for a transaction over several."""
        return Put(self.key(*path), msgspec.json.encode(value))

    def delete_op(self, path: Sequence[str]) -> Delete:
        return Delete(self.key(*path))

    def unchanged(self, path: Sequence[str], revision: int) -> If:
        """The condition that a document still has this revision (0: is absent)."""
        return If(self.key(*path), revision)

    async def create(self, path: Sequence[str], value: T) -> int:
        """Write a document that must not exist yet; `RevisionConflict` if it does."""
        return await self._mirror.txn([self.put(path, value)], [self.unchanged(path, 0)])

    async def update(self, path: Sequence[str], value: T, revision: int) -> int:
        """Replace a document read at `revision`; `RevisionConflict` if it was changed since."""
        return await self._mirror.txn([self.put(path, value)], [self.unchanged(path, revision)])

    async def delete(self, path: Sequence[str]) -> None:
        """Remove a document; absent: no error."""
        await self._mirror.txn([self.delete_op(path)])

    async def txn(self, ops: Sequence[Put | Delete], conditions: Sequence[If] = ()) -> int:
        return await self._mirror.txn(ops, conditions)

    def _decode(self, entry: Entry) -> Document[T]:
        known = self._decoded.get(entry.key)
        if known is not None and known.revision == entry.revision:
            return known
        path = tuple(entry.key[len(self._prefix) :].split("/"))
        document = Document(path, self._decoder.decode(entry.value), entry.revision)
        self._decoded[entry.key] = document
        self._new += 1
        if self._new >= _SWEEP_AFTER:
            self._sweep()
        return document

    def _sweep(self) -> None:
        """Documents that were deleted: whoever deleted them, and whenever somebody read them last."""
        self._new = 0
        for key in [key for key in self._decoded if self._mirror.get(key) is None]:
            del self._decoded[key]
