# SPDX-License-Identifier: Apache-2.0
"""Reading a backup of an instance or a volume from end to end before it is written anywhere, by the rules for images.

Blocking, pure; called in threads while a decompressor feeds the stream.
"""

import re
import tarfile
from typing import BinaryIO

from msgspec import Struct, field

from flexd.images.contract import BadImage
from flexd.images.survey import Checker, Limits, Survey, read_members, stored_bytes

INDEX = "backup/index.yaml"
# With hundreds of snapshots an index has some hundred KiB.
INDEX_BYTES = 8 << 20
_KEPT_BYTES = 1 << 20
HEADER = "backup/optimized_header.yaml"


class Layout(Struct, frozen=True):
    """Where things are in one kind of backup. `roots`: (a part of it)(what is in its tree); `blobs`: (a part) that is
    one file; `kept`: small files whose content matters."""

    roots: re.Pattern[str]
    blobs: re.Pattern[str]
    kept: re.Pattern[str]

    def root_of(self, path: str) -> str | None:
        match = self.roots.fullmatch(path)
        return None if match is None else match[1]


INSTANCE = Layout(
    re.compile(r"(backup/container|backup/snapshots/[^/]+)/rootfs(/.*)?"),
    re.compile(r"(backup/container[^/]*|backup/snapshots/[^/]+)\.bin"),
    re.compile(r"(backup/container|backup/snapshots/[^/]+)/(metadata\.yaml|backup\.yaml|templates/[^/]+)"),
)
VOLUME = Layout(
    re.compile(r"(backup/volume|backup/volume-snapshots/[^/]+)(/.*)?"),
    re.compile(r"(backup/volume[^/]*|backup/volume-snapshots/[^/]+)\.(?:img|bin)"),
    re.compile(r"(?!)"),
)


class BackupSurvey(Struct):
    """`files`: metadata.yaml, backup.yaml and templates by their paths. `roots`: the parts that have a tree in them;
    `blobs`: the paths of files that are one. `header`: optimized_header.yaml."""

    survey: Survey
    index: bytes = b""
    header: bytes = b""
    files: dict[str, bytes] = field(default_factory=dict)
    roots: set[str] = field(default_factory=set)
    blobs: set[str] = field(default_factory=set)


class _BackupChecker(Checker):
    """Several trees; hard links stay in their own."""

    def __init__(self, name: str, size_bytes: int, limits: Limits, layout: Layout) -> None:
        super().__init__(name, size_bytes, limits, rootfs=False)
        self.layout = layout

    def in_rootfs(self, path: str) -> bool:
        return self.layout.root_of(path) is not None or self.layout.blobs.fullmatch(path) is not None

    def link(self, member: str, target: str) -> None:
        super().link(member, target)
        root_of = self.layout.root_of
        if root_of(self.inside(member, target)) != root_of(self.inside(member, member)):
            raise self.bad(member, "is a hard link across root file systems")


def read_index(stream: BinaryIO, name: str) -> bytes:
    """index.yaml, which comes first."""
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 18) as tar:
            member = tar.next()
            if member is None or member.name.removeprefix("./") != INDEX or not member.isreg():
                raise BadImage(f"Invalid image {name}: it does not begin with {INDEX}, so it is no backup")
            if member.size > INDEX_BYTES:
                raise BadImage(f"Invalid image {name}: {INDEX} has more than {INDEX_BYTES} bytes")
            file = tar.extractfile(member)
            return file.read() if file is not None else b""
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise BadImage(f"Invalid image {name}: not a whole tar archive: {error}") from error


def survey_backup(
    stream: BinaryIO, name: str, size_bytes: int, limits: Limits, layout: Layout = INSTANCE
) -> BackupSurvey:
    """Check every member."""
    checker = _BackupChecker(name, size_bytes, limits, layout)
    found = BackupSurvey(checker.survey)

    def visit(tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        _check_member(checker, tar, member, found)

    read_members(stream, name, checker, visit)
    if not found.index:
        raise BadImage(f"Invalid image {name}: {INDEX} is missing")
    return found


def _check_member(checker: _BackupChecker, tar: tarfile.TarFile, member: tarfile.TarInfo, found: BackupSurvey) -> None:
    size_bytes = stored_bytes(member) if member.isreg() else 0
    path = checker.enter(member, size_bytes)
    checker.note(path, size_bytes)
    if member.isreg() and checker.layout.blobs.fullmatch(path):
        found.blobs.add(path)
        return
    root = checker.layout.roots.fullmatch(path)
    if root is not None and not root[2]:
        if not member.isdir():
            raise checker.bad(member.name, "must be a directory")
        found.roots.add(root[1])
    if root is None and not (member.isdir() or member.isreg()):
        raise checker.bad(member.name, "must be a plain file")
    if root is None and member.isreg():
        _keep(checker, tar, member, path, found)


def _keep(
    checker: _BackupChecker, tar: tarfile.TarFile, member: tarfile.TarInfo, path: str, found: BackupSurvey
) -> None:
    if path == INDEX:
        found.index = _content(checker, tar, member, INDEX_BYTES)
    elif path == HEADER:
        found.header = _content(checker, tar, member, INDEX_BYTES)
    elif checker.layout.kept.fullmatch(path):
        limit = INDEX_BYTES if path.endswith("/backup.yaml") else _KEPT_BYTES
        found.files[path] = _content(checker, tar, member, limit)


def _content(checker: Checker, tar: tarfile.TarFile, member: tarfile.TarInfo, limit_bytes: int) -> bytes:
    if member.size > limit_bytes:
        raise checker.bad(member.name, f"has {member.size} bytes, more than {limit_bytes}")
    file = tar.extractfile(member)
    return file.read() if file is not None else b""
