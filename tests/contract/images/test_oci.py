# SPDX-License-Identifier: Apache-2.0
"""Images of OCI registries, through skopeo and umoci: what is fetched, unpacked, refused and cleaned up."""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
import tarfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from flexd.api.errors import BadRequest, FlexdError, NotFound
from flexd.api.image import ImagesPost, ImagesPostSource
from flexd.images.applications import Application
from flexd.images.transfer import Patience
from flexd.operations.journal import ignore_progress
from tests.contract.images.conftest import needs_root, opened
from tests.contract.images.house import Failed, House, ended
from tests.contract.images.oci_layers import INDEX, Repository, architecture, layer, member
from tests.contract.images.registry_server import Server

_MISSING = [name for name in ("skopeo", "umoci", "tini-static", "mksquashfs") if shutil.which(name) is None]
pytestmark = [
    needs_root,
    pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)}"),
]

MACHINE = os.uname().machine
SHOP = {"Entrypoint": ["/bin/shop", "--open"], "Cmd": ["a b"]}
BASE = layer([member("bin"), member("bin/shop", b"program", mode=0o755), member("etc")])


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Server]:
    directory = tmp_path / "registry"
    directory.mkdir()
    with Server(directory) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with opened(tmp_path, Patience(connect_s=20, silence_s=2)) as made:
        yield made
        assert not [path.name for path in made.directory.iterdir() if path.name.startswith(".incoming")]


@pytest.fixture
def shop(tmp_path: Path, registry: Server) -> Repository:
    made = Repository(tmp_path / "registry", "shop")
    made.put([BASE], SHOP)
    return made


def source(registry: Server, alias: str = "shop", server: str = "") -> ImagesPostSource:
    url = server or f"http://127.0.0.1:{registry.server_port}"
    return ImagesPostSource(type="image", mode="pull", server=url, protocol="oci", alias=alias)


async def fetch(house: House, registry: Server, alias: str = "shop", server: str = "") -> str:
    prepared = await house.images.remote(source(registry, alias, server), MACHINE)
    return (await house.images.cache("default", prepared, ignore_progress)).fingerprint


async def unpacked(house: House, fingerprint: str, target: Path) -> Path:
    target.mkdir()
    await house.images.unpack(fingerprint, target, ignore_progress)
    return target


async def test_an_image(house: House, registry: Server, shop: Repository, tmp_path: Path) -> None:
    fingerprint = await fetch(house, registry)
    assert fingerprint == hashlib.sha256((shop.directory / "manifests" / "latest").read_bytes()).hexdigest()
    image = house.images.show("default", fingerprint)
    assert image.properties == {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(MACHINE, MACHINE),
        "type": "oci",
        "description": f"127.0.0.1:{registry.server_port}/shop (OCI)",
        "id": "shop",
    }
    assert (image.cached, image.auto_update, image.architecture) == (True, True, MACHINE)
    assert image.created_at.isoformat() == "2026-01-02T03:04:05+00:00"
    root = await unpacked(house, fingerprint, tmp_path / "root")
    assert (root / "bin/shop").read_bytes() == b"program"
    # A program of its own is in no image of nothing: what a container needs for mounts is made.
    assert sorted(path.name for path in root.iterdir()) == ["bin", "dev", "etc", "proc", "sys"]


async def test_what_it_is_for(house: House, registry: Server, shop: Repository) -> None:
    files = layer(
        [
            member("etc/passwd", b"root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n"),
            member("etc/group", b"web:x:34:\nlogs:x:44:web\n"),
        ]
    )
    said = {"User": "web", "WorkingDir": "/srv", "Env": ["A=b c", "PATH=/bin"], "StopSignal": "QUIT"}
    shop.put([BASE, files], SHOP | said)
    application = await house.images.application(await fetch(house, registry))
    assert application is not None
    assert application == Application(
        command=["/bin/shop", "--open", "a b"],
        cwd="/srv",
        uid=33,
        gid=34,
        groups=[44],
        environment=application.environment,
        stop_signal="SIGQUIT",
    )
    assert application.environment.items() >= {"A": "b c", "PATH": "/bin", "HOME": "/srv"}.items()


async def test_owners_whiteouts_and_devices(house: House, registry: Server, shop: Repository, tmp_path: Path) -> None:
    lower = layer([member("srv"), member("srv/old", b"old"), member("etc/gone", b"gone"), member("etc/also", b"")])
    upper = layer(
        [
            member("srv/.wh.old", b""),
            member("etc/.wh..wh..opq", b""),
            member("etc/new", b"new", mode=0o4750, owner=(33, 34)),
            member("srv/null", kind=tarfile.CHRTYPE),
            member("srv/twin", kind=tarfile.LNKTYPE, link="bin/shop"),
        ]
    )
    shop.put([BASE, lower, upper], SHOP)
    root = await unpacked(house, await fetch(house, registry), tmp_path / "root")
    assert sorted(path.name for path in (root / "etc").iterdir()) == ["new"]
    assert sorted(path.name for path in (root / "srv").iterdir()) == ["twin"]
    found = (root / "etc/new").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (33, 34, 0o4750)
    assert (root / "srv/twin").stat().st_ino == (root / "bin/shop").stat().st_ino


async def test_architectures(house: House, registry: Server, shop: Repository) -> None:
    mine, other = shop.put([BASE], SHOP, "mine"), shop.put([BASE], SHOP, "other", machine="s390x")
    entries = [
        other | {"platform": {"os": "linux", "architecture": "s390x"}},
        mine | {"platform": {"os": "linux", "architecture": architecture()}},
        other | {"platform": {"os": "unknown", "architecture": "unknown"}},
    ]
    shop.manifest({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}, "latest")
    assert f"sha256:{await fetch(house, registry)}" == mine["digest"]
    with pytest.raises(NotFound, match=r"shop@sha256:.* not found \(it is for linux/s390x\)"):
        await fetch(house, registry, "shop:other")
    shop.manifest({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries[:1]}, "latest")
    with pytest.raises(NotFound, match=rf"for {MACHINE} not found \(it is there for s390x\)"):
        await fetch(house, registry, "shop:latest")


async def test_newer_versions(house: House, registry: Server, shop: Repository) -> None:
    post = ImagesPost(source=source(registry), auto_update=True)
    first = (await ended(await house.images.create_from_source("default", post)))["fingerprint"]
    assert await house.images.replace_by_newer("default", first, ignore_progress) is None
    shop.put([BASE, layer([member("etc/newer", b"")])], SHOP)
    newer = await house.images.replace_by_newer("default", first, ignore_progress)
    assert newer is not None
    assert newer.fingerprint != first
    assert house.images.fingerprints("default") == [newer.fingerprint]
    shop.put([BASE], SHOP, "fixed")
    digest = shop.put([BASE], SHOP, "fixed")["digest"]
    fixed = house.images.show("default", await fetch(house, registry, f"shop@{digest}"))
    assert (fixed.fingerprint, fixed.auto_update) == (digest.removeprefix("sha256:"), False)


async def test_a_registry_that_is_away(house: House, registry: Server, shop: Repository) -> None:
    house.settings["images.auto_update_cached"] = "false"
    fingerprint = await fetch(house, registry)
    registry.socket.close()
    assert await fetch(house, registry) == fingerprint
    with pytest.raises(FlexdError, match="connection refused"):
        await fetch(house, registry, "other")


@pytest.mark.parametrize("alias", ["none", "shop:none", "shop@sha256:" + "0" * 64])
async def test_images_that_are_not_there(house: House, registry: Server, shop: Repository, alias: str) -> None:
    with pytest.raises(NotFound, match="manifest unknown"):
        await fetch(house, registry, alias)


@pytest.mark.parametrize("alias", ["Upper", "../x", "a b", "-x", "a//b", "shop@sha256:12", "shop:-", "x\ny", "/x"])
async def test_names_that_are_none(house: House, registry: Server, alias: str) -> None:
    with pytest.raises(BadRequest, match="Invalid image name"):
        await fetch(house, registry, alias)


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        ("http://192.0.2.1", "need https"),
        ("https://user@localhost", "expected https"),
        ("https://localhost/../x", "expected https"),
        ("https://localhost?x=1", "expected https"),
        ("ftp://localhost", "expected http"),
        ("https://", "expected http"),
    ],
)
async def test_servers_that_are_none(house: House, registry: Server, server: str, reason: str) -> None:
    with pytest.raises(BadRequest, match=reason):
        await fetch(house, registry, "shop", server)


async def test_an_alias_is_needed(house: House, registry: Server) -> None:
    wanted = ImagesPostSource(type="image", server="https://docker.io", protocol="oci", fingerprint="0" * 64)
    with pytest.raises(BadRequest, match="named by its alias"):
        await house.images.remote(wanted, MACHINE)


async def test_bad_digest(house: House, registry: Server, shop: Repository) -> None:
    expected = shop.read()["layers"][0]["digest"]
    other = b"something else" * 100
    (shop.directory / "blobs" / expected).write_bytes(other)
    found = hashlib.sha256(other).hexdigest()
    with pytest.raises(FlexdError, match=rf"{expected}.*{found}"):
        await fetch(house, registry)
    assert house.images.fingerprints("default") == []


async def test_wrong_size(house: House, registry: Server, shop: Repository) -> None:
    first = shop.read()["layers"][0]
    shop.change("latest", {"layers": [first | {"size": first["size"] - 10}]})
    reason = rf"{first['digest']} has {first['size']} bytes, expected {first['size'] - 10}"
    with pytest.raises(BadRequest, match=reason):
        await fetch(house, registry)
    assert house.images.fingerprints("default") == []


async def test_another_manifest_than_asked_for(house: House, registry: Server, shop: Repository) -> None:
    digest = shop.put([BASE], SHOP, "other")["digest"]
    (shop.directory / "manifests" / digest).write_bytes((shop.directory / "manifests" / "latest").read_bytes() + b" ")
    with pytest.raises(BadRequest, match=rf"its manifest's digest is sha256:[0-9a-f]+, expected {digest}"):
        await fetch(house, registry, f"shop@{digest}")


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ({"schemaVersion": 1, "mediaType": "x"}, "schema 1 are not supported"),
        ({"schemaVersion": 2, "mediaType": "x"}, "missing required field"),
        ({"schemaVersion": 2, "mediaType": INDEX, "manifests": 7}, "Expected `array`"),
        (
            {"schemaVersion": 2, "mediaType": "x", "config": {"digest": "../x", "size": 1}, "layers": []},
            "strange entry",
        ),
    ],
)
async def test_strange_manifests(
    house: House, registry: Server, shop: Repository, manifest: dict[str, Any], reason: str
) -> None:
    shop.manifest(manifest, "latest")
    with pytest.raises(BadRequest, match=reason):
        await fetch(house, registry)


async def test_no_layer_but_rubbish(house: House, registry: Server, shop: Repository) -> None:
    shop.put([b"no tar archive at all" * 100], SHOP)
    with pytest.raises(BadRequest, match="its layers cannot be unpacked"):
        await fetch(house, registry)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("truncate", "EOF|unexpected"),
        ("stall", r"the registry fell silent for 2 s \([0-9]+ of [0-9]+ bytes came\)"),
        ("flood", r"more than the [0-9]+ bytes come that its manifest names"),
    ],
)
async def test_registries_that_fail(house: House, registry: Server, shop: Repository, fault: str, reason: str) -> None:
    large = layer([member("srv"), member("srv/large", os.urandom(200_000))])
    shop.put([BASE, large], SHOP)
    shop.fault(fault)
    with pytest.raises(FlexdError, match=reason):
        await fetch(house, registry)
    assert house.images.fingerprints("default") == []


async def test_cancel_leaves_nothing(house: House, registry: Server, shop: Repository) -> None:
    shop.fault("stall")
    operation = await house.images.create_from_source("default", ImagesPost(source=source(registry)))
    while "layers" not in operation.metadata.get("download_progress", ""):
        await asyncio.sleep(0.01)
    await operation.cancel()
    with pytest.raises(Failed):
        await ended(operation)


async def test_layers_that_try_to_leave(house: House, registry: Server, shop: Repository, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    upwards = "../" * 20 + os.fspath(outside).lstrip("/")
    for number, members in enumerate(
        (
            [member(f"{upwards}/x", b"escaped")],
            [member("out", kind=tarfile.SYMTYPE, link=os.fspath(outside)), member("out/x", b"escaped")],
            [member("out", kind=tarfile.SYMTYPE, link=upwards), member("out/x", b"escaped")],
            [member("shadow", kind=tarfile.LNKTYPE, link="../" * 20 + "etc/shadow")],
            [member("proc", kind=tarfile.SYMTYPE, link=os.fspath(outside)), member("proc/x", b"escaped")],
            [member(f".wh.{upwards}", b"")],
        )
    ):
        shop.put([BASE, layer(members)], SHOP, f"v{number}")
        fingerprint = ""
        with contextlib.suppress(BadRequest):  # refused, or what was meant for elsewhere lies in the image
            fingerprint = await fetch(house, registry, f"shop:v{number}")
        if fingerprint:
            root = await unpacked(house, fingerprint, tmp_path / f"root{number}")
            assert not (root / "shadow").exists() or not os.path.samefile(root / "shadow", "/etc/shadow")
        assert list(outside.iterdir()) == []


async def test_credentials(house: House, registry: Server, shop: Repository, tmp_path: Path) -> None:
    (tmp_path / "registry" / "login").write_text("me:secret")
    with pytest.raises(NotFound, match=r"credentials are needed: images\.oci_authfile"):
        await fetch(house, registry)
    authfile = tmp_path / "auth.json"
    authfile.write_text(json.dumps({"auths": {f"127.0.0.1:{registry.server_port}": {"auth": "bWU6c2VjcmV0"}}}))
    authfile.chmod(0o600)
    house.settings["images.oci_authfile"] = os.fspath(authfile)
    assert re.fullmatch(r"[0-9a-f]{64}", await fetch(house, registry))
    house.settings["images.oci_authfile"] = os.fspath(tmp_path / "none")
    with pytest.raises(FlexdError, match=r"images\.oci_authfile .*none"):
        await fetch(house, registry, "shop:other")
