# SPDX-License-Identifier: Apache-2.0
"""One SQLite file and the one thread that touches it; also the journal's.

The file is held exclusively: a second daemon on the same state directory is refused instead of corrupting it.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

from flexd.api.errors import FlexdError

T = TypeVar("T")


class DatabaseFailed(FlexdError):
    """SQLite refused: the file is in use, damaged or the disk is full."""

    def __init__(self, path: Path, cause: sqlite3.Error) -> None:
        self.path = path
        held = isinstance(cause, sqlite3.OperationalError) and "locked" in str(cause)
        reason = "another daemon has it open" if held else str(cause)
        super().__init__(f'Failed using the database "{path}": {reason}')


class Database:
    """`await Database.open(...)`, then whole transactions as functions through `run`."""

    def __init__(self, path: Path, connection: sqlite3.Connection, thread: ThreadPoolExecutor) -> None:
        self.path = path
        self._connection = connection
        self._thread = thread

    @classmethod
    async def open(cls, path: Path, migrations: Path, synchronous: Literal["FULL", "NORMAL"]) -> "Database":
        """Open or create the file and apply what is missing of `migrations/NNNN_*.sql`."""
        thread = ThreadPoolExecutor(1, thread_name_prefix=f"flexd-{path.stem}")
        try:
            connection = await asyncio.get_running_loop().run_in_executor(thread, _connect, path, synchronous)
        except sqlite3.Error as error:
            thread.shutdown(wait=False)
            raise DatabaseFailed(path, error) from error
        database = cls(path, connection, thread)
        try:
            await database.run(lambda connection: migrate(connection, migrations))
        except BaseException:
            await database.close()
            raise
        return database

    async def run(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """The job's result, from the thread. A job once given is always carried out, and cancelling the caller takes
        effect only after it: whoever is cancelled knows that the thread is done with its work."""
        work = asyncio.get_running_loop().run_in_executor(self._thread, job, self._connection)
        cancelled: asyncio.CancelledError | None = None
        while not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError as error:
                cancelled = error
        failure = work.exception()
        if cancelled is not None:
            raise cancelled
        if isinstance(failure, sqlite3.Error):
            raise DatabaseFailed(self.path, failure) from failure
        return work.result()

    async def close(self) -> None:
        await self.run(sqlite3.Connection.close)
        self._thread.shutdown(wait=False)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """BEGIN, then COMMIT, or ROLLBACK if the body raises. In the database's thread."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def migrate(connection: sqlite3.Connection, folder: Path) -> None:
    """Apply the numbered SQL files that this database has not seen, each as one transaction."""
    applied = connection.execute("PRAGMA user_version").fetchone()[0]
    files = sorted(folder.glob("[0-9][0-9][0-9][0-9]_*.sql"))
    known = int(files[-1].name[:4])
    if applied > known:
        raise FlexdError(f"Failed opening the database: its schema {applied} is newer than this flexd ({known})")
    for file in files:
        number = int(file.name[:4])
        if number <= applied:
            continue
        connection.executescript(f"BEGIN IMMEDIATE;\n{file.read_text()}\nPRAGMA user_version = {number};\nCOMMIT;")


def _connect(path: Path, synchronous: str) -> sqlite3.Connection:
    # The state directory holds secrets; the file must never be readable for others, not even for a moment.
    path.touch(mode=0o600)
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection
