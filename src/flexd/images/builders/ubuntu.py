# SPDX-License-Identifier: Apache-2.0
"""Ubuntu, from its own archive; Debian 13 and Ubuntu package the keys as ubuntu-keyring."""

from collections.abc import Mapping

from flexd.images.builders.debian import VARIANTS, packages
from flexd.images.builders.recipe import SCRIPTS, AptSource, Recipe, Release
from flexd.images.builders.sources import mirror_of, parse_sources

# Architectures that the main archive has; the others are on the ports server.
_MAIN_ARCHITECTURES = ("amd64", "i386")
_MIRROR = "http://archive.ubuntu.com/ubuntu"
_PORTS_MIRROR = "http://ports.ubuntu.com/ubuntu-ports"


class UbuntuBuilder:
    name = "ubuntu"
    os = "Ubuntu"
    releases = (Release("22.04", "jammy", merge_usr=True), Release("24.04", "noble"), Release("26.04", "resolute"))
    variants = VARIANTS

    def recipe(self, release: Release, variant: str, architecture: str, host_sources: Mapping[str, str]) -> Recipe:
        default = _MIRROR if architecture in _MAIN_ARCHITECTURES else _PORTS_MIRROR
        known = parse_sources(host_sources)
        mirror = mirror_of(known, {known_release.codename for known_release in self.releases}, default)
        suites = (release.codename, f"{release.codename}-updates", f"{release.codename}-security")
        return Recipe(
            os=self.os,
            release=release,
            variant=variant,
            architecture=architecture,
            sources=tuple(AptSource(mirror, suite, ("main", "universe")) for suite in suites),
            keyring="/usr/share/keyrings/ubuntu-archive-keyring.gpg",
            keyring_package="ubuntu-keyring, in Debian since 13",
            packages=packages(variant),
            scripts=SCRIPTS[variant],
        )


BUILDER = UbuntuBuilder()
