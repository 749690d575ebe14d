# SPDX-License-Identifier: Apache-2.0
"""The store: import, show, edit, aliases, export, delete. No root: plain tar archives need no program."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from flexd.api.errors import BadRequest, Conflict
from flexd.api.image import (
    ImageAlias,
    ImageAliasesEntryPost,
    ImageAliasesEntryPut,
    ImageAliasesPost,
    ImagePut,
    ImagesPost,
    ImagesPostSource,
)
from flexd.api.times import ZERO_TIME
from flexd.images.aliases import AliasNotFound
from flexd.images.contract import ImageNotFound
from flexd.images.incoming import UploadHeaders
from flexd.images.registry import AmbiguousFingerprint
from flexd.operations.contract import Plan, Step
from tests.contract.images.house import Failed, House, chunks, ended
from tests.unit.images.archives import METADATA, entry, metadata_member, rootfs_members, tar, unified

IMAGE = unified()
FINGERPRINT = hashlib.sha256(IMAGE).hexdigest()


async def test_import_unified(house: House) -> None:
    fingerprint = await house.upload(IMAGE, headers=UploadHeaders(filename="tiny.tar", properties={"release": "2"}))
    assert fingerprint == FINGERPRINT
    image = house.images.show("default", fingerprint[:12])
    assert image.architecture == "x86_64"
    assert image.filename == "tiny.tar"
    assert image.size == len(IMAGE)
    assert image.properties["os"] == "Tiny"
    assert image.properties["release"] == "2"
    assert image.profiles == ["default"]
    assert image.created_at.year == 2023
    assert image.expires_at == ZERO_TIME
    assert image.type == "container"
    assert house.files() == [FINGERPRINT, f"{FINGERPRINT}.json"]


async def test_import_split(house: House) -> None:
    metadata, rootfs = tar([metadata_member()]), tar(rootfs_members(""))
    fingerprint = await house.upload(metadata, rootfs)
    assert fingerprint == hashlib.sha256(metadata + rootfs).hexdigest()
    assert house.files() == [fingerprint, f"{fingerprint}.json", f"{fingerprint}.rootfs"]
    files = await house.images.export_files("default", fingerprint)
    assert files.metadata.read_bytes() == metadata
    assert files.rootfs is not None
    assert files.rootfs.read_bytes() == rootfs
    assert (files.metadata_name, files.rootfs_name) == (f"meta-{fingerprint}.tar", f"{fingerprint}.tar")


async def test_export_gives_back_the_same_file(house: House) -> None:
    fingerprint = await house.upload(IMAGE)
    files = await house.images.export_files("default", fingerprint)
    assert files.metadata.read_bytes() == IMAGE
    assert files.metadata_name == f"{FINGERPRINT}.tar"
    assert files.rootfs is None


async def test_same_image_twice(house: House) -> None:
    await house.upload(IMAGE)
    with pytest.raises(Failed, match="Image with same fingerprint already exists"):
        await house.upload(IMAGE)
    assert house.files() == [FINGERPRINT, f"{FINGERPRINT}.json"]


async def test_metadata_and_templates(house: House) -> None:
    text = METADATA + b"templates:\n  /etc/hostname: {when: [create], template: hostname.tpl}\n"
    fingerprint = await house.upload(unified((entry("templates/hostname.tpl"), b"{{ name }}"), metadata=text))
    assert (await house.images.metadata(fingerprint)).templates["/etc/hostname"].when == ["create"]
    assert await house.images.templates(fingerprint) == {"hostname.tpl": "{{ name }}"}
    (house.directory / f"{fingerprint}.json").unlink()
    await house.images._depot.remove("nothing")
    assert await house.images.templates(fingerprint) == {"hostname.tpl": "{{ name }}"}


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (unified(metadata=None), "metadata.yaml is missing"),
        (unified(metadata=b"{{{"), "Invalid metadata.yaml"),
        (tar([metadata_member()]), "it has no root file system"),
        (unified((entry("rootfs/../../../etc/cron.d/x"), b"x")), "leads out of the image"),
        (IMAGE.rstrip(b"\0"), "truncated"),
        (b"nothing at all", "neither a tar archive"),
        (b"hsqs" + bytes(600), "metadata tar archive beside it"),
        (unified(metadata=METADATA + b"templates: {/x: {template: gone.tpl}}\n"), "templates/gone.tpl"),
    ],
)
async def test_bad_images_leave_nothing(house: House, data: bytes, fault: str) -> None:
    with pytest.raises(Failed, match=fault):
        await house.upload(data)
    assert house.files() == []
    assert house.images.fingerprints("default") == []


async def test_wrong_fingerprint_leaves_nothing(house: House) -> None:
    with pytest.raises(BadRequest, match="fingerprints don't match"):
        await house.upload(IMAGE, headers=UploadHeaders(fingerprint="0" * 64))
    assert house.files() == []


async def test_interrupted_upload_leaves_nothing(house: House) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield IMAGE[:500]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await house.images.create_from_upload("default", broken(), UploadHeaders(), multipart=False)
    assert house.files() == []


async def test_edit(house: House) -> None:
    fingerprint = await house.upload(IMAGE)
    await house.images.update("default", fingerprint, ImagePut(properties={"os": "Other"}, public=True, profiles=["p"]))
    image = house.images.show("default", fingerprint)
    assert (image.properties, image.public, image.profiles) == ({"os": "Other"}, True, ["p"])
    assert len(house.images.show_all("default", public_only=True)) == 1
    await house.images.update("default", fingerprint, ImagePut())
    assert house.images.show_all("default", public_only=True) == []


async def test_touch(house: House) -> None:
    fingerprint = await house.upload(IMAGE)
    await house.images.touch("default", fingerprint)
    assert house.images.show("default", fingerprint).last_used_at > ZERO_TIME


async def test_unknown_and_ambiguous(house: House) -> None:
    with pytest.raises(ImageNotFound, match="Image not found"):
        house.images.show("default", "abc")
    seen: dict[str, str] = {}
    for number in range(40):  # by the 17th at the latest two share their first digit
        fingerprint = await house.upload(unified((entry("rootfs/n"), str(number).encode())))
        if fingerprint[0] in seen:
            break
        seen[fingerprint[0]] = fingerprint
    with pytest.raises(AmbiguousFingerprint, match="more than one image"):
        house.images.show("default", fingerprint[0])
    with pytest.raises(ImageNotFound):
        house.images.show("default", "")


async def test_aliases(house: House) -> None:
    images = house.images
    fingerprint = await house.upload(IMAGE, headers=UploadHeaders(aliases=["first"]))
    with pytest.raises(ImageNotFound):
        await images.create_alias("default", ImageAliasesPost(name="x", target="0" * 64))
    await images.create_alias("default", ImageAliasesPost(description="d", name="debian/12", target=fingerprint))
    with pytest.raises(Conflict, match='Alias "debian/12" already exists'):
        await images.create_alias("default", ImageAliasesPost(name="debian/12", target=fingerprint))
    assert images.show("default", fingerprint).aliases == [ImageAlias("d", "debian/12"), ImageAlias("", "first")]
    assert images.resolve("default", "debian/12").fingerprint == fingerprint
    await images.rename_alias("default", "debian/12", ImageAliasesEntryPost(name="d12"))
    with pytest.raises(Conflict):
        await images.rename_alias("default", "d12", ImageAliasesEntryPost(name="first"))
    await images.update_alias("default", "d12", ImageAliasesEntryPut("new", fingerprint))
    assert images.show_alias("default", "d12").description == "new"
    assert images.alias_names("default") == ["d12", "first"]
    await images.delete_alias("default", "d12")
    with pytest.raises(AliasNotFound, match="Image alias not found"):
        images.show_alias("default", "d12")
    assert [alias.name for alias in images.aliases("default")] == ["first"]


@pytest.mark.parametrize("name", ["", "/a", "a/", " a", "a\nb", "a" * 300])
async def test_bad_alias_names(house: House, name: str) -> None:
    fingerprint = await house.upload(IMAGE)
    with pytest.raises(BadRequest, match="Invalid image alias"):
        await house.images.create_alias("default", ImageAliasesPost(name=name, target=fingerprint))


async def test_taken_alias_refuses_the_upload(house: House) -> None:
    await house.upload(IMAGE, headers=UploadHeaders(aliases=["a"]))
    with pytest.raises(Conflict, match='Alias "a" already exists'):
        await house.upload(unified((entry("rootfs/x"), b"")), headers=UploadHeaders(aliases=["a"]))
    assert house.files() == [FINGERPRINT, f"{FINGERPRINT}.json"]


async def test_delete(house: House) -> None:
    fingerprint = await house.upload(IMAGE, headers=UploadHeaders(aliases=["a"]))
    await ended(await house.images.delete("default", fingerprint[:10]))
    assert house.files() == []
    assert house.images.fingerprints("default") == []
    assert house.images.aliases("default") == []
    assert house.unlinked == [fingerprint]
    with pytest.raises(ImageNotFound):
        await house.images.delete("default", fingerprint)


async def test_two_projects_share_the_files(house: House) -> None:
    await house.upload(IMAGE)
    await ended(await house.images.create_from_upload("other", chunks(IMAGE), UploadHeaders(), multipart=False))
    await ended(await house.images.delete("default", FINGERPRINT))
    assert house.unlinked == []
    assert FINGERPRINT in house.files()
    await ended(await house.images.delete("other", FINGERPRINT))
    assert house.unlinked == [FINGERPRINT]
    assert house.files() == []


async def test_lifecycle_events(house: House) -> None:
    seen: list[dict[str, Any]] = []
    with house.events.subscribe(["lifecycle"]) as stream:
        fingerprint = await house.upload(IMAGE)
        await house.images.create_alias("default", ImageAliasesPost(name="a/b", target=fingerprint))
        await house.images.update("default", fingerprint, ImagePut())
        await house.images.delete_alias("default", "a/b")
        await ended(await house.images.delete("default", fingerprint))
        house.events.close()
        seen = [event.metadata async for event in stream]
    assert [event["action"] for event in seen] == [
        "image-created",
        "image-alias-created",
        "image-updated",
        "image-alias-deleted",
        "image-deleted",
    ]
    assert seen[0]["source"] == f"/1.0/images/{fingerprint}"
    assert seen[1]["source"] == "/1.0/images/aliases/a%2Fb"


@pytest.mark.parametrize("step", [0, 1])
async def test_failure_in_the_plan_leaves_nothing(house: House, step: int) -> None:
    async def inject(_plan: Plan, position: int, _step: Step) -> None:
        if position == step:
            raise BadRequest("injected")

    house.journal.before_step = inject
    with pytest.raises(Failed, match="injected"):
        await house.upload(IMAGE, headers=UploadHeaders(aliases=["a"]))
    assert house.files() == []
    assert house.images.fingerprints("default") == []
    assert house.images.aliases("default") == []


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs."""


@pytest.mark.parametrize("step", [0, 1])
async def test_crash_in_the_plan_is_finished(house: House, step: int) -> None:
    """All of the image is there when the plan begins, so the next start finishes it."""
    incoming = await house.images._depot.incoming()
    await incoming.write_metadata(chunks(IMAGE))
    known = await house.images._intake.check(incoming)
    await house.images._depot.write_known(incoming, known)
    plans: list[Plan] = []

    async def note(plan: Plan, _position: int, _step: Step) -> None:
        plans.append(plan)
        raise BadRequest("only to see the plan")

    house.journal.before_step = note
    with pytest.raises(Failed):
        await house.upload(IMAGE)
    house.journal.before_step = None
    plan = plans[0]
    steps = (Step("images.place", {"incoming": str(incoming.directory), "fingerprint": FINGERPRINT}), plan.steps[1])
    if step:
        await house.images._intake._place(steps[0].args, lambda _metadata: None)
    await house.journal.run(Plan("repeated after a crash", steps, "finish"))
    await house.images.prepare()
    assert house.files() == [FINGERPRINT, f"{FINGERPRINT}.json"]
    assert house.images.show("default", FINGERPRINT).size == len(IMAGE)


async def test_what_came_in_before_a_crash_is_swept(house: House) -> None:
    incoming = await house.images._depot.incoming()
    await incoming.write_metadata(chunks(IMAGE))
    assert house.files() != []
    await house.images.prepare()
    assert house.files() == []


async def test_many_at_once(house: House) -> None:
    made = [unified((entry("rootfs/n"), str(number).encode())) for number in range(8)]
    fingerprints = await asyncio.gather(*(house.upload(data) for data in made))
    assert sorted(fingerprints) == sorted(house.images.fingerprints("default"))


async def test_same_at_once_makes_one(house: House) -> None:
    results = await asyncio.gather(*(house.upload(IMAGE) for _ in range(5)), return_exceptions=True)
    assert sum(result == FINGERPRINT for result in results) == 1
    assert house.files() == [FINGERPRINT, f"{FINGERPRINT}.json"]


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        (None, "a source is required"),
        (ImagesPostSource(type="instance", name="c1"), 'type "instance"'),
        (ImagesPostSource(type="strange"), 'type "strange"'),
        (ImagesPostSource(type="url", url="file:///etc/passwd"), "expected http"),
        (ImagesPostSource(type="url"), "expected http"),
        (ImagesPostSource(type="image", fingerprint="a"), "a server is required"),
        (ImagesPostSource(type="image", server="https://x", protocol="gopher", alias="a"), 'protocol "gopher"'),
        (ImagesPostSource(type="image", server="https://x", mode="push", alias="a"), "mode push needs the fingerprint"),
        (ImagesPostSource(type="image", server="https://x", mode="carry", alias="a"), 'mode "carry"'),
        (ImagesPostSource(type="image", server="https://x"), "Must specify one of alias or fingerprint"),
    ],
)
async def test_bad_sources(house: House, source: ImagesPostSource | None, fault: str) -> None:
    with pytest.raises(BadRequest, match=fault):
        await house.images.create_from_source("default", ImagesPost(source=source))
