# SPDX-License-Identifier: Apache-2.0
"""The files that images are made of: checked once when they come in, unpacked whenever a pool wants them.

Knows files and programs, nothing of documents or the API.
"""

import asyncio
import logging
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from flexd.api.errors import FlexdError
from flexd.api.units import format_size
from flexd.host.contract import Host
from flexd.images.confine import FILE, TARGET, confined, powerless
from flexd.images.contract import BadImage
from flexd.images.formats import HEAD_BYTES, Format, detect, read_squashfs_head
from flexd.images.programs import Finished, Outcome, read_chain, run_chain
from flexd.images.survey import Limits, Survey, survey_squashfs_listing, survey_tar

log = logging.getLogger(__name__)

T = TypeVar("T")
Percent = Callable[[int], None]

# One thread writes and metadata dominates: with a fast decompressor more threads only contend (measured, 240 MB of
# Debian on tmpfs with 2 processors: zstd 0.45 s with one, 0.85 s with two). These are slow enough to gain.
_SLOW_COMPRESSIONS = frozenset({"xz", "lzma", "gzip", "lzo", "unknown"})
_EXPECTED = (
    # What happens to a device node without CAP_MKNOD, and to attributes that only CAP_SYS_ADMIN may set.
    re.compile(r"tar: (?P<device>.*): Cannot mknod: Operation not permitted"),
    re.compile(r".*failed to create (?:character|block) device /image/rootfs(?P<device>.*), because .*"),
    re.compile(r"skipped device: /image/rootfs(?P<device>.*)"),
    re.compile(r".*write_xattr: .*(?:trusted|security)\..*"),
    re.compile(r"tar: Exiting with failure status due to previous errors"),
    re.compile(r"tar: .*: Warning: .*"),
)
_PROGRESS = re.compile(r"([0-9]{1,3})%")
_NOISE = re.compile(r"\s*|Parallel unsquashfs: .*|[0-9]+ inodes \(.*\) to write|created [0-9]+ .*|\[[=|/\\ -]*\].*")


class UnpackFailed(FlexdError):
    pass


class Archives:
    """`stage`: an empty directory of ours to mount on in private namespaces."""

    def __init__(self, host: Host, stage: Path) -> None:
        self._host, self._stage = host, stage

    async def survey(self, file: Path, name: str, limits: Limits, *, rootfs: bool) -> tuple[Format, Survey]:
        """Read a file whole; `BadImage` if it is no image, is damaged or dangerous. `name` is for the errors."""
        head, size_bytes = await asyncio.to_thread(_head, file)
        form = detect(head, name)
        if form.kind == "squashfs":
            if not rootfs:
                raise BadImage(f"Invalid image {name}: a squashfs needs a metadata tar archive beside it (split image)")
            return form, await self._survey_squashfs(file, head, name, size_bytes, limits)
        return form, await self._survey_tar(file, form, name, size_bytes, limits, rootfs=rootfs)

    async def _survey_tar(
        self, file: Path, form: Format, name: str, size_bytes: int, limits: Limits, *, rootfs: bool
    ) -> Survey:
        consume = partial(survey_tar, name=name, size_bytes=size_bytes, limits=limits, rootfs=rootfs)
        return await self._read_tar(file, form, name, consume)

    async def examine(self, file: Path, name: str, consume: Callable[[BinaryIO], T]) -> T:
        """Let a function read the plain tar in a file, in a thread; it may stop before the end."""
        head, _ = await asyncio.to_thread(_head, file)
        form = detect(head, name)
        if form.kind != "tar":
            raise BadImage(f"Invalid image {name}: it is no tar archive")
        return await self._read_tar(file, form, name, consume)

    async def _read_tar(self, file: Path, form: Format, name: str, consume: Callable[[BinaryIO], T]) -> T:
        if form.compression is None:
            return await asyncio.to_thread(_with_file, file, consume)
        source = await asyncio.to_thread(os.open, file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            outcome = await read_chain(
                self._host.processes, [powerless(form.compression.argv)], stdin=source, consume=consume
            )
        finally:
            os.close(source)
        return _surveyed(outcome, name, form.compression.name)

    async def _survey_squashfs(self, file: Path, head: bytes, name: str, size_bytes: int, limits: Limits) -> Survey:
        squashfs = read_squashfs_head(head, size_bytes, name)
        if squashfs.inodes > limits.members:
            raise BadImage(f"Invalid image {name}: more than {limits.members} members")
        command = confined(["unsquashfs", "-lln", FILE], stage=self._stage, file=file)
        consume = partial(survey_squashfs_listing, name=name, size_bytes=size_bytes, limits=limits)
        return _surveyed(await read_chain(self._host.processes, [command], stdin=None, consume=consume), name, "")

    async def unpack(
        self, file: Path, name: str, target: Path, percent: Percent, *, unified: bool, member: str = "rootfs"
    ) -> None:
        """Put a root file system into an empty directory, with owners, modes, times, hard links, ACLs, capabilities
        and user attributes, without devices. `unified`: it is a directory of the archive, of this name. On failure
        the directory is empty again."""
        head, size_bytes = await asyncio.to_thread(_head, file)
        form = detect(head, name)
        if await asyncio.to_thread(os.listdir, target):
            raise UnpackFailed(f"Failed unpacking image {name}: {target} is not empty")
        try:
            if form.kind == "squashfs":
                finished = await self._unpack_squashfs(file, head, name, size_bytes, target, percent)
            else:
                finished = await self._unpack_tar(file, form, size_bytes, target, percent, member if unified else "")
            _check_unpacked(finished, name)
        except BaseException:
            await asyncio.shield(self._empty(target))
            raise

    async def _unpack_tar(
        self, file: Path, form: Format, size_bytes: int, target: Path, percent: Percent, member: str
    ) -> Sequence[Finished]:
        where = TARGET.rpartition("/")[0] if member else TARGET
        tar = ["tar", "-xpf", "-", "-C", where, "--numeric-owner", "--acls", "--xattrs", "--warning=no-timestamp"]
        tar += ["--xattrs-include=user.*", "--xattrs-include=security.capability"]
        if "/" in member:
            tar += [*_to_target(member), "--", member]
        commands = [confined(tar, stage=self._stage, target=target)]
        if form.compression is not None:
            commands.insert(0, powerless(form.compression.argv))
        source = await asyncio.to_thread(os.open, file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # The first program shares our file description, so its offset tells how far it has read.
            def tick(_messages: str) -> None:
                percent(100 * os.lseek(source, 0, os.SEEK_CUR) // max(1, size_bytes))

            return (await run_chain(self._host.processes, commands, stdin=source, tick=tick)).programs
        finally:
            os.close(source)

    async def _unpack_squashfs(
        self, file: Path, head: bytes, name: str, size_bytes: int, target: Path, percent: Percent
    ) -> Sequence[Finished]:
        squashfs = read_squashfs_head(head, size_bytes, name)
        threads = (os.cpu_count() or 1) if squashfs.compression in _SLOW_COMPRESSIONS else 1
        unsquashfs = ["unsquashfs", "-f", "-processors", str(threads), "-d", TARGET, FILE]

        def tick(messages: str) -> None:
            shown = _PROGRESS.findall(messages[-400:])
            if shown:
                percent(int(shown[-1]))

        command = confined(unsquashfs, stage=self._stage, target=target, file=file)
        return (await run_chain(self._host.processes, [command], stdin=None, tick=tick)).programs

    async def _empty(self, directory: Path) -> None:
        for subdirectory in await asyncio.to_thread(_unlink_files, directory):
            await self._host.files.remove_tree(subdirectory)


def _to_target(member: str) -> list[str]:
    """Options by which tar puts a directory of the archive in the place of the target."""
    parents, name = os.path.split(member)
    if name == os.path.basename(TARGET):
        return [f"--strip-components={len(parents.split('/'))}"]
    # In names and what hard links lead to, not in symbolic links.
    return [f"--transform=flags=rSh;s|^{member.replace('.', chr(92) + '.')}|{os.path.basename(TARGET)}|"]


def _unlink_files(directory: Path) -> list[Path]:
    """Remove what is no directory, links above all; returns the directories."""
    directories = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                directories.append(Path(entry.path))
            else:
                os.unlink(entry.path)
    return directories


def _head(file: Path) -> tuple[bytes, int]:
    with file.open("rb") as stream:
        return stream.read(HEAD_BYTES), os.fstat(stream.fileno()).st_size


def _with_file(file: Path, consume: Callable[[BinaryIO], T]) -> T:
    with file.open("rb") as stream:
        return consume(stream)


def _surveyed(outcome: Outcome[T], name: str, compression: str) -> T:
    """A damaged stream ends early, which looks like a short archive: what the program said of it comes first."""
    program = outcome.programs[0]
    # A reader that gave up leaves the program writing into a closed pipe: its SIGPIPE (-13, 141) is no finding.
    if program.returncode not in (0, -13, 141) and "Broken pipe" not in program.messages:
        said = _last_line(program.messages) or f"exited with status {program.returncode}"
        kind = f"damaged {compression} data" if compression else "damaged squashfs"
        raise BadImage(f"Invalid image {name}: {kind}: {said}") from outcome.failure
    if outcome.failure is not None:
        raise outcome.failure
    assert outcome.result is not None  # no failure means that the function returned
    return outcome.result


def _check_unpacked(finished: Sequence[Finished], name: str) -> None:
    """Devices that were not made are no failure; everything else that a program complains of is."""
    for program in finished[:-1]:
        if program.returncode != 0 and finished[-1].returncode == 0:
            raise UnpackFailed(f"Failed unpacking image {name}: {_last_line(program.messages) or program.returncode}")
    devices, complaints = sort_messages(finished[-1].messages)
    if finished[-1].returncode != 0 and (complaints or not devices):
        shown = "; ".join(complaints[:3]) or f"exited with status {finished[-1].returncode}"
        raise UnpackFailed(f"Failed unpacking image {name}: {shown}")
    if devices:
        log.info("Unpacked image %s without its %d device nodes (%s)", name, len(devices), ", ".join(devices[:8]))


def sort_messages(messages: str) -> tuple[list[str], list[str]]:
    """(devices that were skipped, complaints) in what tar or unsquashfs said."""
    devices, complaints = [], []
    for line in re.split(r"[\r\n]+", messages):
        expected = next((match for rule in _EXPECTED if (match := rule.fullmatch(line))), None)
        if expected is None:
            if not _NOISE.fullmatch(line):
                complaints.append(line.strip())
        elif "device" in expected.groupdict():
            devices.append(expected["device"])
    return devices, complaints


def _last_line(messages: str) -> str:
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def free_space_fault(free_bytes: int, needed_bytes: int) -> str | None:
    if needed_bytes <= free_bytes:
        return None
    return f"it needs {format_size(needed_bytes)}, only {format_size(free_bytes)} are free"
