# SPDX-License-Identifier: Apache-2.0
"""From the name of a build to its recipe: `debian/12`, `debian/bookworm/cloud`, `debian/13/arm64`; and what its image
is described as. Pure, but for looking for builders."""

import io
import lzma
import tarfile
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import yaml

from flexd.api.architectures import canonical_architecture, package_architecture
from flexd.api.errors import BadRequest
from flexd.images.builders import find_builders
from flexd.images.builders.recipe import Builder, Recipe, Release

# cloud-init's seed on disk, for instances without /dev/lxd/sock and for what reads nothing else.
_SEED = "/var/lib/cloud/seed/nocloud-net"
_NOTHING = "#cloud-config\n{}"
_NETWORK = "version: 2\nethernets:\n  eth0: {dhcp4: true}"
# What each file says unless the instance's configuration (`cloud-init.*`, or `user.*` as it was once called) does.
_SEED_DEFAULTS = {"user-data": _NOTHING, "vendor-data": _NOTHING, "network-config": _NETWORK}
_SEED_TEMPLATES = {
    # As the daemon's own answer: another id after an edit that cloud-init should look at.
    "meta-data": 'instance-id: {{ config_get("volatile.cloud-init.instance-id", container.name) }}\n'
    'local-hostname: {{ container.name }}\n{{ config_get("user.meta-data", "") }}\n',
    **{
        name: f'{{{{ config_get("cloud-init.{name}", config_get("user.{name}", properties.default)) }}}}\n'
        for name in _SEED_DEFAULTS
    },
}

# An instance's own name, where programs look for it that ask no library.
_NAME_TEMPLATES = {
    "hostname": "{{ container.name }}\n",
    "hosts": "127.0.0.1 localhost\n127.0.1.1 {{ container.name }}\n::1 localhost ip6-localhost ip6-loopback\n"
    "ff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n",
}


def plan_build(name: str, architecture: str, host_sources: Mapping[str, str]) -> Recipe:
    """`architecture` (the kernel's word) is meant where the name names none. Blocking: looks for builders."""
    builders = find_builders()
    os_name, _, rest = name.partition("/")
    version, *more = rest.split("/")
    builder = builders.get(os_name)
    release = _release(builder, version) if builder else None
    if builder is None or release is None:
        known = ", ".join(f"{b.name}/{r.version}" for b in builders.values() for r in b.releases)
        raise BadRequest(f'Failed building image "{name}": there is no such recipe (known: {known})')
    variant, wanted = _variant_and_architecture(name, more, builder.variants)
    return builder.recipe(release, variant, package_architecture(wanted or architecture), host_sources)


def _release(builder: Builder, version: str) -> Release | None:
    return next((release for release in builder.releases if version in (release.version, release.codename)), None)


def _variant_and_architecture(name: str, words: list[str], variants: tuple[str, ...]) -> tuple[str, str | None]:
    variant, architecture = "", None
    for word in words:
        if word in variants and not variant and architecture is None:
            variant = word
        elif canonical_architecture(word) and architecture is None:
            architecture = canonical_architecture(word)
        else:
            raise BadRequest(
                f'Failed building image "{name}": there is no such recipe: "{word}" is neither a variant '
                f"({', '.join(variants)}) nor an architecture"
            )
    return variant or variants[0], architecture


def names_of(recipe: Recipe, *, native: bool) -> list[str]:
    """The names that a build's image gets: `debian/12`, `debian/bookworm`; a variant and a foreign architecture are
    added to them."""
    end = "" if recipe.variant == "default" else f"/{recipe.variant}"
    end += "" if native else f"/{recipe.architecture}"
    base, release = recipe.os.lower(), recipe.release
    return sorted({f"{base}/{release.version}{end}", f"{base}/{release.codename}{end}"})


def serial(epoch: int) -> str:
    """`20261123_0600`, as image servers number their builds."""
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y%m%d_%H%M")


def render_metadata(recipe: Recipe, epoch: int) -> bytes:
    """metadata.yaml with the properties that image servers set."""
    release, packages = recipe.release, recipe.architecture
    variant = "" if recipe.variant == "default" else f" {recipe.variant}"
    properties = {
        "os": recipe.os,
        "release": release.codename,
        "version": release.version,
        "architecture": packages,
        "variant": recipe.variant,
        "serial": serial(epoch),
        "description": f"{recipe.os} {release.codename} {packages}{variant} ({serial(epoch)})",
    }
    architecture = canonical_architecture(packages)
    document: dict[str, Any] = {"architecture": architecture, "creation_date": epoch, "properties": properties}
    document["templates"] = {
        f"/etc/{name}": {"when": ["create", "copy", "rename"], "template": f"{name}.tpl"} for name in _NAME_TEMPLATES
    }
    if recipe.variant == "cloud":
        document["templates"] |= {f"{_SEED}/{name}": _seed_template(name) for name in _SEED_TEMPLATES}
    return yaml.safe_dump(document, sort_keys=False).encode()


def _seed_template(name: str) -> dict[str, Any]:
    """At every start, the first one included: what it says may have been edited since the last."""
    template: dict[str, Any] = {"when": ["start"], "template": f"cloud-init-{name}.tpl"}
    if name in _SEED_DEFAULTS:
        template["properties"] = {"default": _SEED_DEFAULTS[name]}
    return template


def metadata_archive(recipe: Recipe, epoch: int) -> bytes:
    """A tar.xz with metadata.yaml and the templates, the same for the same input."""
    files = {"metadata.yaml": render_metadata(recipe, epoch)}
    files |= {f"templates/{name}.tpl": text.encode() for name, text in _NAME_TEMPLATES.items()}
    if recipe.variant == "cloud":
        files |= {f"templates/cloud-init-{name}.tpl": text.encode() for name, text in _SEED_TEMPLATES.items()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.mode = len(data), epoch, 0o644
            archive.addfile(entry, io.BytesIO(data))
    return lzma.compress(buffer.getvalue())
