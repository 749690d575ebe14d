# SPDX-License-Identifier: Apache-2.0
"""Formats by their first bytes; metadata.yaml as LXD reads it."""

import bz2
import gzip
import lzma
import struct

import pytest

from flexd.api.times import ZERO_TIME
from flexd.images.contract import BadImage
from flexd.images.formats import (
    HEAD_BYTES,
    architecture_fault,
    canonical_architecture,
    detect,
    parse_metadata,
    read_squashfs_head,
    unix_time,
)
from tests.unit.images.archives import METADATA, unified


@pytest.mark.parametrize(
    ("data", "suffix"),
    [
        (unified(), ".tar"),
        (gzip.compress(unified()), ".tar.gz"),
        (bz2.compress(unified()), ".tar.bz2"),
        (lzma.compress(unified()), ".tar.xz"),
        (lzma.compress(unified(), format=lzma.FORMAT_ALONE), ".tar.lzma"),
        (b"\x28\xb5\x2f\xfd....", ".tar.zst"),
        (b"\x04\x22\x4d\x18....", ".tar.lz4"),
        (b"hsqs....", ".squashfs"),
    ],
)
def test_detect(data: bytes, suffix: str) -> None:
    assert detect(data[:HEAD_BYTES], '"x"').suffix == suffix


@pytest.mark.parametrize(
    "data", [b"", b"PK\x03\x04", b"#!/bin/sh\n" * 100, bytes(512), b"QFI\xfb", b"\x7fELF" + bytes(600)]
)
def test_not_an_image(data: bytes) -> None:
    with pytest.raises(BadImage, match='Invalid image "x": '):
        detect(data[:HEAD_BYTES], '"x"')


def superblock(bytes_used: int, compression: int = 6) -> bytes:
    head = struct.pack("<4sIIIIHHHHHH", b"hsqs", 17, 0, 131072, 0, compression, 17, 0, 1, 4, 0)
    return head + struct.pack("<QQ", 0, bytes_used) + bytes(48)


def test_squashfs_head() -> None:
    head = read_squashfs_head(superblock(4000), 4096, '"x"')
    assert (head.inodes, head.compression, head.bytes_used) == (17, "zstd", 4000)


def test_truncated_squashfs() -> None:
    with pytest.raises(BadImage, match="truncated, has 3000 of 4000 bytes"):
        read_squashfs_head(superblock(4000), 3000, '"x"')
    with pytest.raises(BadImage, match="truncated"):
        read_squashfs_head(superblock(4000)[:50], 50, '"x"')


def test_metadata() -> None:
    metadata = parse_metadata(METADATA, '"x"')
    assert metadata.architecture == "x86_64"
    assert metadata.creation_date == 1700000000
    assert metadata.expiry_date == 0
    assert metadata.properties == {
        "os": "Tiny",
        "release": "1",
        "serial": "20240101_0524",  # not the integer that YAML takes it for
        "description": "Tiny 1 x86_64",
    }


def test_metadata_with_templates() -> None:
    text = b"""
architecture: amd64
creation_date: 1
expiry_date:
properties:
templates:
  /etc/hostname:
    when: [create, copy]
    create_only: true
    template: hostname.tpl
    properties: {default: "#cloud"}
"""
    metadata = parse_metadata(text, '"x"')
    assert metadata.architecture == "x86_64"
    assert metadata.templates["/etc/hostname"].create_only is True
    assert metadata.templates["/etc/hostname"].when == ["create", "copy"]


def bomb() -> bytes:
    lines = ['a: &a ["x","x","x","x","x","x","x","x","x"]']
    lines += [f"{n}: &{n} [{','.join(['*' + p] * 9)}]" for p, n in zip("abcdefgh", "bcdefghi", strict=True)]
    return "\n".join(lines).encode()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"", "must be a mapping"),
        (b"- a\n- b\n", "must be a mapping"),
        (b"\x00\x01\x02", "metadata.yaml"),
        (b"{{{", "metadata.yaml"),
        (b"architecture: [1\n", "metadata.yaml"),
        (b"creation_date: 1\n", "architecture is missing"),
        (b"architecture: z80\ncreation_date: 1\n", '"z80" is unknown'),
        (b"architecture: x86_64\n", "creation_date is missing"),
        (b"architecture: x86_64\ncreation_date: soon\n", "creation_date"),
        (b"architecture: x86_64\ncreation_date: 1\nproperties: {a: {b: c}}\n", "properties"),
        (b"architecture: x86_64\ncreation_date: 1\ntemplates: {/a: {template: ../../x}}\n", "not a file name"),
        (b"architecture: x86_64\ncreation_date: 1\ntemplates: {/../a: {template: x}}\n", "absolute path"),
        (bomb(), "anchors and aliases are not accepted"),
        (b"a: " + b"[" * 5000 + b"]" * 5000, "nested too deeply"),
        (b"x" * (257 << 10), "more than 262144 bytes"),
        (b"!!python/object/apply:os.system ['true']", "must be a mapping"),
    ],
)
def test_bad_metadata(text: bytes, fault: str) -> None:
    with pytest.raises(BadImage) as error:
        parse_metadata(text, '"x"')
    assert fault in str(error.value)
    assert "\n" not in str(error.value)


def test_architectures() -> None:
    assert canonical_architecture("arm64") == "aarch64"
    assert canonical_architecture("pdp11") is None
    assert architecture_fault("x86_64", ["x86_64", "i686"]) is None
    assert "s390x" in str(architecture_fault("s390x", ["x86_64"]))


def test_unix_time() -> None:
    assert unix_time(0) == ZERO_TIME
    assert unix_time(1 << 62) == ZERO_TIME
    assert unix_time(1700000000).year == 2023
