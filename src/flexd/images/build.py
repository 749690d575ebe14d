# SPDX-License-Identifier: Apache-2.0
"""`image build debian/12`: a distribution's packages become an image (API extension `image_build`).

mmdebstrap(1) installs, builders/container.sh tunes, mksquashfs(1) packs. All of it runs leashed in namespaces of its
own: cancelled or orphaned, no process and no mount is left.
"""

import asyncio
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import aiohttp

from flexd.api.architectures import canonical_architecture
from flexd.api.errors import FlexdError, NotSupported
from flexd.api.image import ImagesPostSource
from flexd.host.contract import Host
from flexd.images.builders.recipe import AptSource, Recipe
from flexd.images.confine import leashed
from flexd.images.incoming import Incoming
from flexd.images.programs import run_chain
from flexd.images.recipes import metadata_archive, names_of, plan_build, serial
from flexd.images.sources import Fetched
from flexd.operations.contract import Progress

# Links for packages that still unpack into /bin and /lib, as debootstrap sets them up.
_MERGED = {"amd64": " lib32 lib64 libx32", "i386": " lib64 libx32", "ppc64el": " lib64", "s390x": " lib32"}
_MERGE_USR = 'for name in bin sbin lib%s; do mkdir -p "$1/usr/$name"; ln -s "usr/$name" "$1/$name"; done'
# squashfs, since it unpacks as fast as a tar and checking it reads no data. zstd at 9: 75 MB in 4 s for 240 MB of
# Debian; its default, 15, takes 43 s for 71 MB (measured, 2 processors).
_SCRIPT = r"""
set -eu
place=$1; work=$2; target=$3; shift 3
if [ "$place" = memory ]; then mount -t tmpfs -o mode=755 flexd "$work"; fi
"$@"
echo "I: packing" >&2
# Nothing newer than the archive: the same packages give the same image.
find "$work/rootfs" -newermt "@$SOURCE_DATE_EPOCH" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
exec mksquashfs "$work/rootfs" "$target" -comp zstd -Xcompression-level 9 -noappend -no-exports -reproducible
"""
# A build takes 0.3 GB; with this much free it is done in memory, in half the time (dpkg syncs every file to disk).
_MEMORY_BYTES = 2 << 30
_PROGRAMS = {"mmdebstrap": "mmdebstrap", "mksquashfs": "squashfs-tools", "unshare": "util-linux"}
_LEFT_OUT = (
    *("path-exclude=/usr/share/man/*", "path-exclude=/usr/share/info/*", "path-exclude=/usr/share/doc/*"),
    *("path-include=/usr/share/doc/*/copyright", "path-exclude=/usr/share/locale/*"),
    "path-include=/usr/share/locale/locale.alias",
)
# mmdebstrap tells what it begins; the percentages are of a build's whole time, measured.
_PACKING = "I: packing"
_STAGES = (
    ("I: running apt-get update", 2, "Reading package lists"),
    ("I: downloading packages", 8, "Downloading packages"),
    ("I: extracting archives", 25, "Unpacking base system"),
    ("I: installing essential packages", 35, "Installing base system"),
    ("I: installing remaining packages", 50, "Installing packages"),
    ("I: running --customize-hook", 83, "Configuring"),
    ("I: cleaning package lists", 85, "Cleaning up"),
    (_PACKING, 88, "Packing"),
)
_PERCENT = re.compile(r"([0-9]{1,3})%")
_WELL = re.compile(r"(?:I|W|Get:[0-9]+|Hit:[0-9]+)[: ]|done|Selecting |Preparing |Unpacking |Setting up |Processing ")
_MIRROR_TIMEOUT = aiohttp.ClientTimeout(total=60)


class BuildFailed(FlexdError):
    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f'Failed building image "{name}": {reason}')


async def prepare_build(host: Host, source: ImagesPostSource) -> "Build":
    """Find the builder for `source.name`; the error names what there is, or the package that is missing."""
    architectures = (await host.machine.features()).architectures
    host_sources = await asyncio.to_thread(_host_sources, Path("/etc/apt"))
    name = source.name or source.alias
    recipe = await asyncio.to_thread(plan_build, name, architectures[0], host_sources)
    await asyncio.to_thread(_check_host, name, recipe)
    if canonical_architecture(recipe.architecture) not in architectures:
        await _check_emulator(host, name, recipe.architecture)
    return Build(host, name, recipe, native=canonical_architecture(recipe.architecture) == architectures[0])


async def _check_emulator(host: Host, name: str, architecture: str) -> None:
    """A foreign system's programs run while it is installed: binfmt_misc must know who can."""
    if not await asyncio.to_thread(shutil.which, "arch-test"):
        raise NotSupported(f'Failed building image "{name}": missing on this host: arch-test (package arch-test)')
    tested = await host.processes.run(["arch-test", architecture])
    if tested.returncode != 0:
        raise NotSupported(
            f'Failed building image "{name}": this host cannot run programs for {architecture}; the package '
            "qemu-user-static brings an emulator, and systemd-binfmt registers it"
        )


def _host_sources(directory: Path) -> dict[str, str]:
    files = [directory / "sources.list", *(directory / "sources.list.d").glob("*")]
    return {
        file.name: file.read_text(errors="replace")
        for file in files
        if file.suffix in (".list", ".sources") and file.is_file()
    }


def _check_host(name: str, recipe: Recipe) -> None:
    missing = [f"{program} (package {package})" for program, package in _PROGRAMS.items() if not shutil.which(program)]
    if not Path(recipe.keyring).exists():
        missing.append(f"{recipe.keyring} (package {recipe.keyring_package})")
    if missing:
        raise NotSupported(f'Failed building image "{name}": missing on this host: {", ".join(missing)}')


class Build:
    """One build: `into` leaves a split image in `incoming`."""

    description = "Building image"

    def __init__(self, host: Host, name: str, recipe: Recipe, *, native: bool) -> None:
        self.recipe = recipe
        self._host, self._name, self._native = host, name, native
        self._log_directory = Path()

    async def into(self, incoming: Incoming, progress: Progress) -> Fetched:
        recipe = self.recipe
        self._log_directory = incoming.directory.parent
        _report(progress, 0, "Asking the mirror")
        epoch = int((await self._archive_date()).timestamp())
        work = incoming.directory / "build"
        await asyncio.to_thread(work.mkdir, mode=0o755)
        await self._make(work, incoming.rootfs, epoch, progress)
        await asyncio.to_thread(shutil.rmtree, work)
        archive = await asyncio.to_thread(metadata_archive, recipe, epoch)
        await asyncio.to_thread(incoming.metadata.write_bytes, archive)
        await incoming.adopt()
        incoming.filename = f"{recipe.os.lower()}-{recipe.release.version}-{serial(epoch)}.tar.xz"
        return Fetched("build_progress", aliases=names_of(recipe, native=self._native))

    async def _archive_date(self) -> datetime:
        """When the archive was last changed: names the build, and makes builds of the same packages the same."""
        async with aiohttp.ClientSession(timeout=_MIRROR_TIMEOUT) as session:
            dates = [await self._release_date(session, source) for source in self.recipe.sources]
        return max(dates)

    async def _release_date(self, session: aiohttp.ClientSession, source: AptSource) -> datetime:
        url = f"{source.uri}/dists/{source.suite}/InRelease"
        try:
            async with session.get(url) as answer:
                if answer.status != 200:
                    raise BuildFailed(self._name, f"{url}: the mirror answered {answer.status} {answer.reason}")
                head = (await answer.content.read(1 << 16)).decode(errors="replace")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise BuildFailed(self._name, f"{url}: {error or 'no answer'}") from error
        date = re.search(r"^Date: (.*)$", head, re.MULTILINE)
        if date is None:
            raise BuildFailed(self._name, f"{url}: not a package archive")
        # The text is not verified yet; apt does that. A wrong date only gives a wrong serial, but none in the future.
        return min(_parse_date(date[1]), datetime.now(UTC))

    async def _make(self, work: Path, target: Path, epoch: int, progress: Progress) -> None:
        """Install below `work` and pack into `target`."""
        recipe = self.recipe
        place = "memory" if await self._has_memory() else "disk"
        outdated = ['--aptopt=Acquire::Check-Valid-Until "false"'] if await _takes_outdated(self._host) else []
        command = [
            *("env", f"SOURCE_DATE_EPOCH={epoch}", "DEBIAN_FRONTEND=noninteractive"),
            *("sh", "-c", _SCRIPT, "sh", place, str(work), str(target)),
            *("mmdebstrap", "--mode=root", "--format=directory", "--variant=apt", "--skip=output/dev"),
            f"--architectures={recipe.architecture}",
            *_merge_usr(recipe),
            f"--include={','.join(recipe.packages)}",
            '--aptopt=APT::Install-Recommends "false"',
            *outdated,
            *(f"--dpkgopt={option}" for option in _LEFT_OUT),
            *(f'--customize-hook=sh "{script}" "$1"' for script in recipe.scripts),
            recipe.release.codename,
            str(work / "rootfs"),
            *(source.line(recipe.keyring) for source in recipe.sources),
        ]
        await self._run(command, lambda messages: _report_stage(progress, messages))

    async def _has_memory(self) -> bool:
        memory = (await self._host.machine.resources())["memory"]
        return bool(memory["total"] - memory["used"] > _MEMORY_BYTES)

    async def _run(self, command: list[str], tick: Callable[[str], None]) -> None:
        outcome = await run_chain(self._host.processes, [leashed(command)], stdin=None, tick=tick)
        finished = outcome.programs[0]
        if finished.returncode != 0:
            log_file = await asyncio.to_thread(keep_log, self._log_directory, self._name, finished.messages)
            raise BuildFailed(self._name, f"{last_words(finished.messages)} (whole log: {log_file})")


async def _takes_outdated(host: Host) -> bool:
    """Whether this machine's apt takes archives whose Valid-Until has passed, as a mirror that stands still has them
    (apt.conf(5), Acquire::Check-Valid-Until); then builds do, too. Signatures are checked all the same."""
    if not await asyncio.to_thread(shutil.which, "apt-config"):
        return False
    asked = await host.processes.run(["apt-config", "dump", "--format=%v%n", "Acquire::Check-Valid-Until"], check=False)
    return asked.stdout.strip().lower() in (b"false", b"no", b"0", b"off")


def _merge_usr(recipe: Recipe) -> list[str]:
    if not recipe.release.merge_usr:
        return []
    return [f"--setup-hook={_MERGE_USR % _MERGED.get(recipe.architecture, '')}"]


def keep_log(directory: Path, name: str, messages: str) -> Path:
    """Of the last failed build of this name."""
    file = directory / f".build-{name.replace('/', '-')}.log"
    file.write_text(messages)
    return file


def last_words(messages: str) -> str:
    """What went wrong, from all that the programs said: the last lines that are not about what goes well."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", messages) if line.strip()]
    complaints = [line for line in lines if not _WELL.match(line)]
    return "; ".join((complaints or lines)[-4:]) or "no message"


def _report(progress: Progress, percent: int, what: str) -> None:
    progress({"build_progress": f"{what} ({percent}%)"})


def _report_stage(progress: Progress, messages: str) -> None:
    begun = [(percent, what) for line, percent, what in _STAGES if line in messages]
    packed = _PERCENT.findall(messages.rpartition(_PACKING)[2][-400:]) if _PACKING in messages else []
    if packed:
        _report(progress, 88 + int(packed[-1]) * 12 // 100, "Packing")
    elif begun:
        _report(progress, *begun[-1])


def _parse_date(text: str) -> datetime:
    try:
        return parsedate_to_datetime(text.strip()).astimezone(UTC)
    except ValueError:
        return datetime.now(UTC)
