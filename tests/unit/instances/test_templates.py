# SPDX-License-Identifier: Apache-2.0
"""What an instance keeps of its image, templates written at a start, and cloud-init's instance id."""

import asyncio
import io
import lzma
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flexd.api.errors import BadRequest, FlexdError, NotFound
from flexd.api.image import ImageMetadata, ImageMetadataTemplate
from flexd.api.instance import InstancePost, InstancePut, InstanceSource, InstancesPost
from flexd.api.instance_snapshot import InstanceSnapshotsPost
from flexd.api.profile import ProfilePut
from flexd.images.formats import parse_metadata
from flexd.images.recipes import metadata_archive, plan_build
from flexd.instances.firstboot import APPLY_TEMPLATE, INSTANCE_ID, cloud_init_id, made, renamed
from flexd.server.decode import narrow
from tests.unit.instances.house import NIC, PROJECT, ROOT, House, house, restart


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as made:
        yield made


def _template(*when: str, template: str = "t.tpl", create_only: bool = False, **properties: str):
    return ImageMetadataTemplate(
        when=list(when), template=template, create_only=create_only, properties=dict(properties)
    )


async def _give(home: House, text: str = "{{ instance.name }}", name: str = "c1", **templates) -> None:
    """An instance with templates; `_` in a keyword stands for the slashes of its path."""
    paths = {"/" + path.replace("_", "/"): template for path, template in templates.items()}
    metadata = ImageMetadata(architecture="x86_64", creation_date=1700000000, templates=paths)
    await home.daemon.metadata.update(PROJECT, name, metadata)
    await home.daemon.metadata.write_template(PROJECT, name, "t.tpl", text.encode())


async def _text(home: House, path: str, name: str = "c1") -> str:
    async with home.daemon.files.open(PROJECT, name) as files:
        fd = await files.open(path, 0)
        with open(fd, encoding="utf-8") as file:
            return file.read()


def _config(home: House, name: str = "c1") -> dict[str, str]:
    return home.daemon.instances.show(PROJECT, name).config


async def _cycle(home: House, name: str = "c1") -> None:
    await home.act("start", name)
    await home.act("stop", name, force=True)


# --- metadata and templates as resources ---


async def test_an_instance_made_from_nothing_has_none(home: House):
    await home.create()
    with pytest.raises(NotFound, match='Instance "c1" has no metadata'):
        home.daemon.metadata.show(PROJECT, "c1")
    with pytest.raises(NotFound):
        home.daemon.metadata.templates(PROJECT, "c1")


async def test_metadata_and_templates_are_edited(home: House):
    await home.create()
    await _give(home, etc_name=_template("create"))
    assert home.daemon.metadata.show(PROJECT, "c1").templates["/etc/name"].when == ["create"]
    assert home.daemon.metadata.templates(PROJECT, "c1") == ["t.tpl"]
    assert home.daemon.metadata.template(PROJECT, "c1", "t.tpl") == "{{ instance.name }}"
    await home.daemon.metadata.delete_template(PROJECT, "c1", "t.tpl")
    assert home.daemon.metadata.templates(PROJECT, "c1") == []
    with pytest.raises(NotFound, match="not found"):
        await home.daemon.metadata.delete_template(PROJECT, "c1", "t.tpl")


@pytest.mark.parametrize("name", ["", "a/b", "..", "."])
async def test_names_of_templates(home: House, name: str):
    await home.create()
    with pytest.raises(BadRequest, match="Invalid template filename"):
        await home.daemon.metadata.write_template(PROJECT, "c1", name, b"")


@pytest.mark.parametrize(
    ("path", "fault"), [("etc/name", "absolute path"), ("/../etc/name", "absolute path"), ("/etc/x", "not a file name")]
)
async def test_bad_metadata(home: House, path: str, fault: str):
    await home.create()
    template = _template("create", template="../x" if path == "/etc/x" else "t.tpl")
    metadata = ImageMetadata(architecture="x86_64", creation_date=1, templates={path: template})
    with pytest.raises(BadRequest, match=fault):
        await home.daemon.metadata.update(PROJECT, "c1", metadata)


async def test_it_goes_along_with_snapshots_copies_and_renames(home: House):
    await home.create()
    await _give(home, etc_name=_template("copy"))
    await home.done(await home.daemon.snapshots.create(PROJECT, "c1", InstanceSnapshotsPost(name="s0")))
    await home.daemon.metadata.delete_template(PROJECT, "c1", "t.tpl")
    await home.done(
        await home.daemon.instances.create(
            PROJECT, InstancesPost(name="c2", source=InstanceSource(type="copy", source="c1/s0"))
        )
    )
    assert home.daemon.metadata.templates(PROJECT, "c2") == ["t.tpl"]
    await home.done(await home.daemon.instances.rename(PROJECT, "c2", InstancePost(name="c3")))
    assert home.daemon.metadata.templates(PROJECT, "c3") == ["t.tpl"]
    await home.done(await home.daemon.instances.update(PROJECT, "c1", InstancePut(restore="s0")))
    assert home.daemon.metadata.templates(PROJECT, "c1") == ["t.tpl"]


async def test_what_nobody_has_is_swept_at_the_start(home: House, tmp_path: Path):
    await home.create()
    await _give(home, etc_name=_template("create"))
    documents = home.daemon.metadata_documents._documents
    assert len(documents.list()) == 2  # one of each edit
    await restart(home, tmp_path)
    assert len(home.daemon.metadata_documents._documents.list()) == 1
    assert home.daemon.metadata.templates(PROJECT, "c1") == ["t.tpl"]


# --- writing them ---


async def test_a_template_is_written_when_it_is_due(home: House):
    await home.create(config={"user.colour": "red"})
    await _give(
        home,
        '{{ trigger }} {{ path }} {{ config_get("user.colour", "blue") }} {{ properties.a }}',
        etc_new_name=_template("create", a="x"),
        var_each=_template("start"),
    )
    await _cycle(home)
    assert await _text(home, "/etc/new/name") == "create /etc/new/name red x"
    assert await _text(home, "/var/each") == "start /var/each red "
    assert APPLY_TEMPLATE not in _config(home)
    async with home.daemon.files.open(PROJECT, "c1") as files:
        assert (await files.stat("/etc/new/name")).mode == 0o644
        assert (await files.stat("/etc/new")).mode == 0o755


async def _give_text(home: House, text: str) -> None:
    await home.daemon.metadata.write_template(PROJECT, "c1", "t.tpl", text.encode())


async def test_create_once_and_only_new_files(home: House):
    await home.create()
    await _give(home, "first", etc_once=_template("start", create_only=True), etc_created=_template("create"))
    await _cycle(home)
    await _give_text(home, "second, longer")
    await _cycle(home)
    assert await _text(home, "/etc/once") == "first"
    assert await _text(home, "/etc/created") == "first"


async def test_renames_and_copies_have_their_triggers(home: House):
    await home.create()
    await _give(home, text="{{ trigger }} {{ instance.name }}", etc_name=_template("create", "copy", "rename"))
    assert _config(home)[APPLY_TEMPLATE] == "create"
    await _cycle(home)
    assert await _text(home, "/etc/name") == "create c1"
    await home.done(await home.daemon.instances.rename(PROJECT, "c1", InstancePost(name="c2")))
    await _cycle(home, "c2")
    assert await _text(home, "/etc/name", "c2") == "rename c2"
    source = InstanceSource(type="copy", source="c2")
    await home.done(await home.daemon.instances.create(PROJECT, InstancesPost(name="c3", source=source)))
    await _cycle(home, "c3")
    assert await _text(home, "/etc/name", "c3") == "copy c3"


async def test_a_path_never_leaves_the_root(home: House, tmp_path: Path):
    await home.create()
    await _give(home, "mine", escape_x=_template("start"))
    outside = tmp_path / "outside"
    outside.mkdir()
    async with home.daemon.files.open(PROJECT, "c1") as files:
        await files.make_symlink("/escape", str(outside), uid=0, gid=0)
    with pytest.raises(FlexdError):
        await home.act("start")
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("text", ["{{ broken", "{% include 'x' %}"])
async def test_a_template_that_fails_keeps_the_instance_stopped(home: House, text: str):
    await home.create()
    before = home.host_state()
    await _give(home, text, etc_name=_template("create"))
    with pytest.raises(FlexdError, match='templates of instance "c1": Failed rendering template'):
        await home.act("start")
    assert home.status() == "Stopped"
    assert home.host_state() == before
    assert _config(home)[APPLY_TEMPLATE] == "create"
    await _give_text(home, "well")
    await _cycle(home)
    assert await _text(home, "/etc/name") == "well"


async def test_a_missing_template(home: House):
    await home.create()
    await _give(home, etc_name=_template("create", template="other.tpl"))
    with pytest.raises(FlexdError, match='for "/etc/name" is missing'):
        await home.act("start")


# --- cloud-init ---


def test_triggers():
    config = made("create")
    assert config[APPLY_TEMPLATE] == "create"
    again = renamed(config)
    assert (again[APPLY_TEMPLATE], again[INSTANCE_ID] == config[INSTANCE_ID]) == ("create", False)
    assert renamed({})[APPLY_TEMPLATE] == "rename"
    assert cloud_init_id("c1", {}) == "c1"
    assert cloud_init_id("c1", config) == config[INSTANCE_ID]


async def _change(home: House, config: dict[str, str] | None = None, devices: dict | None = None) -> bool:
    """Edit; returns whether cloud-init is to look again."""
    before = _config(home)[INSTANCE_ID]
    put = narrow(home.daemon.instances.show(PROJECT, "c1"), InstancePut)
    put.config = {**put.config, **(config or {})}
    put.devices = {**put.devices, **(devices or {})}
    await home.done(await home.daemon.instances.update(PROJECT, "c1", put))
    return _config(home)[INSTANCE_ID] != before


async def test_the_instance_id_changes_when_it_must(home: House):
    await home.create()
    assert await _change(home, {"cloud-init.user-data": "#cloud-config\n"})
    assert await _change(home, {"user.network-config": "version: 1\n"})
    assert not await _change(home, {"user.network-config": "version: 1\n", "user.other": "1"})
    assert not await _change(home, {"limits.cpu": "1"})
    assert await _change(home, devices={"eth1": {**NIC, "name": "eth1"}})
    assert not await _change(home, devices={"eth1": {**NIC, "name": "eth1", "mtu": "1400"}})
    assert await _change(home, devices={"eth1": {**NIC, "name": "eth2"}})


async def test_a_profile_changes_it_too(home: House):
    await home.create()
    before = _config(home)[INSTANCE_ID]
    devices = {"root": ROOT, "eth0": NIC}
    await home.daemon.profiles.update(PROJECT, "default", ProfilePut(config={"user.x": "1"}, devices=devices))
    assert _config(home)[INSTANCE_ID] == before
    config = {"cloud-init.vendor-data": "#cloud-config\n"}
    await home.daemon.profiles.update(PROJECT, "default", ProfilePut(config=config, devices=devices))
    assert _config(home)[INSTANCE_ID] != before


async def test_a_client_that_sends_no_volatile_keys_changes_nothing(home: House):
    await home.create()
    before = _config(home)[INSTANCE_ID]
    put = narrow(home.daemon.instances.show(PROJECT, "c1"), InstancePut)
    put.config = {"user.x": "1"}
    await home.done(await home.daemon.instances.update(PROJECT, "c1", put))
    assert _config(home)[INSTANCE_ID] == before


# --- the templates of images that are built here ---


async def _like_a_built_image(home: House, name: str) -> None:
    """An instance with the metadata of a cloud image, as `image build` writes it."""
    recipe = await asyncio.to_thread(plan_build, "debian/12/cloud", "x86_64", {})
    archive = metadata_archive(recipe, 1700000000)
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(archive))) as opened:
        files = {member.name: opened.extractfile(member).read() for member in opened}
    await home.daemon.metadata.update(PROJECT, name, parse_metadata(files.pop("metadata.yaml"), '"x"'))
    for path, text in files.items():
        await home.daemon.metadata.write_template(PROJECT, name, path.removeprefix("templates/"), text)


async def test_built_images_name_their_instances(home: House):
    await home.create()
    await _like_a_built_image(home, "c1")
    await _cycle(home)
    assert await _text(home, "/etc/hostname") == "c1\n"
    assert "127.0.1.1 c1\n" in await _text(home, "/etc/hosts")
    post = InstancesPost(name="c2", source=InstanceSource(type="copy", source="c1"))
    await home.done(await home.daemon.instances.create(PROJECT, post))
    await home.done(await home.daemon.instances.rename(PROJECT, "c1", InstancePost(name="c3")))
    for name in ("c2", "c3"):
        await _cycle(home, name)
        assert await _text(home, "/etc/hostname", name) == f"{name}\n"
        assert f"127.0.1.1 {name}\n" in await _text(home, "/etc/hosts", name)


async def test_an_edit_reaches_the_seed_of_cloud_init(home: House):
    await home.create()
    await _like_a_built_image(home, "c1")
    seed = "/var/lib/cloud/seed/nocloud-net"
    await _cycle(home)
    first = _config(home)[INSTANCE_ID]
    assert (await _text(home, f"{seed}/meta-data")).startswith(f"instance-id: {first}\nlocal-hostname: c1\n")
    assert await _change(home, {"cloud-init.user-data": "#cloud-config\nfinal: true"})
    await _cycle(home)
    second = _config(home)[INSTANCE_ID]
    assert (await _text(home, f"{seed}/meta-data")).startswith(f"instance-id: {second}\n")
    assert await _text(home, f"{seed}/user-data") == "#cloud-config\nfinal: true\n"
