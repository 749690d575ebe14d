# SPDX-License-Identifier: Apache-2.0
"""Uploads: hashed while they are written, gone when they fail."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flexd.api.errors import BadRequest
from flexd.images.contract import BadImage
from flexd.images.incoming import Incoming, UploadPart, check_fingerprint, parse_upload_headers


async def chunks(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


async def parts(*named: tuple[str, bytes]) -> AsyncIterator[UploadPart]:
    for name, data in named:
        yield UploadPart(name, f"{name}.tar", chunks(data))


async def test_one_file(tmp_path: Path) -> None:
    incoming = await Incoming.make(tmp_path)
    await incoming.write_metadata(chunks(b"a" * 700_000, b"b" * 700_000, b"c"))
    data = b"a" * 700_000 + b"b" * 700_000 + b"c"
    assert incoming.fingerprint == hashlib.sha256(data).hexdigest()
    assert incoming.size_bytes == len(data)
    assert incoming.metadata.read_bytes() == data
    await incoming.discard()
    assert list(tmp_path.iterdir()) == []


async def test_two_parts(tmp_path: Path) -> None:
    incoming = await Incoming.make(tmp_path)
    await incoming.write_parts(parts(("metadata", b"meta"), ("rootfs", b"root")))
    assert incoming.fingerprint == hashlib.sha256(b"metaroot").hexdigest()
    assert incoming.has_rootfs
    assert incoming.filename == "metadata.tar"


@pytest.mark.parametrize(
    "names", [(), ("metadata",), ("rootfs", "metadata"), ("metadata", "metadata"), ("metadata", "rootfs", "more")]
)
async def test_wrong_parts(tmp_path: Path, names: tuple[str, ...]) -> None:
    incoming = await Incoming.make(tmp_path)
    with pytest.raises(BadImage, match="Invalid multipart image"):
        await incoming.write_parts(parts(*[(name, b"x") for name in names]))


async def test_adopted_files_have_the_same_fingerprint(tmp_path: Path) -> None:
    incoming = await Incoming.make(tmp_path)
    incoming.metadata.write_bytes(b"meta")
    incoming.rootfs.write_bytes(b"root")
    await incoming.adopt()
    assert incoming.fingerprint == hashlib.sha256(b"metaroot").hexdigest()
    assert incoming.size_bytes == 8


def test_headers() -> None:
    headers = parse_upload_headers(
        {
            "X-LXD-Filename": "a.tar.xz",
            "x-incus-public": "true",
            "X-LXD-properties": "os=Debian&description=a+b%26c",
            "X-LXD-profiles": "profile=a&profile=b",
            "X-LXD-aliases": "alias=debian%2F12",
            "X-LXD-fingerprint": "ABC",
        }
    )
    assert headers.filename == "a.tar.xz"
    assert headers.public is True
    assert headers.properties == {"os": "Debian", "description": "a b&c"}
    assert headers.profiles == ["a", "b"]
    assert headers.aliases == ["debian/12"]
    assert headers.fingerprint == "abc"


def test_no_headers() -> None:
    headers = parse_upload_headers({})
    assert headers.profiles is None
    assert headers.public is False


def test_fingerprints() -> None:
    check_fingerprint("", "abc")
    check_fingerprint("abc", "abc")
    with pytest.raises(BadRequest, match="fingerprints don't match, got abc expected abd"):
        check_fingerprint("abd", "abc")
