# SPDX-License-Identifier: Apache-2.0
"""What is decided before a build begins, and what is made of its results."""

import io
import lzma
import tarfile

import pytest

from flexd.api.errors import BadRequest
from flexd.images.build import last_words, metadata_archive, package_architecture, plan_build, render_metadata, serial
from flexd.images.builders import find_builders
from flexd.images.builders.sources import HostSource, mirror_of, parse_sources
from flexd.images.formats import parse_metadata

DEB822 = """Types: deb deb-src
# a comment
URIs: http://mirror.example/debian/
Suites: bookworm
  bookworm-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: trixie
"""
ONE_LINE = """# deb http://off.example/debian trixie main
deb [arch=amd64 signed-by=/k.gpg] http://one.example/debian bookworm main contrib # here
deb-src http://src.example/debian bookworm main
deb cdrom:[Debian]/ bookworm main
"""


def test_sources() -> None:
    assert parse_sources({"debian.sources": DEB822}) == [
        HostSource("http://mirror.example/debian", "bookworm"),
        HostSource("http://mirror.example/debian", "bookworm-updates"),
        HostSource("http://mirror.example/security", "bookworm-security"),
    ]
    assert parse_sources({"sources.list": ONE_LINE}) == [
        HostSource("http://one.example/debian", "bookworm"),
        HostSource("cdrom:[Debian]", "bookworm"),
    ]


def test_mirror() -> None:
    sources = [HostSource("cdrom:x", "bookworm"), HostSource("https://m/debian", "bookworm")]
    assert mirror_of(sources, ["bookworm"], "http://default") == "https://m/debian"
    assert mirror_of(sources, ["noble"], "http://default") == "http://default"


def test_builders_are_found() -> None:
    assert set(find_builders()) == {"debian", "ubuntu"}


@pytest.mark.parametrize("name", ["debian/13", "debian/trixie", "debian/13/default"])
def test_names(name: str) -> None:
    assert plan_build(name, "x86_64", {}).release.codename == "trixie"


def test_recipe_takes_the_hosts_mirrors() -> None:
    recipe = plan_build("debian/13", "x86_64", {"debian.sources": DEB822})
    assert [source.line("/k") for source in recipe.sources] == [
        "deb [signed-by=/k] http://mirror.example/debian trixie main",
        "deb [signed-by=/k] http://mirror.example/debian trixie-updates main",
        "deb [signed-by=/k] http://mirror.example/security trixie-security main",
    ]


def test_recipe_takes_the_default_mirrors() -> None:
    assert plan_build("debian/12", "x86_64", {}).sources[0].uri == "http://deb.debian.org/debian"
    assert plan_build("ubuntu/24.04", "x86_64", {}).sources[0].uri == "http://archive.ubuntu.com/ubuntu"
    assert plan_build("ubuntu/noble", "aarch64", {}).sources[0].uri == "http://ports.ubuntu.com/ubuntu-ports"


@pytest.mark.parametrize(
    "name", ["", "debian", "debian/", "debian/7", "plan9/4", "debian/12/strange", "debian/12/../x"]
)
def test_unknown_names(name: str) -> None:
    with pytest.raises(BadRequest, match=r"there is no such recipe \(known: debian/12, debian/13, ubuntu/"):
        plan_build(name, "x86_64", {})


def test_architecture_without_release() -> None:
    assert package_architecture("aarch64") == "arm64"
    with pytest.raises(BadRequest, match="not released for riscv64"):
        plan_build("debian/12", "riscv64", {})


def test_metadata_archive() -> None:
    recipe = plan_build("debian/12", "x86_64", {})
    made = [metadata_archive(render_metadata(recipe, "x86_64", 1700000000), 1700000000) for _ in range(2)]
    assert made[0] == made[1]
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(made[0]))) as archive:
        file = archive.extractfile("metadata.yaml")
        assert file is not None
        metadata = parse_metadata(file.read(), '"x"')
    assert metadata.architecture == "x86_64"
    assert metadata.properties == {
        "os": "Debian",
        "release": "bookworm",
        "version": "12",
        "architecture": "amd64",
        "variant": "default",
        "serial": "20231114_2213",
        "description": "Debian bookworm amd64 (20231114_2213)",
    }
    assert serial(1700000000) == "20231114_2213"


def test_last_words() -> None:
    said = "I: running apt-get update...\nGet:1 http://m x\nE: Failed to fetch http://m/x  404\nW: old\n"
    said += "E: mmdebstrap failed to run\n"
    assert last_words(said) == "E: Failed to fetch http://m/x  404; E: mmdebstrap failed to run"
    assert last_words("") == "no message"
    assert last_words("I: fine\n") == "I: fine"
