# SPDX-License-Identifier: Apache-2.0
"""What the daemon does by itself: newer versions, and the end of what nobody used."""

import logging
from datetime import UTC, datetime, timedelta

import pytest

from flexd.api.image import ImagesPost, ImagesPostSource
from flexd.api.times import now
from flexd.images.keys import default_settings
from flexd.images.upkeep import Upkeep
from flexd.operations.journal import ignore_progress
from tests.contract.images.house import House, ended
from tests.contract.images.test_simplestreams import cache, copy, outdate, tree
from tests.contract.images.tree import Tree

__all__ = ["tree"]  # the fixture

STARTED = datetime(2026, 1, 1, tzinfo=UTC)


def upkeep(house: House) -> Upkeep:
    def setting(_project: str, name: str) -> str:
        return house.settings.get(name, default_settings(name))

    return Upkeep(images=house.images, operations=house.operations, setting=setting, started_at=STARTED)


async def test_updates_come_at_their_time(house: House, tree: Tree) -> None:
    await cache(house, tree)
    keeper = upkeep(house)
    first = tree.fingerprint
    second = tree.add("20260202_06:00")
    outdate(house)
    await keeper.tick(STARTED + timedelta(minutes=4))
    assert house.images.fingerprints("default") == [first]
    await keeper.tick(STARTED + timedelta(minutes=5))
    assert house.images.fingerprints("default") == [second]
    assert house.images.show("default", second).cached
    third = tree.add("20260303_06:00")
    outdate(house)
    await keeper.tick(STARTED + timedelta(hours=5))
    assert house.images.fingerprints("default") == [second]
    await keeper.tick(STARTED + timedelta(hours=6, minutes=5))
    assert house.images.fingerprints("default") == [third]
    assert [operation.description for operation in house.operations.list()].count("Updating images") == 2


async def test_no_updates_where_none_are_wanted(house: House, tree: Tree) -> None:
    first = await copy(house, tree)  # no auto_update
    house.settings["images.auto_update_interval"] = "0"
    keeper = upkeep(house)
    tree.add("20260202_06:00")
    outdate(house)
    await keeper.tick(STARTED + timedelta(days=1))
    house.settings["images.auto_update_interval"] = "1"
    await keeper.tick(STARTED + timedelta(days=1))
    assert house.images.fingerprints("default") == [first]


async def test_server_that_is_away_is_a_warning(house: House, tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    await copy(house, tree, auto_update=True)
    await tree.server.close()
    outdate(house)
    await upkeep(house).tick(STARTED + timedelta(hours=1))
    assert house.images.fingerprints("default") == [tree.fingerprint]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings[0].startswith(f'Failed updating image "{tree.fingerprint}" (tiny/1 of {tree.url}): Failed downl')


async def test_cached_images_expire(house: House, tree: Tree) -> None:
    await cache(house, tree)
    house.settings["images.auto_update_interval"] = "0"
    keeper = upkeep(house)
    await keeper.tick(now() + timedelta(days=9))
    assert house.images.fingerprints("default") == [tree.fingerprint]
    house.settings["images.remote_cache_expiry"] = "0"
    await keeper.tick(now() + timedelta(days=99))
    assert house.images.fingerprints("default") == [tree.fingerprint]
    house.settings["images.remote_cache_expiry"] = "10"
    await keeper.tick(now() + timedelta(days=11))
    assert house.images.fingerprints("default") == []
    assert house.files() == []


async def test_images_that_were_asked_for_stay(house: House, tree: Tree) -> None:
    await cache(house, tree)
    await copy(house, tree)  # from now on it is not only a cache's
    house.settings["images.auto_update_interval"] = "0"
    await upkeep(house).tick(now() + timedelta(days=99))
    assert house.images.fingerprints("default") == [tree.fingerprint]


async def test_image_made_known_by_two_names_is_one(house: House, tree: Tree) -> None:
    tree.products["tiny:1:amd64:default"]["aliases"] = "tiny/1,tiny/one"
    tree.publish()
    await cache(house, tree, "tiny/1")
    source = ImagesPostSource(type="image", server=tree.url, protocol="simplestreams", alias="tiny/one")
    await ended(await house.images.create_from_source("default", ImagesPost(source=source)))
    fetch = await house.images.remote(source, "x86_64")
    assert (await house.images.cache("default", fetch, ignore_progress)).fingerprint == tree.fingerprint
