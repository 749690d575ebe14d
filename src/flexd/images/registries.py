# SPDX-License-Identifier: Apache-2.0
"""Images of OCI registries: skopeo(1) fetches, umoci(1) puts the layers together, the store keeps a squashfs.

Both run confined. Digests are skopeo's to check, as it reads; sizes, silence and floods are ours.
"""

import asyncio
import io
import json
import lzma
import os
import re
import shutil
import tarfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from flexd.api.architectures import package_architecture
from flexd.api.errors import BadRequest, FlexdError, NotSupported
from flexd.api.image import ImageMetadata, ImageSource, ImagesPostSource
from flexd.api.units import format_size
from flexd.host.contract import Host
from flexd.images.applications import parse_application, render_application
from flexd.images.archive import free_space_fault
from flexd.images.confine import BUNDLE, LAYOUT, WORK, client, layering
from flexd.images.contract import BadImage
from flexd.images.depot import Depot
from flexd.images.formats import METADATA_BYTES
from flexd.images.incoming import Incoming
from flexd.images.keys import Settings
from flexd.images.oci import (
    MANIFEST_BYTES,
    Manifest,
    Reference,
    check_digest,
    choose_digest,
    created_at,
    parse_image_config,
    parse_manifest,
    parse_reference,
)
from flexd.images.pack import Packer
from flexd.images.programs import Finished, read_chain, run_chain
from flexd.images.sources import Offer
from flexd.images.transfer import DownloadFailed, NotOnServer, Patience, Unreachable
from flexd.operations.contract import Progress
from flexd.runtime.render import APPLICATION_INITS

_PROGRAMS = {"skopeo": ("skopeo",), "umoci": ("umoci",), "tini": APPLICATION_INITS, "squashfs-tools": ("mksquashfs",)}
_TICK_S = 0.25
# What skopeo writes beside the layers: an index, a manifest; and a file system's blocks.
_SLACK_BYTES = 16 << 20
# Layers are unpacked until a file system is as full as that.
_SPARE_BYTES = 256 << 20
_IMAGE = "image"
_SAID = re.compile(r'msg="((?:[^"\\]|\\.)*)"')
_ABSENT = re.compile(
    r"manifest unknown|name unknown|name invalid|not found|repository .* does not exist", re.IGNORECASE
)
_DENIED = re.compile(r"unauthorized|authentication required|denied|no basic auth", re.IGNORECASE)
_AWAY = re.compile(
    r"connection refused|no such host|i/o timeout|network is unreachable|no route to host|server misbehaving"
)
_KEY = "download_progress"


async def prepare_oci(
    host: Host, depot: Depot, settings: Settings, patience: Patience, source: ImagesPostSource, architecture: str
) -> "OciFetch":
    """Check a request as far as that needs no network."""
    if not source.alias:
        raise BadRequest("Invalid image source: an OCI image is named by its alias, as nginx:latest")
    reference = parse_reference(source.server, source.alias)
    missing = await asyncio.to_thread(_missing_programs)
    if missing:
        raise NotSupported(f'Failed fetching OCI image "{reference}": missing on this host: {", ".join(missing)}')
    authfile = settings("images.oci_authfile")
    tools = Tools(host, depot.stage, patience, Path(authfile) if authfile else None)
    return OciFetch(tools, depot, reference, source, architecture)


def _missing_programs() -> list[str]:
    return [
        f"{names[0]} (package {package})" for package, names in _PROGRAMS.items() if not any(map(shutil.which, names))
    ]


class OciFetch:
    """The `RemoteFetch` of one image; its fingerprint is the digest of its manifest for this architecture."""

    description = "Downloading image"

    def __init__(
        self, tools: "Tools", depot: Depot, reference: Reference, source: ImagesPostSource, architecture: str
    ) -> None:
        self._tools, self._depot, self._reference = tools, depot, reference
        self.architecture, self.name = architecture, source.alias
        # A digest is one image for ever.
        alias = "" if reference.digest else source.alias
        self.origin = ImageSource(alias, source.certificate, source.image_type, "oci", source.server)

    async def locate(self) -> Offer:
        incoming = await self._depot.incoming()
        try:
            text = await self._tools.manifest(self._reference, incoming.directory / "work")
        finally:
            await incoming.discard()
        digest = choose_digest(text, self._reference, self.architecture)
        return Offer(digest.removeprefix("sha256:"), self.origin)

    async def receive(self, offer: Offer, incoming: Incoming, progress: Progress) -> None:
        reference = self._reference.at(f"sha256:{offer.fingerprint}")
        work, bundle = incoming.directory / "work", incoming.directory / "bundle"
        manifest = parse_manifest(await self._tools.manifest(reference, work), reference)
        await self._tools.copy(reference, manifest, work, progress)
        text = await asyncio.to_thread(_read_blob, work / "layout", manifest.config.digest)
        config = parse_image_config(text, reference, self.architecture)
        await self._tools.unpack(reference, work / "layout", bundle, progress)
        progress({_KEY: "Packing"})
        await self._tools.squash(bundle, incoming.rootfs)
        document = await asyncio.to_thread(_read_bounded, bundle / "made" / "config.json", reference)
        application = render_application(parse_application(document, f'"{reference}"'))
        metadata = ImageMetadata(
            architecture=self.architecture, creation_date=created_at(config), properties=self._properties()
        )
        archive = await asyncio.to_thread(metadata_archive, metadata, application)
        await asyncio.to_thread(incoming.metadata.write_bytes, archive)
        for directory in (work, bundle):
            await asyncio.to_thread(shutil.rmtree, directory)
        await incoming.adopt()
        incoming.call(offer.fingerprint)

    def _properties(self) -> dict[str, str]:
        """Incus's."""
        return {
            "architecture": package_architecture(self.architecture),
            "type": "oci",
            "description": f"{self._reference.place} (OCI)",
            "id": self.name,
        }


class Tools:
    """skopeo and umoci. `stage`: an empty directory of ours to mount on in private namespaces."""

    def __init__(self, host: Host, stage: Path, patience: Patience, authfile: Path | None) -> None:
        self._host, self._stage, self._patience, self._authfile = host, stage, patience, authfile
        self._packer = Packer(host, stage)

    async def manifest(self, reference: Reference, work: Path) -> bytes:
        """What the registry has under a name: a manifest, or an index of several. `work` is made and removed."""
        argv = ["inspect", "--raw", f"--tls-verify={_verify(reference)}", f"docker://{reference}"]
        command = await self._command(argv, work)
        limit_s = self._patience.connect_s + self._patience.silence_s
        try:
            async with asyncio.timeout(limit_s):
                outcome = await read_chain(self._host.processes, [command], stdin=None, consume=_read_manifest)
        except TimeoutError as error:
            raise Unreachable(str(reference), f"the registry fell silent for {limit_s:g} s") from error
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, work, ignore_errors=True))
        text = outcome.result or b""
        if len(text) > MANIFEST_BYTES:
            raise BadImage(f'Invalid image "{reference}": its manifest has more than {MANIFEST_BYTES} bytes')
        _check_skopeo(outcome.programs[0], reference)
        check_digest(text, reference)
        return text

    async def copy(self, reference: Reference, manifest: Manifest, work: Path, progress: Progress) -> None:
        """The whole image as an OCI layout, in `work`/layout."""
        usage = await self._host.files.filesystem(work.parent)
        fault = free_space_fault(usage.total_bytes - usage.used_bytes, 2 * manifest.total_bytes)
        if fault is not None:
            raise FlexdError(f'Failed downloading image "{reference}": {fault}')
        # As they are, so that what lies on disk is what came.
        argv = ["copy", f"--src-tls-verify={_verify(reference)}", "--quiet", "--dest-oci-accept-uncompressed-layers"]
        argv += [f"docker://{reference}", f"oci:{WORK}/layout:{_IMAGE}"]
        command = await self._command(argv, work)
        watch = _Download(reference, manifest.total_bytes, self._patience, work, progress)
        _check_skopeo(await self._watched(command, watch.look), reference)
        await asyncio.to_thread(_check_sizes, work / "layout", manifest, reference)

    async def _command(self, argv: Sequence[str], work: Path) -> list[str]:
        await asyncio.to_thread(work.mkdir, mode=0o700)
        # No policy of signatures is the host's default, too (containers-policy.json(5)); nobody has one.
        skopeo = ["env", f"HOME={WORK}", f"TMPDIR={WORK}", "skopeo", "--insecure-policy", f"--tmpdir={WORK}", argv[0]]
        if self._authfile is not None:
            await asyncio.to_thread(_copy_credentials, self._authfile, work / "auth.json")
            skopeo += ["--authfile", f"{WORK}/auth.json"]
        return client([*skopeo, *argv[1:]], stage=self._stage, work=work)

    async def unpack(self, reference: Reference, layout: Path, bundle: Path, progress: Progress) -> None:
        """The layers' tree in `bundle`/made/rootfs, what it is for in config.json beside it."""
        progress({_KEY: "Unpacking layers"})
        await asyncio.to_thread(bundle.mkdir, mode=0o700)
        umoci = ["umoci", "unpack", "--keep-dirlinks", "--image", f"{LAYOUT}:{_IMAGE}", f"{BUNDLE}/made"]
        command = layering(umoci, stage=self._stage, layout=layout, bundle=bundle)

        async def look() -> None:
            usage = await self._host.files.filesystem(bundle)
            if usage.total_bytes - usage.used_bytes < min(_SPARE_BYTES, usage.total_bytes // 20):
                raise BadImage(f'Invalid image "{reference}": unpacked it fills the disk here')

        finished = await self._watched(command, look)
        if finished.returncode != 0:
            raise BadImage(f'Invalid image "{reference}": its layers cannot be unpacked: {_last_words(finished)}')
        await asyncio.to_thread(_make_mount_points, bundle / "made" / "rootfs")

    async def squash(self, bundle: Path, target: Path) -> None:
        await self._packer.squash(bundle / "made" / "rootfs", target)

    async def _watched(self, command: Sequence[str], look: Callable[[], Awaitable[None]]) -> Finished:
        """Run it, looking after it four times a second; what `look` raises ends it."""
        running = asyncio.create_task(run_chain(self._host.processes, [command], stdin=None))
        try:
            while not (await asyncio.wait({running}, timeout=_TICK_S))[0]:
                await look()
            return running.result().programs[0]
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


class _Download:
    """How much has come, and when the last of it."""

    def __init__(self, reference: Reference, total: int, patience: Patience, work: Path, progress: Progress) -> None:
        self._reference, self._total, self._patience = reference, total, patience
        self._work, self._progress = work, progress
        self._begun = self._grown_at = time.monotonic()
        self._seen = 0

    async def look(self) -> None:
        seen, now = await asyncio.to_thread(_size_of, self._work), time.monotonic()
        if seen > self._total + _SLACK_BYTES:
            raise DownloadFailed(
                str(self._reference), f"more than the {self._total} bytes come that its manifest names"
            )
        if seen > self._seen:
            self._seen, self._grown_at = seen, now
        elif seen < self._total and now - self._grown_at > self._limit_s():
            reason = f"the registry fell silent for {self._limit_s():g} s ({seen} of {self._total} bytes came)"
            raise DownloadFailed(str(self._reference), reason)
        percent = min(100, 100 * seen // max(1, self._total))
        rate = format_size(int(seen / max(0.001, now - self._begun)))
        self._progress({_KEY: f"layers: {percent}% ({rate}/s)"})

    def _limit_s(self) -> float:
        """Before the first byte there is a connection to be made, perhaps a token to be asked for."""
        return self._patience.silence_s + (0 if self._seen else self._patience.connect_s)


def _verify(reference: Reference) -> str:
    return "false" if reference.plain else "true"


def _read_manifest(stream: BinaryIO) -> bytes:
    return stream.read(MANIFEST_BYTES + 1)


def _check_skopeo(finished: Finished, reference: Reference) -> None:
    if finished.returncode == 0:
        return
    said = _last_words(finished)
    if _AWAY.search(said):
        raise Unreachable(str(reference), said)
    if _DENIED.search(said):
        # Registries say so of what is not there, too.
        raise NotOnServer(str(reference), f"{said} (no such image, or credentials are needed: images.oci_authfile)")
    if _ABSENT.search(said):
        raise NotOnServer(str(reference), said)
    raise DownloadFailed(str(reference), said)


def _last_words(finished: Finished) -> str:
    """Both programs log a line with `msg="…"` for what ended them."""
    said = [json.loads(f'"{text}"', strict=False) for text in _SAID.findall(finished.messages)]
    lines = said or [line.strip() for line in finished.messages.splitlines() if line.strip()]
    return lines[-1] if lines else f"status {finished.returncode}"


def _size_of(directory: Path) -> int:
    """Files come and go meanwhile."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _check_sizes(layout: Path, manifest: Manifest, reference: Reference) -> None:
    """Layers are kept as they come; of Docker's images the configuration is converted, and has another name."""
    for descriptor in (manifest.config, *manifest.layers):
        blob = _blob(layout, descriptor.digest)
        if blob.exists() and blob.stat().st_size != descriptor.size:
            found = blob.stat().st_size
            raise BadImage(
                f'Invalid image "{reference}": {descriptor.digest} has {found} bytes, expected {descriptor.size}'
            )


def _blob(layout: Path, digest: str) -> Path:
    algorithm, _, name = digest.partition(":")
    return layout / "blobs" / algorithm / name


def _read_blob(layout: Path, digest: str) -> bytes:
    """The configuration; skopeo writes it anew where it converts an image of Docker's, so the layout tells which."""
    blob = _blob(layout, digest)
    if not blob.exists():
        index = msgspec.json.decode((layout / "index.json").read_bytes())
        manifest = msgspec.json.decode(_blob(layout, index["manifests"][0]["digest"]).read_bytes())
        blob = _blob(layout, manifest["config"]["digest"])
    return blob.read_bytes()


def _read_bounded(file: Path, reference: Reference) -> bytes:
    with file.open("rb") as stream:
        text = stream.read(METADATA_BYTES + 1)
    if len(text) > METADATA_BYTES:
        raise BadImage(f'Invalid image "{reference}": its configuration has more than {METADATA_BYTES} bytes')
    return text


def _copy_credentials(source: Path, target: Path) -> None:
    """For a program that may not read the original; it goes with the directory that it is in."""
    try:
        text = source.read_bytes()
    except OSError as error:
        raise NotSupported(f"Failed reading images.oci_authfile {source}: {error.strerror}") from error
    target.write_bytes(text)
    target.chmod(0o644)


def _make_mount_points(rootfs: Path) -> None:
    """What a container cannot do without; images made from nothing lack them. A link of that name is left alone."""
    for name in ("dev", "etc", "proc", "sys"):
        if not os.path.lexists(rootfs / name):
            (rootfs / name).mkdir(mode=0o755)


def metadata_archive(metadata: ImageMetadata, application: bytes) -> bytes:
    """A tar.xz with metadata.yaml and config.json; JSON is YAML."""
    files = {"metadata.yaml": msgspec.json.encode(metadata), "config.json": application}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.mode = len(data), metadata.creation_date, 0o644
            archive.addfile(entry, io.BytesIO(data))
    return lzma.compress(buffer.getvalue())
