# SPDX-License-Identifier: Apache-2.0
"""An image store on real parts, in a directory of its own."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from flexd.host.linux import LinuxHost
from flexd.images.images import Images
from flexd.images.keys import default_settings
from flexd.images.transfer import Patience
from flexd.operations.events import Events
from flexd.operations.journal import Journal
from flexd.operations.locks import Locks
from flexd.operations.operations import Operations
from flexd.projects.projects import Projects
from flexd.projects.record import ProjectRecord
from flexd.store.mirror import StoreMirror
from flexd.store.sqlite import SqliteStore
from tests.contract.images.house import House

IMPATIENT = Patience(connect_s=5, silence_s=0.3, attempts=3, reconnects=6, pause_s=0.01)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="confining programs needs root")


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with opened(tmp_path, IMPATIENT) as made:
        yield made


@asynccontextmanager
async def opened(tmp_path: Path, patience: Patience) -> AsyncIterator[House]:
    host = LinuxHost()
    store = await SqliteStore.open(tmp_path / "store.db")
    mirror = await StoreMirror.open(store)
    journal = await Journal.open(tmp_path / "journal.db")
    events = Events()
    operations = Operations(events)
    unlinked: list[str] = []
    settings: dict[str, str] = {}

    async def delete_unpacked(fingerprint: str) -> None:
        unlinked.append(fingerprint)

    projects = Projects(mirror, Locks())
    await projects.start()
    await projects.documents.create(("other",), ProjectRecord("other", config={"features.images": "true"}))
    images = Images(
        host=host,
        mirror=mirror,
        journal=journal,
        operations=operations,
        locks=Locks(),
        events=events,
        directory=tmp_path / "images",
        delete_unpacked=delete_unpacked,
        projects=projects,
        settings=lambda name: settings.get(name, default_settings(name)),
        patience=patience,
    )
    await images.prepare()
    yield House(images, journal, events, operations, tmp_path / "images", unlinked, settings)
    await operations.close()
    await journal.close()
    await mirror.close()
    await store.close()
    await host.close()
