# SPDX-License-Identifier: Apache-2.0
"""The engines under test: each a way to open the store in a folder; opened there again it is the same store.

A new engine is one more entry of `ENGINES`.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path

from flexd.store.contract import Store
from flexd.store.sqlite import SqliteStore

OpenStore = Callable[[], Awaitable[Store]]
ENGINES: dict[str, Callable[[Path], Awaitable[Store]]] = {
    "sqlite": lambda folder: SqliteStore.open(folder / "store.db"),
}
