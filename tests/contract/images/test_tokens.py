# SPDX-License-Identifier: Apache-2.0
"""Secrets that stand in for trust: what they open, and how they end."""

import hashlib

import pytest

from flexd.api.errors import BadRequest, Forbidden
from flexd.api.image import ImageAlias, ImageExportPost, ImagesPost, ImagesPostSource
from flexd.images.contract import ImageNotFound
from flexd.images.incoming import UploadHeaders
from tests.contract.images.house import Failed, House, chunks, ended
from tests.unit.images.archives import unified

IMAGE = unified()
FINGERPRINT = hashlib.sha256(IMAGE).hexdigest()


async def test_private_image_with_its_secret(house: House) -> None:
    await house.upload(IMAGE)
    operation = house.images.issue_secret("default", FINGERPRINT[:12])
    secret = operation.metadata["secret"]
    assert (operation.kind, operation.may_cancel) == ("token", True)
    house.images.check_readable("default", FINGERPRINT, secret)
    for wrong in ("", "x", secret[:-1]):
        with pytest.raises(ImageNotFound):
            house.images.check_readable("default", FINGERPRINT, wrong)
    house.images.was_exported("x")
    house.images.check_readable("default", FINGERPRINT, secret)
    house.images.was_exported(secret)
    assert operation.finished
    with pytest.raises(ImageNotFound):
        house.images.check_readable("default", FINGERPRINT, secret)


async def test_cancelled_token_opens_nothing(house: House) -> None:
    await house.upload(IMAGE)
    operation = house.images.issue_secret("default", FINGERPRINT)
    await operation.cancel()
    with pytest.raises(ImageNotFound):
        house.images.check_readable("default", FINGERPRINT, operation.metadata["secret"])


async def test_public_image_needs_no_secret(house: House) -> None:
    await house.upload(IMAGE, headers=UploadHeaders(public=True))
    house.images.check_readable("default", FINGERPRINT, "")


async def token(house: House, fingerprint: str = FINGERPRINT) -> str:
    source = ImagesPostSource(type="image", mode="push", fingerprint=fingerprint)
    post = ImagesPost(source=source, aliases=[ImageAlias(name="pushed")], public=True)
    secret: str = (await house.images.create_from_source("default", post)).metadata["secret"]
    return secret


async def push(house: House, headers: UploadHeaders) -> str:
    operation, _ = await house.images.create_from_push("default", chunks(IMAGE), headers, multipart=False)
    fingerprint: str = (await ended(operation))["fingerprint"]
    return fingerprint


async def test_push_is_recorded_as_its_token_says(house: House) -> None:
    headers = UploadHeaders(fingerprint=FINGERPRINT, secret=await token(house), aliases=["theirs"])
    assert await push(house, headers) == FINGERPRINT
    image = house.images.show("default", FINGERPRINT)
    assert (image.public, [alias.name for alias in image.aliases]) == (True, ["pushed"])
    with pytest.raises(Forbidden):
        await push(house, headers)


async def test_push_without_the_right_token(house: House) -> None:
    secret = await token(house, "0" * 64)
    for headers in (
        UploadHeaders(fingerprint=FINGERPRINT),
        UploadHeaders(fingerprint=FINGERPRINT, secret="x"),
        UploadHeaders(fingerprint=FINGERPRINT, secret=secret),
    ):
        with pytest.raises(Forbidden):
            await push(house, headers)
    with pytest.raises(BadRequest, match="fingerprints don't match"):
        await push(house, UploadHeaders(fingerprint="0" * 64, secret=secret))
    assert house.files() == []


async def test_read_token_is_no_push_token(house: House) -> None:
    await house.upload(IMAGE)
    secret = house.images.issue_secret("default", FINGERPRINT).metadata["secret"]
    with pytest.raises(Forbidden):
        await push(house, UploadHeaders(fingerprint=FINGERPRINT, secret=secret))


async def test_push_to_nobody(house: House) -> None:
    await house.upload(IMAGE)
    with pytest.raises(BadRequest, match="the target's secret is required"):
        await house.images.push("default", FINGERPRINT, ImageExportPost(target="https://198.18.70.9"))
    post = ImageExportPost(target="http://127.0.0.1:1", secret="s")
    with pytest.raises(Failed, match=f'Failed pushing image "{FINGERPRINT}" to "http://127.0.0.1:1"'):
        await ended(await house.images.push("default", FINGERPRINT, post))
