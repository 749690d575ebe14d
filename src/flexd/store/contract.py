# SPDX-License-Identifier: Apache-2.0
"""The configuration store: small JSON documents under keys, each with the revision of its last change.

SQLite on one host, etcd in a cluster; both pass `tests/contract/store`. Keys look like `/instances/default/c1`; no
images, logs, operations or container states live here. Limits are etcd's: 128 operations and 1.5 MiB a transaction.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from msgspec import Struct

from flexd.api.errors import Conflict


class RevisionConflict(Conflict):
    """A transaction's condition did not hold: somebody changed `key` meanwhile."""

    def __init__(self, key: str, expected: int, found: int) -> None:
        self.key, self.expected, self.found = key, expected, found
        super().__init__(f'Failed writing "{key}": it was changed meanwhile (revision {found}, expected {expected})')


class HistoryGone(Conflict):
    """A watch asked for changes that the engine has forgotten: list anew, then watch from that revision."""

    def __init__(self, from_revision: int, oldest: int) -> None:
        self.from_revision, self.oldest = from_revision, oldest
        super().__init__(f"Failed watching from revision {from_revision}: the history begins after {oldest}")


class Entry(Struct, frozen=True):
    key: str
    value: bytes
    revision: int


class Put(Struct, frozen=True):
    key: str
    value: bytes
    lease: int = 0


class Delete(Struct, frozen=True):
    key: str


class If(Struct, frozen=True):
    """The key's revision must be this; 0: the key must not exist."""

    key: str
    revision: int


class Change(Struct, frozen=True):
    """A watch event; `value` is None for a deletion."""

    key: str
    value: bytes | None
    revision: int


class Store(Protocol):
    async def get(self, key: str) -> Entry | None: ...

    async def list(self, prefix: str) -> list[Entry]:
        """Entries whose key starts with prefix, sorted by key."""
        ...

    async def txn(self, ops: Sequence[Put | Delete], conditions: Sequence[If] = ()) -> int:
        """All or nothing; returns the new revision, which every touched key then has. `RevisionConflict` if a
        condition does not hold. Durable when it returns. Each key at most once in ops; deleting an absent key
        changes nothing, and a transaction that changes nothing returns the present revision."""
        ...

    def watch(self, prefix: str, from_revision: int) -> AsyncIterator[Change]:
        """Changes with revision > from_revision, in revision order, each once; goes on until closed. The changes of
        one transaction come without a suspension between them, so other tasks see all of them or none.
        `HistoryGone` if from_revision is too old."""
        ...

    async def grant(self, ttl_s: float) -> int:
        """A lease; keys put under it vanish when it ends."""
        ...

    async def keepalive(self, lease: int) -> bool:
        """Renew; False if it has already ended."""
        ...

    async def revoke(self, lease: int) -> None: ...
    async def revision(self) -> int: ...
    async def close(self) -> None: ...
