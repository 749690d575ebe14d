# SPDX-License-Identifier: Apache-2.0
"""One store of each engine."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flexd.store.contract import Store
from tests.contract.store.engines import ENGINES, OpenStore


@pytest.fixture(params=sorted(ENGINES))
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def open_store(engine: str, tmp_path: Path) -> OpenStore:
    """Opens the same store each time it is called."""
    return lambda: ENGINES[engine](tmp_path)


@pytest.fixture
async def store(open_store: OpenStore) -> AsyncIterator[Store]:
    store = await open_store()
    yield store
    await store.close()
