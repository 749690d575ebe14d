# SPDX-License-Identifier: Apache-2.0
"""Files to and from an LXD: rsync on the `fs` channel with the options that LXD 5.0 uses, which fix what it speaks.

An LXD sends an instance's folder: `rootfs/` beside metadata.yaml, templates and backup.yaml. What it sends is written
by an rsync that is confined as image unpackers are.
"""

import asyncio
import contextlib
import os
import re
import shlex
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Self

from msgspec import Struct

from flexd.api.idmap import IdMap
from flexd.host.contract import Host
from flexd.host.streams import make_pipe
from flexd.images.confine import IMAGE, peering
from flexd.images.contract import BadImage
from flexd.images.formats import parse_metadata
from flexd.instances.metadata import MetadataRecord
from flexd.instances.migration.meter import Meter
from flexd.instances.migration.peer import Peer
from flexd.instances.migration.scratch import scratch_directory
from flexd.instances.migration.trees import Count, StreamFailed, drain, end_stream, fill, running
from flexd.instances.publish import render_metadata

Fill = Callable[[Path], Awaitable[None]]

# An LXD before 3.8 does not say what it can; these it could.
_OLD_FEATURES = ("xattrs", "delete", "compress")
# What another program has sent beside the files is small text; more is not kept.
_KEPT_BYTES = 256 << 10
_TEMPLATES = 100
_PARTIAL = 23
"""rsync's status when something could not be set or made (rsync(1), EXIT VALUES)."""
# Devices are not made here: what a container may use its host makes.
_REFUSED_NODE = re.compile(r"^rsync: .*mknod .* failed: Operation not permitted \(1\)$|^rsync error: .*\(code 23\)")


class Folder(Struct, frozen=True):
    """One moment of an instance; the empty name is the instance itself. `root`: where in the folder its files are;
    empty: they are the folder (a custom volume)."""

    name: str
    tree: Path
    kept: MetadataRecord | None
    root: str = "rootfs"


class Rsync:
    """`stage`: an empty directory of ours to mount on in private namespaces."""

    def __init__(self, host: Host, stage: Path) -> None:
        self._host, self._stage = host, stage

    def session(
        self, peer: Peer, features: Sequence[str], idmap: IdMap, meter: Meter, root: str = "rootfs"
    ) -> "Receiving":
        return Receiving(self._host, self._stage, peer, features, idmap, meter, root)

    async def send(self, folders: Sequence[Folder], peer: Peer, features: Sequence[str], meter: Meter) -> None:
        """`features`: what the target said that it can."""
        if "bidirectional" not in features:
            features = _OLD_FEATURES
        for folder in folders:
            async with self._laid_out(folder) as path:
                await self._send_folder(path, peer, features, meter.of(folder.name))

    @contextlib.asynccontextmanager
    async def _laid_out(self, folder: Folder) -> AsyncIterator[Path]:
        async with scratch_directory() as path:
            await asyncio.to_thread(_lay_out, path, folder)
            await self._host.mounts.bind(folder.tree, path / folder.root, readonly=True)
            try:
                yield path
            finally:
                await self._host.mounts.unmount(path / folder.root, detach=True)

    async def _send_folder(self, path: Path, peer: Peer, features: Sequence[str], count: Count) -> None:
        """rsync wants to start its way to the other host itself: that is a shell between our pipes and its own."""
        incoming, feeding = make_pipe()
        draining, outgoing = make_pipe()
        left = {incoming, feeding, draining, outgoing}
        # A shell's background command reads from /dev/null unless told otherwise.
        script = f"exec 3<&0; cat <&3 >/proc/self/fd/{outgoing} & exec cat </proc/self/fd/{incoming} 3<&-"
        argv = ["rsync", "-ar", "--devices", "--numeric-ids", "--partial", "--sparse", *_feature_options(features)]
        argv += [f"{path}/", "localhost:/tmp/flexd", "-e", f"sh -c {shlex.quote(script)} --"]
        try:
            async with running(self._host, argv, f"sending {path}", pass_fds=(incoming, outgoing)) as child:
                for fd in (incoming, outgoing):
                    os.close(fd)
                    left.discard(fd)
                await asyncio.gather(
                    _drain_and_close(peer, feeding, left, lambda _count: None), _fill_and_end(peer, draining, count)
                )
                await child.wait()
        finally:
            for fd in left:
                os.close(fd)


class Receiving:
    """The streams of one migration, in order; `async with`."""

    def __init__(
        self, host: Host, stage: Path, peer: Peer, features: Sequence[str], idmap: IdMap, meter: Meter, root: str
    ) -> None:
        self._host, self._stage, self._peer, self._root = host, stage, peer, root
        self._features, self._idmap, self._meter = features, idmap, meter
        self._beside = Path()
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._beside = await self._stack.enter_async_context(scratch_directory())
        return self

    async def __aexit__(self, *_failure: object) -> None:
        await self._stack.aclose()

    def filler(self, name: str) -> Fill:
        """Make a tree what the source sends next, with ids as an image has them."""

        async def write(target: Path) -> None:
            await self._receive(target, self._meter.of(name))
            if self._idmap:
                await self._host.files.shift_tree(target, old=self._idmap, new=IdMap())

        return write

    async def _receive(self, target: Path, count: Count) -> None:
        argv = ["rsync", "--server", "-vlogDtpre.iLsfx", "--numeric-ids", "--devices", "--partial", "--sparse"]
        argv += [*_feature_options(self._features), ".", f"{IMAGE}/"]
        confined = peering(argv, stage=self._stage, beside=self._beside, target=target, root=self._root)
        incoming, feeding = make_pipe()
        draining, outgoing = make_pipe()
        left = {incoming, feeding, draining, outgoing}
        try:
            async with running(
                self._host, confined, f"writing {target}", given=incoming, stdout=outgoing, forgiven=_only_nodes
            ) as child:
                for fd in (incoming, outgoing):
                    os.close(fd)
                    left.discard(fd)
                await asyncio.gather(
                    _drain_and_close(self._peer, feeding, left, count),
                    _fill_and_end(self._peer, draining, lambda _count: None),
                )
                await child.wait()
        finally:
            for fd in left:
                os.close(fd)

    async def kept(self) -> MetadataRecord | None:
        """What the instance kept of its image; None if it has nothing."""
        return await asyncio.to_thread(_read_kept, self._beside)


async def _drain_and_close(peer: Peer, fd: int, left: set[int], count: Count) -> None:
    await drain(peer.fs, fd, count)
    os.close(fd)
    left.discard(fd)


async def _fill_and_end(peer: Peer, fd: int, count: Count) -> None:
    await fill(peer.fs, fd, count)
    await end_stream(peer.fs)


def _feature_options(features: Sequence[str]) -> list[str]:
    options = ["--xattrs", "--filter=-x security.selinux"] if "xattrs" in features else []
    options += ["--delete"] if "delete" in features else []
    return options + (["--compress", "--compress-level=2"] if "compress" in features else [])


def _only_nodes(status: int, said: str) -> bool:
    """Whether all that rsync could not do is to make devices."""
    lines = [line for line in said.splitlines() if line.startswith("rsync")]
    return status == _PARTIAL and all(_REFUSED_NODE.match(line) for line in lines)


def _lay_out(path: Path, folder: Folder) -> None:
    path.chmod(0o100)
    (path / folder.root).mkdir(exist_ok=True)
    kept = folder.kept
    if kept is None:
        return
    (path / "metadata.yaml").write_bytes(render_metadata(kept.metadata))
    if kept.templates:
        (path / "templates").mkdir(mode=0o755)
        for name, text in kept.templates.items():
            (path / "templates" / Path(name).name).write_text(text)


def _read_kept(beside: Path) -> MetadataRecord | None:
    """Written by somebody else's stream: nothing but small plain files is read, and no link followed."""
    text = _read_small(beside / "metadata.yaml")
    if text is None:
        return None
    folder = beside / "templates"
    names = sorted(os.listdir(folder))[:_TEMPLATES] if folder.is_dir() and not folder.is_symlink() else []
    found = {name: _read_small(folder / name) for name in names}
    templates = {name: data.decode(errors="replace") for name, data in found.items() if data is not None}
    try:
        return MetadataRecord(parse_metadata(text, "metadata.yaml"), templates)
    except BadImage as error:
        raise StreamFailed("reading what came with the files", str(error)) from error


def _read_small(path: Path) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        data = file.read(_KEPT_BYTES + 1)
    return data if len(data) <= _KEPT_BYTES else None
