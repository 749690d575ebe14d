# SPDX-License-Identifier: Apache-2.0
"""An image of Debian 12 that plays Doom: flexd's own builder with a recipe for nothing else, so it is here."""

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from flexd.api.image import ImagesPostSource
from flexd.host.linux import LinuxHost
from flexd.images import build, builders, recipes
from flexd.images.incoming import Incoming
from tests.system.images import cache_directory, locked

NAME = "debian/12/doom"
_PACKAGES = ("chocolate-doom", "freedoom", "tigervnc-standalone-server", "xkb-data", "x11-xkb-utils", "xfonts-base")
_SCRIPT = Path(__file__).with_name("doom.sh")


def doom_image() -> tuple[Path, Path]:
    """The metadata archive and the squashfs; built on first use, in a minute or two, and kept as the tests' are."""
    made_of = [Path(__file__), _SCRIPT, Path(build.__file__), Path(recipes.__file__)]
    made_of += sorted(Path(builders.__file__).parent.glob("*[!c]"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in made_of if file.is_file())).hexdigest()[:12]
    metadata, rootfs = (cache_directory() / f"doom_{digest}.{suffix}" for suffix in ("tar.xz", "squashfs"))
    with locked("doom"):
        if not (metadata.exists() and rootfs.exists()):
            for outdated in cache_directory().glob("doom_*"):
                outdated.unlink()
            # In a thread: the caller may or may not be in an event loop.
            with ThreadPoolExecutor(1) as thread:
                thread.submit(lambda: asyncio.run(_build(metadata, rootfs))).result()
    return metadata, rootfs


async def _build(metadata: Path, rootfs: Path) -> None:
    host = LinuxHost()
    incoming = await Incoming.make(cache_directory())
    try:
        base = (await build.prepare_build(host, ImagesPostSource(type="build", name="debian/12"))).recipe
        recipe = msgspec.structs.replace(
            base, variant="doom", packages=(*base.packages, *_PACKAGES), scripts=(*base.scripts, _SCRIPT)
        )
        await build.Build(host, NAME, recipe, native=True).into(incoming, lambda _metadata: None)
        incoming.rootfs.rename(rootfs)
        incoming.metadata.rename(metadata)
    finally:
        await incoming.discard()
        await host.close()
