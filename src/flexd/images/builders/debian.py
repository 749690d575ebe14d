# SPDX-License-Identifier: Apache-2.0
"""Debian, from the mirror that this machine uses if it is a Debian, else from deb.debian.org."""

from collections.abc import Mapping

from flexd.api.errors import BadRequest
from flexd.images.builders.recipe import SCRIPTS, AptSource, Recipe, Release
from flexd.images.builders.sources import mirror_of, parse_sources

_MIRROR = "http://deb.debian.org/debian"
_SECURITY_MIRROR = "http://deb.debian.org/debian-security"

# What boots, logs in, finds its address and can be managed; no editor but vim-tiny, no compiler, no ssh.
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "udev",
    "libpam-systemd",
    "passwd",
    "libnss-myhostname",  # sudo wants to resolve the host's name, and containers are renamed
    "iproute2",
    "iputils-ping",
    "netbase",
    "ca-certificates",
    "tzdata",
    "procps",
    "less",
    "vim-tiny",
    "sudo",
)
# Users and their keys are the first that cloud-init is told of: without ssh they are of no use.
CLOUD_PACKAGES = ("cloud-init", "openssh-server")
VARIANTS = ("default", "cloud")


# Architectures of each release's main archive (release notes, "Supported architectures").
_ARCHITECTURES = {
    "bullseye": ("amd64", "arm64", "armel", "armhf", "i386", "mips64el", "mipsel", "ppc64el", "s390x"),
    "bookworm": ("amd64", "arm64", "armel", "armhf", "i386", "mips64el", "mipsel", "ppc64el", "s390x"),
    "trixie": ("amd64", "arm64", "armel", "armhf", "i386", "ppc64el", "riscv64", "s390x"),
    "sid": ("amd64", "arm64", "armhf", "i386", "loong64", "ppc64el", "riscv64", "s390x"),
}


class DebianBuilder:
    name = "debian"
    os = "Debian"
    releases = (
        Release("11", "bullseye", merge_usr=True),
        Release("12", "bookworm"),
        Release("13", "trixie"),
        Release("sid", "sid"),
    )
    variants = VARIANTS

    def recipe(self, release: Release, variant: str, architecture: str, host_sources: Mapping[str, str]) -> Recipe:
        codename = release.codename
        if architecture not in _ARCHITECTURES[codename]:
            raise BadRequest(f"Failed building image of {self.os} {release.version}: not released for {architecture}")
        known = parse_sources(host_sources)
        suites = {suite for known_release in self.releases for suite in _suites(known_release.codename)}
        mirror = mirror_of(known, suites | {"stable", "testing", "unstable"}, _MIRROR)
        sources = [AptSource(mirror, suite, ("main",)) for suite in _suites(codename)]
        if codename != "sid":  # what is fixed there is simply uploaded
            security = mirror_of(known, {f"{r.codename}-security" for r in self.releases}, _SECURITY_MIRROR)
            sources.append(AptSource(security, f"{codename}-security", ("main",)))
        return Recipe(
            os=self.os,
            release=release,
            variant=variant,
            architecture=architecture,
            sources=tuple(sources),
            keyring="/usr/share/keyrings/debian-archive-keyring.gpg",
            keyring_package="debian-archive-keyring",
            packages=packages(variant),
            scripts=SCRIPTS[variant],
        )


def packages(variant: str) -> tuple[str, ...]:
    return (*PACKAGES, *CLOUD_PACKAGES) if variant == "cloud" else PACKAGES


def _suites(codename: str) -> tuple[str, ...]:
    return (codename,) if codename == "sid" else (codename, f"{codename}-updates")


BUILDER = DebianBuilder()
