# SPDX-License-Identifier: Apache-2.0
"""Small OCI images, written from their pieces into the directory of registry_server.py."""

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
_GO_NAMES = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386"}


def architecture() -> str:
    """This machine's, in the words of OCI."""
    machine = os.uname().machine
    return _GO_NAMES.get(machine, machine)


def member(
    name: str,
    data: bytes | None = None,
    *,
    mode: int = 0o644,
    owner: tuple[int, int] = (0, 0),
    kind: bytes = b"",
    link: str = "",
) -> tuple[tarfile.TarInfo, bytes]:
    """One entry of a layer: a file if it has data, a link, a device by its `kind`, else a directory."""
    info = tarfile.TarInfo(name)
    info.mtime, info.mode, (info.uid, info.gid) = 1700000000, mode, owner
    if kind:
        info.type, info.linkname, info.devmajor, info.devminor = kind, link, 1, 3
    elif data is None:
        info.type, info.mode = tarfile.DIRTYPE, mode if mode != 0o644 else 0o755
    info.size = len(data or b"")
    return info, data or b""


def layer(members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def busybox_layer() -> bytes:
    """A static busybox and its applets; skips where there is none."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("needs busybox (package busybox-static)")
    applets = subprocess.run([busybox, "--list"], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    members = [member(name) for name in ("bin", "etc", "srv")]
    members.append(member("bin/busybox", Path(busybox).read_bytes(), mode=0o755))
    members += [
        member(f"bin/{applet}", kind=tarfile.SYMTYPE, link="busybox") for applet in applets if applet != "busybox"
    ]
    members.append(member("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/sh\n"))
    members.append(member("etc/group", b"root:x:0:\nweb:x:34:\nlogs:x:44:web\n"))
    return layer(members)


class Repository:
    """One name of a registry: `put` writes an image under a tag."""

    def __init__(self, registry: Path, name: str) -> None:
        self.directory = registry / name
        for kind in ("manifests", "blobs"):
            (self.directory / kind).mkdir(parents=True, exist_ok=True)

    def fault(self, text: str) -> None:
        (self.directory / "fault").write_text(text)

    def blob(self, data: bytes) -> dict[str, Any]:
        """Store it; returns its descriptor."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        (self.directory / "blobs" / digest).write_bytes(data)
        return {"digest": digest, "size": len(data)}

    def manifest(self, document: Mapping[str, Any], *tags: str) -> dict[str, Any]:
        data = json.dumps(document).encode()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        for name in (digest, *tags):
            (self.directory / "manifests" / name).write_bytes(data)
        return {"mediaType": document.get("mediaType", MANIFEST), "digest": digest, "size": len(data)}

    def put(
        self, layers: Iterable[bytes], config: Mapping[str, Any], tag: str = "latest", *, machine: str = ""
    ) -> dict[str, Any]:
        """An image of these (uncompressed) layers; returns its manifest's descriptor."""
        plain = list(layers)
        document = {
            "created": "2026-01-02T03:04:05Z",
            "architecture": machine or architecture(),
            "os": "linux",
            "config": dict(config),
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(each).hexdigest()}" for each in plain]},
            "history": [],
        }
        described = self.blob(json.dumps(document).encode())
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **described},
            "layers": [
                {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", **self.blob(gzip.compress(each, mtime=0))}
                for each in plain
            ],
        }
        return self.manifest(manifest, tag)

    def change(self, tag: str, changed: Mapping[str, Any]) -> None:
        """Another manifest under a tag, with these fields in place of its own."""
        document = json.loads((self.directory / "manifests" / tag).read_bytes())
        self.manifest(document | dict(changed), tag)

    def read(self, tag: str = "latest") -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.directory / "manifests" / tag).read_bytes())
        return document
