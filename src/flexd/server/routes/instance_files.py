# SPDX-License-Identifier: Apache-2.0
"""`/1.0/instances/NAME/files` (which `lxc` uses) and `/sftp` (which `incus` uses)."""

import contextlib
import os
from datetime import UTC, datetime

import msgspec
from aiohttp import hdrs, web

from flexd.api.errors import BadRequest, Fault, NotFound, raise_faults
from flexd.runtime.contract import ContainerFiles, FileInfo
from flexd.server import responses, upgrade
from flexd.server.call import Call, dual_headers
from flexd.server.endpoint import Endpoint
from flexd.server.instance_path import instance_name
from flexd.server.streaming import receive_fd, send_fd

# What LXD gives a file or a directory that comes without a mode.
_FILE_MODE = 0o644
_DIRECTORY_MODE = 0o750
_TYPES = ("file", "directory", "symlink")
_SFTP = "sftp"


class Upload(msgspec.Struct, frozen=True):
    """What the headers of a POST say."""

    kind: str
    append: bool
    uid: int
    gid: int
    mode: int | None


def parse_upload(call: Call) -> Upload:
    faults: list[Fault] = []
    kind = call.header("type") or "file"
    if kind not in _TYPES:
        faults.append(Fault("X-LXD-type", f"Bad file type: {kind}"))
    write = call.header("write") or "overwrite"
    if write not in ("overwrite", "append"):
        faults.append(Fault("X-LXD-write", f"Bad file write mode: {write}"))
    uid = _number(call, "uid", 10, faults)
    gid = _number(call, "gid", 10, faults)
    mode = _number(call, "mode", 8, faults)
    raise_faults(faults)
    return Upload(kind, write == "append", max(uid or 0, 0), max(gid or 0, 0), mode)


def _number(call: Call, name: str, base: int, faults: list[Fault]) -> int | None:
    """A number in a header; -1 is "not given" for LXD's clients."""
    text = call.header(name)
    if not text:
        return None
    try:
        return int(text, base)
    except ValueError:
        faults.append(Fault(f"X-LXD-{name}", f'invalid value "{text}" (expected a number in base {base})'))
        return None


def _path(call: Call) -> str:
    path = call.query("path")
    if not path:
        raise BadRequest("Missing path argument")
    return path


async def show_file(call: Call) -> web.StreamResponse:
    """A file's bytes, a link's target, or a directory's names; who owns it is in the headers."""
    path = _path(call)
    async with call.services.files.open(call.project, instance_name(call)) as files:
        found = await files.stat(path, follow=False)
        headers = _headers(found)
        if call.request.method == hdrs.METH_HEAD:
            return web.Response(headers=headers, content_type="application/json")
        if found.kind == "directory":
            return _with_headers(responses.sync(list(found.entries)), headers)
        if found.kind == "symlink":
            return web.Response(body=found.target.encode(), headers=headers, content_type="application/octet-stream")
        if found.kind != "file":
            raise BadRequest(f'Failed reading "{path}": it is neither a file, a directory nor a symlink')
        return await _send(call, files, path, headers)


async def _send(call: Call, files: ContainerFiles, path: str, headers: dict[str, str]) -> web.StreamResponse:
    fd = await files.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return await send_fd(call.request, fd, os.path.basename(path), headers)
    finally:
        os.close(fd)


def _headers(found: FileInfo) -> dict[str, str]:
    modified = datetime.fromtimestamp(int(found.mtime_s), UTC)
    return dual_headers(
        {
            "uid": found.uid,
            "gid": found.gid,
            "mode": f"{found.mode:04o}",
            "modified": f"{modified:%Y-%m-%d %H:%M:%S} +0000 UTC",
            "type": found.kind,
        }
    )


def _with_headers(response: web.Response, headers: dict[str, str]) -> web.Response:
    response.headers.update(headers)
    return response


async def write_file(call: Call) -> web.Response:
    path = _path(call)
    upload = parse_upload(call)
    async with call.services.files.open(call.project, instance_name(call)) as files:
        if upload.kind == "directory":
            mode = _DIRECTORY_MODE if upload.mode is None else upload.mode
            await files.make_directory(path, mode=mode, uid=upload.uid, gid=upload.gid)
        elif upload.kind == "symlink":
            target = (await call.request.read()).decode(errors="surrogateescape")
            if not await _links_to(files, path, target):
                await files.make_symlink(path, target, uid=upload.uid, gid=upload.gid)
        else:
            await _receive(call, files, path, upload)
    return responses.empty()


async def _links_to(files: ContainerFiles, path: str, target: str) -> bool:
    """Pushing a tree again finds its links in place."""
    with contextlib.suppress(NotFound):
        found = await files.stat(path, follow=False)
        return found.kind == "symlink" and found.target == target
    return False


async def _receive(call: Call, files: ContainerFiles, path: str, upload: Upload) -> None:
    """Owner and mode apply to a file that is made here; one that exists keeps its own, as in LXD."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | (os.O_APPEND if upload.append else os.O_TRUNC)
    mode = _FILE_MODE if upload.mode is None else upload.mode
    fd = await files.open(path, flags, mode=mode, uid=upload.uid, gid=upload.gid)
    try:
        await receive_fd(call.request, fd)
    finally:
        os.close(fd)


async def delete_file(call: Call) -> web.Response:
    path = _path(call)
    async with call.services.files.open(call.project, instance_name(call)) as files:
        await files.remove(path)
    return responses.empty()


async def open_sftp(call: Call) -> web.StreamResponse:
    """101 and then SFTP, as whoever is root inside."""
    upgrade.check_upgrade(call.request, _SFTP)
    async with call.services.files.open(call.project, instance_name(call)) as files:
        return await upgrade.bridge(call.request, _SFTP, await files.sftp())


ENDPOINTS = (
    Endpoint("/1.0/instances/{name}/files", {"GET": show_file, "POST": write_file, "DELETE": delete_file}),
    Endpoint("/1.0/instances/{name}/sftp", {"GET": open_sftp}),
)
