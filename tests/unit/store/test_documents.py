# SPDX-License-Identifier: Apache-2.0
"""Typed documents over a mirror."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec import Struct

from flexd.store.contract import RevisionConflict
from flexd.store.documents import Documents
from flexd.store.mirror import StoreMirror
from flexd.store.sqlite import SqliteStore


class Pet(Struct):
    name: str


@pytest.fixture
async def pets(tmp_path: Path) -> AsyncIterator[Documents[Pet]]:
    store = await SqliteStore.open(tmp_path / "store.db")
    mirror = await StoreMirror.open(store)
    yield Documents(mirror, "pets", Pet)
    await mirror.close()
    await store.close()


async def test_a_document_goes_round(pets: Documents[Pet]) -> None:
    revision = await pets.create(("default", "p1"), Pet("Rex"))
    document = pets.get("default", "p1")
    assert document is not None
    assert (document.path, document.value, document.revision) == (("default", "p1"), Pet("Rex"), revision)
    await pets.update(("default", "p1"), Pet("Tom"), revision)
    assert [document.value.name for document in pets.list()] == ["Tom"]
    await pets.delete(("default", "p1"))
    assert pets.get("default", "p1") is None


async def test_a_list_holds_one_folder(pets: Documents[Pet]) -> None:
    await pets.create(("a", "1"), Pet("1"))
    await pets.create(("ab", "2"), Pet("2"))
    assert [document.path for document in pets.list("a")] == [("a", "1")]
    assert len(pets.list()) == 2


async def test_writers_at_an_old_revision_are_refused(pets: Documents[Pet]) -> None:
    revision = await pets.create(("a",), Pet("1"))
    await pets.update(("a",), Pet("2"), revision)
    with pytest.raises(RevisionConflict):
        await pets.update(("a",), Pet("3"), revision)
    with pytest.raises(RevisionConflict):
        await pets.create(("a",), Pet("4"))


async def test_a_document_is_decoded_once_per_revision(pets: Documents[Pet]) -> None:
    await pets.create(("a",), Pet("1"))
    assert pets.get("a") is pets.get("a")


async def test_what_was_decoded_of_deleted_documents_is_let_go(pets: Documents[Pet]) -> None:
    for number in range(600):
        path = (f"p{number}",)
        await pets.create(path, Pet("1"))
        delete = pets.delete_op(path)
        pets.list()  # somebody reads it once more before it is gone
        await pets.txn([delete])
    assert len(pets._decoded) <= 128
