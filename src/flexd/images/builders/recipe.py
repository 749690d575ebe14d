# SPDX-License-Identifier: Apache-2.0
"""What a builder tells: the archive to take packages from, which, and what is changed afterwards."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from msgspec import Struct

_FOLDER = Path(__file__).parent
# What each variant has run on the installed system, in this order; the root is their argument.
SCRIPTS = {
    "default": (_FOLDER / "container.sh",),
    "cloud": (_FOLDER / "container.sh", _FOLDER / "cloud.sh"),
}


class Release(Struct, frozen=True):
    """`version` is what people count (12), `codename` what the archive is called after (bookworm). `merge_usr`: its
    packages leave it to the installer whether /bin is a link to /usr/bin."""

    version: str
    codename: str
    merge_usr: bool = False


class AptSource(Struct, frozen=True):
    """One `deb` line; the first of a recipe names the archive's main suite."""

    uri: str
    suite: str
    components: tuple[str, ...]

    def line(self, keyring: str) -> str:
        return f"deb [signed-by={keyring}] {self.uri} {self.suite} {' '.join(self.components)}"


class Recipe(Struct, frozen=True):
    """All that a build needs; pure data. `architecture` in the distribution's words; `keyring` is a file of this host
    and of the image; `scripts` are run on the installed system."""

    os: str
    release: Release
    variant: str
    architecture: str
    sources: tuple[AptSource, ...]
    keyring: str
    keyring_package: str
    packages: tuple[str, ...]
    scripts: tuple[Path, ...]


class Builder(Protocol):
    """One distribution. `host_sources`: the `deb` lines and deb822 files of this machine, by file name."""

    name: str
    os: str
    releases: tuple[Release, ...]
    variants: tuple[str, ...]

    def recipe(self, release: Release, variant: str, architecture: str, host_sources: Mapping[str, str]) -> Recipe: ...
