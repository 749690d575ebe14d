# SPDX-License-Identifier: Apache-2.0
"""Reads an archive from end to end before anything of it is written, and refuses what could do harm.

Blocking, pure (a stream in, a `Survey` or `BadImage` out); called in threads while a decompressor feeds the stream.
What gets past it still meets `confine.py`: the survey gives the clear error, the kernel the guarantee.
"""

import re
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO, cast

from msgspec import Struct, field

from flexd.api.units import format_size
from flexd.images.contract import BadImage
from flexd.images.formats import METADATA_BYTES

# Longest name or extended header a tar may announce: PATH_MAX is 4096; xattrs and ACLs of real files stay far below.
_HEADER_BYTES = 1 << 20
# Templates are small text files; metadata.yaml and they are kept in memory.
_TEMPLATES_BYTES = 4 << 20
# What a unified image may hold beside rootfs/ (confine.py gives it a tmpfs of 64 MB).
_BESIDE_BYTES = 32 << 20
# Below this nothing is called a bomb, however well it compresses.
_RATIO_FREE_BYTES = 1 << 30
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Limits(Struct, frozen=True):
    """How far an archive may expand. `ratio`: expanded size over file size; real images reach 10, gzip at most 1032."""

    expanded_bytes: int
    members: int = 2_000_000
    ratio: int = 250


class Survey(Struct):
    """What an archive holds. `templates` are the files of templates/, by name; `application` is config.json, which
    tells of an OCI image."""

    members: int = 0
    expanded_bytes: int = 0
    devices: int = 0
    rootfs_members: int = 0
    metadata: bytes | None = None
    application: bytes | None = None
    templates: dict[str, bytes] = field(default_factory=dict)


class Checker:
    """Applies the rules to members in archive order, whatever the archive's kind. `rootfs`: all of the archive is the
    root file system (a split image's second part); else it lies below rootfs/."""

    def __init__(self, name: str, size_bytes: int, limits: Limits, *, rootfs: bool) -> None:
        self._name, self._rootfs = name, rootfs
        self._members_limit = limits.members
        self._bytes_limit = min(limits.expanded_bytes, max(_RATIO_FREE_BYTES, limits.ratio * size_bytes))
        self._directories: set[str] = {""}
        self._others: set[str] = set()
        self._beside_bytes = 0
        self.survey = Survey()

    def bad(self, member: str, fault: str) -> BadImage:
        return BadImage(f'Invalid image {self._name}: member "{_printable(member)}" {fault}')

    def count(self, size_bytes: int) -> None:
        """One more member of this size."""
        self.survey.members += 1
        if self.survey.members > self._members_limit:
            raise BadImage(f"Invalid image {self._name}: more than {self._members_limit} members")
        self.survey.expanded_bytes += size_bytes
        self.check_expanded(self.survey.expanded_bytes)

    def check_expanded(self, expanded_bytes: int) -> None:
        if expanded_bytes > self._bytes_limit:
            limit = format_size(self._bytes_limit)
            raise BadImage(f"Invalid image {self._name}: it expands to more than {limit}, the limit for its size here")

    def place(self, member: str, *, directory: bool) -> str:
        """Check where a member goes; returns its path without leading `./`."""
        path = self.inside(member, member)
        if directory:
            self._directory(member, path)
        else:
            self._directory(member, path.rpartition("/")[0])
            if path in self._directories:
                raise self.bad(member, "replaces a directory")
            if path in self._others:
                raise self.bad(member, "appears twice")
            self._others.add(path)
        return path

    def inside(self, member: str, path: str) -> str:
        """A path of this archive, normalised; `member` is whose it is."""
        if _CONTROL.search(path):
            raise self.bad(member, "has control characters in its name")
        if path.startswith("/"):
            raise self.bad(member, f'leads out of the image: "{path}" is absolute')
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise self.bad(member, f'leads out of the image: "{path}" has ".."')
        return "/".join(parts)

    def link(self, member: str, target: str) -> None:
        """Check a hard link: only to a file that came before, on the same side of rootfs/."""
        path = self.inside(member, target)
        if path not in self._others:
            raise self.bad(member, f'is a hard link to "{_printable(target)}", which is no earlier member')
        if not self._rootfs and self.in_rootfs(path) != self.in_rootfs(self.inside(member, member)):
            raise self.bad(member, f'is a hard link to "{_printable(target)}", across the root file system')

    def enter(self, member: tarfile.TarInfo, size_bytes: int) -> str:
        """Check a tar's member as such; returns its path."""
        self.count(size_bytes)
        path = self.place(member.name, directory=member.isdir())
        if not (member.isreg() or member.isdir() or member.issym() or member.islnk() or member.isdev()):
            raise self.bad(member.name, f"is of a kind ({member.type!r}) that is not known")
        if member.islnk():
            self.link(member.name, member.linkname)
        if member.issym() and _CONTROL.search(member.linkname):
            raise self.bad(member.name, "is a link to a name with control characters")
        self.survey.devices += member.ischr() or member.isblk()
        return path

    def in_rootfs(self, path: str) -> bool:
        return self._rootfs or path.startswith("rootfs/")

    def note(self, path: str, size_bytes: int) -> None:
        """Count what lies in and beside the root file system."""
        if path and self.in_rootfs(path):
            self.survey.rootfs_members += 1
            return
        self._beside_bytes += size_bytes
        if self._beside_bytes > _BESIDE_BYTES:
            raise BadImage(f"Invalid image {self._name}: more than {format_size(_BESIDE_BYTES)} beside rootfs/")

    def _directory(self, member: str, path: str) -> None:
        """A path is used as a directory: neither it nor what is above it may be a link or a file."""
        while path not in self._directories:
            if path in self._others:
                raise self.bad(member, f'would be written through "{path}", which is no directory')
            self._directories.add(path)
            path = path.rpartition("/")[0]


# --- tar ---------------------------------------------------------------------------------------------------------

_EXTENSIONS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class _HeaderTooLarge(Exception):
    pass


class _BoundedTarInfo(tarfile.TarInfo):
    """tarfile reads extended headers whole into memory: refuse those that announce absurd sizes."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENSIONS and self.size > _HEADER_BYTES:
            raise _HeaderTooLarge
        return super()._proc_member(tar)  # type: ignore[misc,no-any-return]


class _Counted:
    """A stream that counts what is read and stops at the limit; remembers whether it ended in zeros."""

    def __init__(self, stream: BinaryIO, check: Callable[[int], None]) -> None:
        self._stream, self._check = stream, check
        self.total = 0
        self.tail = b""

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        if data:
            self.total += len(data)
            self.tail = data[-512:] if len(data) >= 512 else (self.tail + data)[-512:]
            self._check(self.total)
        return data

    def drain(self) -> None:
        while self.read(1 << 20):
            pass


def survey_tar(stream: BinaryIO, name: str, size_bytes: int, limits: Limits, *, rootfs: bool = False) -> Survey:
    """Check every member of an uncompressed tar stream. `size_bytes` is the size of the file as it was sent."""
    checker = Checker(name, size_bytes, limits, rootfs=rootfs)
    read_members(stream, name, checker, partial(_check_member, checker, metadata=not rootfs))
    return checker.survey


def read_members(
    stream: BinaryIO, name: str, checker: Checker, visit: Callable[[tarfile.TarFile, tarfile.TarInfo], None]
) -> None:
    """Visit all members of a tar stream that is whole to its last byte."""
    counted = _Counted(stream, checker.check_expanded)
    try:
        with tarfile.open(fileobj=cast(BinaryIO, counted), mode="r|", bufsize=1 << 18, tarinfo=_BoundedTarInfo) as tar:
            for member in _members(tar):
                visit(tar, member)
        counted.drain()
    except _HeaderTooLarge as error:
        raise BadImage(f"Invalid image {name}: an extended tar header of more than {_HEADER_BYTES} bytes") from error
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise BadImage(f"Invalid image {name}: not a whole tar archive: {error}") from error
    if counted.tail != bytes(512):
        raise BadImage(f"Invalid image {name}: truncated, the tar archive's end is missing")


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        # tarfile keeps all that it has seen; with millions of members that is a bomb of its own.
        tar.members = []  # type: ignore[attr-defined]
        yield member


def stored_bytes(member: tarfile.TarInfo) -> int:
    """What a member takes on disk: of a sparse one only its data (lastlog is 300 GB long and has some kB)."""
    sparse: list[tuple[int, int]] | None = getattr(member, "sparse", None)
    return sum(length for _, length in sparse) if sparse is not None else member.size


def _check_member(checker: Checker, tar: tarfile.TarFile, member: tarfile.TarInfo, *, metadata: bool) -> None:
    size_bytes = stored_bytes(member) if member.isreg() else 0
    path = checker.enter(member, size_bytes)
    checker.note(path, size_bytes)
    if metadata:
        _check_layout(checker, path, member)
        _collect(checker, tar, path, member)


_DOCUMENTS = {"metadata.yaml": "metadata", "config.json": "application"}


def _check_layout(checker: Checker, path: str, member: tarfile.TarInfo) -> None:
    """What the image format gives a meaning to must be plain files and directories."""
    if path in ("rootfs", "templates") and not member.isdir():
        raise checker.bad(member.name, "must be a directory")
    plain = path in _DOCUMENTS or path.startswith("templates/")
    if plain and not (member.isreg() or member.isdir()):
        raise checker.bad(member.name, "must be a plain file")


def _collect(checker: Checker, tar: tarfile.TarFile, path: str, member: tarfile.TarInfo) -> None:
    """Keep the documents and the templates."""
    if not member.isreg():
        return
    survey = checker.survey
    if path in _DOCUMENTS:
        if member.size > METADATA_BYTES:
            raise checker.bad(member.name, f"has {member.size} bytes, more than {METADATA_BYTES}")
        setattr(survey, _DOCUMENTS[path], _content(tar, member))
    elif path.startswith("templates/") and path.count("/") == 1:
        if member.size + sum(map(len, survey.templates.values())) > _TEMPLATES_BYTES:
            raise checker.bad(member.name, f"makes the templates larger than {_TEMPLATES_BYTES} bytes")
        survey.templates[path.removeprefix("templates/")] = _content(tar, member)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file is not None else b""


# --- squashfs ----------------------------------------------------------------------------------------------------

# A line of `unsquashfs -lln`: mode, uid/gid, size or device numbers, time, path (the first is the root itself).
_LINE = re.compile(
    r"([-dlbcps])[-rwxsStT]{9} [0-9]+/[0-9]+ +([0-9]+|[0-9]+, *[0-9]+) [0-9-]+ [0-9:]+ squashfs-root(/.*)?"
)


def survey_squashfs_listing(stream: BinaryIO, name: str, size_bytes: int, limits: Limits) -> Survey:
    """Check the listing that `unsquashfs -lln` prints of a root file system. A name with a line break gives a line
    that is not one: refused."""
    checker = Checker(name, size_bytes, limits, rootfs=True)
    for line in _lines(stream, name):
        match = _LINE.fullmatch(line)
        if match is None:
            raise BadImage(f'Invalid image {name}: strange entry in the squashfs: "{_printable(line)}"')
        kind, size, path = match[1], match[2], (match[3] or "/")[1:]
        if kind == "l":
            path = path.split(" -> ")[0]
        checker.count(int(size) if kind == "-" else 0)
        if path:
            checker.place(path, directory=kind == "d")
            checker.note(path, 0)
        checker.survey.devices += kind in "bc"
    return checker.survey


def _lines(stream: BinaryIO, name: str) -> Iterator[str]:
    while line := stream.readline(_HEADER_BYTES):
        text = line.decode("utf-8", errors="surrogateescape")
        if not text.endswith("\n"):
            raise BadImage(f"Invalid image {name}: the squashfs could not be listed to its end")
        if text.strip():
            yield text[:-1]


def _printable(text: str) -> str:
    """For messages: control characters and bytes that are no text escaped, and not too long."""
    shown = text if len(text) <= 200 else text[:200] + "…"
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], shown).encode("utf-8", "backslashreplace").decode()
