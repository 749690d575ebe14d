# SPDX-License-Identifier: Apache-2.0
"""Documents of image servers: what they describe, and what is left out of them."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from flexd.api.simplestreams import BadStream, find_image, parse_index, parse_products

A, B, C, D = (letter * 64 for letter in "abcd")


def item(kind: str, **more: Any) -> dict[str, Any]:
    return {"ftype": kind, "path": f"images/x/{kind}", "sha256": A, "size": 10, **more}


def product(versions: dict[str, Any], **more: Any) -> bytes:
    fields = {"aliases": "debian/12, debian/bookworm", "arch": "amd64", "os": "Debian", "release": "bookworm", **more}
    return json.dumps({"products": {"debian": {**fields, "versions": versions}}}).encode()


def version(*items: dict[str, Any]) -> dict[str, Any]:
    return {"items": {each["ftype"]: each for each in items}}


META = item("lxd.tar.xz", combined_squashfs_sha256=B, combined_rootxz_sha256=C)


def test_squashfs_is_taken_before_tar() -> None:
    text = product({"20260102_05:24": version(META, item("root.tar.xz"), item("squashfs", size=30))})
    first, second = parse_products(text, "x")
    assert (first.image.fingerprint, first.image.properties["type"], first.image.size) == (B, "squashfs", 40)
    assert (second.image.fingerprint, second.image.properties["type"]) == (C, "tar.xz")
    assert [alias.name for alias in first.image.aliases] == [
        "debian/12",
        "debian/12/amd64",
        "debian/bookworm",
        "debian/bookworm/amd64",
    ]
    assert second.image.aliases == []
    assert first.image.created_at == datetime(2026, 1, 2, tzinfo=UTC)
    assert first.image.properties["description"] == "Debian bookworm amd64 (20260102_05:24)"


def test_files_as_incus_calls_them() -> None:
    meta = item("incus.tar.xz", combined_squashfs_sha256=B)
    assert [
        found.image.fingerprint for found in parse_products(product({"20260102": version(meta, item("squashfs"))}), "x")
    ] == [B]
    combined = item("incus_combined.tar.gz", sha256=D)
    (found,) = parse_products(product({"20260102": version(combined)}), "x")
    assert (found.image.fingerprint, found.rootfs) == (D, None)


def test_newest_version_has_the_names() -> None:
    newer = item("lxd.tar.xz", combined_squashfs_sha256=D)
    text = product({"20260102": version(META, item("squashfs")), "20260203": version(newer, item("squashfs"))})
    images = parse_products(text, "x")
    found = find_image(images, "debian/12", "x86_64")
    assert found is not None
    assert found.image.fingerprint == D
    assert find_image(images, "debian/12/amd64", "aarch64") is found
    assert find_image(images, "debian/12", "aarch64") is None
    older = find_image(images, B[:12], "x86_64")
    assert older is not None
    assert older.image.aliases == []
    assert find_image(images, "b", "x86_64") is None


@pytest.mark.parametrize(
    "items",
    [
        (META,),
        (item("squashfs"),),
        (META, item("squashfs", sha256="abc")),
        (META, item("squashfs", size=0)),
        (META, item("squashfs", path="../../etc/passwd")),
        (META, item("squashfs", path="/etc/passwd")),
        (META, item("squashfs", path="http://example.org/x")),
        (META, item("squashfs", path="a?b")),
        (META, item("squashfs", path="a%2e%2e/b")),
        (item("lxd.tar.xz"), item("squashfs")),
        (item("lxd.tar.xz", combined_squashfs_sha256="B" * 64), item("squashfs")),
        (META, item("disk-kvm.img")),
    ],
)
def test_what_cannot_be_verified_is_left_out(items: tuple[dict[str, Any], ...]) -> None:
    assert parse_products(product({"20260102": version(*items)}), "x") == []


@pytest.mark.parametrize("more", [{"arch": "pdp11"}, {"arch": None}, {"versions": {"latest": version(META)}}])
def test_products_that_are_none_of_ours(more: dict[str, Any]) -> None:
    text = json.dumps({"products": {"a": {"aliases": "a", "arch": "amd64", "versions": {}, **more}}}).encode()
    assert parse_products(text, "x") == []


def test_end_of_support_and_requirements() -> None:
    text = product(
        {"20260102": version(META, item("squashfs"))}, support_eol="2027-04-01", requirements={"secureboot": "false"}
    )
    (found,) = parse_products(text, "x")
    assert found.image.expires_at == datetime(2027, 4, 1, tzinfo=UTC)
    assert found.image.properties["requirements.secureboot"] == "false"


def test_index_names_lists_of_images_only() -> None:
    entries = {
        "a": {"datatype": "image-downloads", "path": "streams/v1/a.json", "products": ["x"]},
        "b": {"datatype": "image-ids", "path": "streams/v1/b.json", "products": ["x"]},
        "c": {"datatype": "image-downloads", "path": "streams/v1/c.json", "products": []},
    }
    assert parse_index(json.dumps({"index": entries}).encode(), "x") == ["streams/v1/a.json"]


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"index": 1}', b"\xff", b"[" * 99_999])
def test_what_is_no_index(text: bytes) -> None:
    with pytest.raises(BadStream, match='Invalid simplestreams server: "x"'):
        parse_index(text, "x")
