# SPDX-License-Identifier: Apache-2.0
"""What is decided before a build begins, and what is made of its results."""

import io
import lzma
import tarfile

import pytest

from flexd.api.architectures import package_architecture
from flexd.api.errors import BadRequest
from flexd.images.build import last_words
from flexd.images.builders import find_builders
from flexd.images.builders.sources import HostSource, mirror_of, parse_sources
from flexd.images.formats import parse_metadata
from flexd.images.recipes import metadata_archive, names_of, plan_build, serial
from flexd.instances.pongo import render

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


@pytest.mark.parametrize("name", ["debian/13", "debian/trixie", "debian/13/default", "debian/13/amd64"])
def test_names(name: str) -> None:
    recipe = plan_build(name, "x86_64", {})
    assert recipe.release.codename == "trixie"
    assert names_of(recipe, native=True) == ["debian/13", "debian/trixie"]


@pytest.mark.parametrize("name", ["debian/13/cloud/arm64", "debian/trixie/cloud/aarch64"])
def test_variant_and_foreign_architecture(name: str) -> None:
    recipe = plan_build(name, "x86_64", {})
    assert (recipe.variant, recipe.architecture) == ("cloud", "arm64")
    assert {"cloud-init", "openssh-server"} <= set(recipe.packages)
    assert names_of(recipe, native=False) == ["debian/13/cloud/arm64", "debian/trixie/cloud/arm64"]


def test_every_release_can_be_planned() -> None:
    for builder in find_builders().values():
        for release in builder.releases:
            for variant in builder.variants:
                recipe = plan_build(f"{builder.name}/{release.version}/{variant}", "x86_64", {})
                assert recipe.sources[0].suite == release.codename
    assert [source.suite for source in plan_build("debian/sid", "x86_64", {}).sources] == ["sid"]
    assert names_of(plan_build("debian/sid", "x86_64", {}), native=True) == ["debian/sid"]


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
    ("name", "fault"),
    [
        *((name, r"\(known: debian/11, debian/12, ") for name in ("", "debian", "debian/", "debian/7", "plan9/4")),
        ("debian/12/strange", r'"strange" is neither a variant \(default, cloud\) nor an architecture'),
        ("debian/12/../x", r'"\.\." is neither'),
        ("debian/12/cloud/cloud", '"cloud" is neither'),
        ("debian/12/arm64/cloud", '"cloud" is neither'),
        ("debian/12/arm64/amd64", '"amd64" is neither'),
        ("debian/12/", '"" is neither'),
    ],
)
def test_unknown_names(name: str, fault: str) -> None:
    with pytest.raises(BadRequest, match=f"there is no such recipe.*{fault}"):
        plan_build(name, "x86_64", {})


def test_architecture_without_release() -> None:
    assert package_architecture("aarch64") == "arm64"
    with pytest.raises(BadRequest, match="not released for riscv64"):
        plan_build("debian/12", "riscv64", {})


def test_metadata_archive() -> None:
    recipe = plan_build("debian/12", "x86_64", {})
    made = [metadata_archive(recipe, 1700000000) for _ in range(2)]
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


def test_images_name_their_instances() -> None:
    archive = metadata_archive(plan_build("debian/12", "x86_64", {}), 1700000000)
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(archive))) as opened:
        files = {member.name: opened.extractfile(member).read() for member in opened}  # type: ignore[union-attr]
    templates = parse_metadata(files["metadata.yaml"], '"x"').templates
    assert {path: template.when for path, template in templates.items()} == {
        "/etc/hostname": ["create", "copy", "rename"],
        "/etc/hosts": ["create", "copy", "rename"],
    }
    context = {"container": {"name": "c1"}}
    texts = {
        path: render(template.template, files[f"templates/{template.template}"].decode(), context, {})
        for path, template in templates.items()
    }
    assert texts["/etc/hostname"].strip() == "c1"
    assert "127.0.1.1 c1\n" in texts["/etc/hosts"]


def test_cloud_images_hand_their_configuration_to_cloud_init() -> None:
    archive = metadata_archive(plan_build("debian/12/cloud", "x86_64", {}), 1700000000)
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(archive))) as opened:
        files = {member.name: opened.extractfile(member).read() for member in opened}  # type: ignore[union-attr]
    metadata = parse_metadata(files["metadata.yaml"], '"x"')
    seeds = {
        path.rpartition("/")[2]: template
        for path, template in metadata.templates.items()
        if path.startswith("/var/lib/cloud/seed/nocloud-net/")
    }
    assert {trigger for template in seeds.values() for trigger in template.when} == {"start"}
    assert set(seeds) == {"meta-data", "user-data", "vendor-data", "network-config"}

    def written(seed: str, config: dict[str, str]) -> str:
        template = seeds[seed]
        text = files[f"templates/{template.template}"].decode()
        context = {"container": {"name": "c1"}, "properties": template.properties}
        return render(template.template, text, context, config).rstrip("\n")

    assert written("meta-data", {}).startswith("instance-id: c1\nlocal-hostname: c1")
    assert written("meta-data", {"volatile.cloud-init.instance-id": "7"}).startswith("instance-id: 7\n")
    assert written("user-data", {}) == "#cloud-config\n{}"
    assert written("user-data", {"user.user-data": "old"}) == "old"
    assert written("user-data", {"cloud-init.user-data": "a: 'b'", "user.user-data": "old"}) == "a: 'b'"
    assert written("network-config", {}).startswith("version: 2\nethernets:\n")


def test_last_words() -> None:
    said = "I: running apt-get update...\nGet:1 http://m x\nE: Failed to fetch http://m/x  404\nW: old\n"
    said += "E: mmdebstrap failed to run\n"
    assert last_words(said) == "E: Failed to fetch http://m/x  404; E: mmdebstrap failed to run"
    assert last_words("") == "no message"
    assert last_words("I: fine\n") == "I: fine"
