# SPDX-License-Identifier: Apache-2.0
"""Files in instances over `/files`: what the `file` commands are made of."""

from __future__ import annotations

import os
import stat

from flexd.cli.errors import CliError
from flexd.cli.progress import TransferProgress
from flexd.cli.upload import open_file
from flexd.client.client import path_of
from flexd.client.errors import ClientError, NotFoundError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from flexd.client.client import Client
    from flexd.client.connection import Response


class Owner:
    """Whom a file inside shall belong to, and its mode; None leaves that to the server."""

    __slots__ = ("gid", "mode", "uid")

    def __init__(self, uid: int | None = None, gid: int | None = None, mode: int | None = None) -> None:
        self.uid = uid
        self.gid = gid
        self.mode = mode

    def headers(self) -> dict[str, str]:
        values = {"uid": self.uid, "gid": self.gid}
        fields = {f"X-LXD-{name}": str(value) for name, value in values.items() if value is not None}
        if self.mode is not None:
            fields["X-LXD-mode"] = f"{self.mode:04o}"
        return fields

    def merged(self, found: os.stat_result) -> Owner:
        """What the person said, else what the local file has."""
        return Owner(
            found.st_uid if self.uid is None else self.uid,
            found.st_gid if self.gid is None else self.gid,
            stat.S_IMODE(found.st_mode) if self.mode is None else self.mode,
        )


class InstanceFiles:
    """The file system of one instance."""

    def __init__(self, client: Client, instance: str) -> None:
        self._client = client
        self._path = path_of("instances", instance, "files")

    def open(self, path: str) -> tuple[str, Owner, Response]:
        """Kind (file, directory, symlink), owner, and the content to be read."""
        try:
            response = self._client.open("GET", self._path, query={"path": path})
        except NotFoundError as error:
            raise NotFoundError(f"Failed reading {path} of the instance: {error}", error.status) from error
        headers = {name.replace("x-incus-", "x-lxd-"): value for name, value in response.headers.items()}
        mode = headers.get("x-lxd-mode", "")
        owner = Owner(
            int(headers.get("x-lxd-uid") or 0), int(headers.get("x-lxd-gid") or 0), int(mode, 8) if mode else None
        )
        return headers.get("x-lxd-type", "file"), owner, response

    def kind(self, path: str) -> str:
        """Kind of what is there; empty if nothing is."""
        try:
            kind, _, response = self.open(path)
        except NotFoundError:
            return ""
        for _ in response.chunks():
            pass
        return kind

    def entries(self, response: Response) -> list[str]:
        """The names in a directory that was opened."""
        import json

        names: list[str] = json.loads(response.read())["metadata"] or []
        return sorted(names)

    def write(
        self,
        path: str,
        content: BinaryIO | bytes,
        owner: Owner,
        kind: str = "file",
        *,
        size: int | None = None,
        progress: TransferProgress | None = None,
    ) -> None:
        """Create or replace a file, directory or symlink (its content is the target)."""
        headers = {**owner.headers(), "X-LXD-type": kind, "Content-Type": "application/octet-stream"}
        if kind == "file":
            headers["X-LXD-write"] = "overwrite"
        if size is not None:
            headers["Content-Length"] = str(size)
        on_sent = progress.moved if progress is not None else None
        query = {"path": path}
        self._client.request("POST", self._path, content, query=query, headers=headers, on_sent=on_sent)

    def delete(self, path: str) -> None:
        self._client.request("DELETE", self._path, query={"path": path})

    def make_directories(self, path: str, owner: Owner) -> None:
        """Every directory on the way to `path`, and it; those that are there are left alone."""
        done = "/"
        for name in path.strip("/").split("/"):
            done = os.path.join(done, name)
            if name and not self.kind(done):
                self.write(done, b"", owner, "directory")


def push_file(files: InstanceFiles, source: str, target: str, owner: Owner, shown: bool) -> None:
    """Send one local file (`-` is standard input)."""
    with open_file(source) as stream:
        found = os.fstat(stream.fileno())
        size = found.st_size if stat.S_ISREG(found.st_mode) else None
        with TransferProgress(f"Pushing {source}", size, shown) as progress:
            files.write(target, stream, owner, size=size, progress=progress)


def push_tree(files: InstanceFiles, source: str, target: str, owner: Owner, shown: bool) -> None:
    """Send a directory with all that is in it, keeping modes and owners; `target` becomes its copy."""
    for path, found in _walk(source):
        inside = os.path.normpath(os.path.join(target, os.path.relpath(path, source)))
        of = owner.merged(found)
        if stat.S_ISDIR(found.st_mode):
            if not files.kind(inside):
                files.write(inside, b"", of, "directory")
        elif stat.S_ISLNK(found.st_mode):
            files.write(inside, os.readlink(path).encode(), of, "symlink")
        elif stat.S_ISREG(found.st_mode):
            push_file(files, path, inside, of, shown)
        else:
            raise CliError(f"Can't push {path}: it is neither file, directory nor symbolic link")


def _walk(top: str) -> Iterator[tuple[str, os.stat_result]]:
    yield top, os.lstat(top)
    for directory, names, file_names in os.walk(top):
        for name in sorted(names + file_names):
            path = os.path.join(directory, name)
            yield path, os.lstat(path)


def pull_file(response: Response, target: str, owner: Owner, shown: bool, label: str) -> None:
    """Receive one file; it gets the mode that it has inside."""
    from flexd.cli.download import save

    with TransferProgress(f"Pulling {label}", response.length, shown) as progress:
        save(response.chunks(), target, progress)
    if target != "-" and owner.mode is not None:
        os.chmod(target, owner.mode)


def pull_tree(files: InstanceFiles, source: str, target: str, shown: bool) -> None:
    """Receive whatever is there; a directory with all that is in it."""
    kind, owner, response = files.open(source)
    if kind == "directory":
        os.makedirs(target, exist_ok=True)
        for name in files.entries(response):
            if name in (".", "..") or "/" in name:
                raise CliError(f'Refused to pull "{name}" of {source}: it would lead out of {target}')
            pull_tree(files, os.path.join(source, name), os.path.join(target, name), shown)
        if owner.mode is not None:
            os.chmod(target, owner.mode)
    elif kind == "symlink":
        link = response.read().decode().rstrip("\n")
        if os.path.lexists(target):
            os.unlink(target)
        os.symlink(link, target)
    else:
        pull_file(response, target, owner, shown, source)


def delete_tree(files: InstanceFiles, path: str) -> None:
    """Remove a directory with all that is in it, or anything else."""
    kind, _, response = files.open(path)
    if kind == "directory":
        for name in files.entries(response):
            delete_tree(files, os.path.join(path, name))
    else:
        for _ in response.chunks():
            pass
    try:
        files.delete(path)
    except ClientError as error:
        raise CliError(f"Failed deleting {path}: {error}") from error
