# SPDX-License-Identifier: Apache-2.0
"""Instances of OCI images: what is started, what is given from outside, and how their end is kept."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flexd.api.errors import BadRequest
from flexd.images.applications import (
    Application,
    application_config,
    application_of,
    parse_application,
    render_application,
)
from flexd.images.contract import BadImage
from flexd.instances.name_files import render_hosts, render_resolver
from flexd.runtime.contract import ApplicationSpec
from flexd.runtime.paths import ContainerPaths
from flexd.runtime.render import HostFacts, init_argv, render
from tests.unit.instances.house import PROJECT, House, house

SHOP = Application(
    command=["/bin/shop", "--name", "a  b"],
    cwd="/srv",
    uid=33,
    gid=34,
    groups=[44],
    environment={"A": "1", "B": "x=y"},
    stop_signal="SIGQUIT",
)


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as made:
        yield made


# --- the document ---


def test_a_round_trip() -> None:
    assert parse_application(render_application(SHOP), "x") == SHOP
    assert application_of(application_config(SHOP)) == SHOP
    assert application_config(SHOP)["oci.entrypoint"] == "/bin/shop --name 'a  b'"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"{", "truncated"),
        (b"[]", "Expected `object`"),
        (b"{}", "process"),
        (b'{"process": {"args": ["x"], "cwd": "here"}}', '"here" is not absolute'),
        (b'{"process": {"args": ["x"], "user": {"uid": -1}}}', "none: -1"),
        (b'{"process": {"args": ["x"], "env": ["A"]}}', "no variable"),
        (b'{"process": {"args": ["x"], "env": ["A=1\\n2"]}}', "several lines"),
        (
            b'{"process": {"args": ["x"]}, "annotations": {"org.opencontainers.image.stopSignal": "NONE"}}',
            "'SIGNONE' is not a signal",
        ),
    ],
)
def test_documents_that_are_none(text: bytes, fault: str) -> None:
    with pytest.raises(BadImage, match=rf"Invalid config\.json of image x: .*{fault}"):
        parse_application(text, "x")


# --- files that name things ---


def test_hosts_and_resolver() -> None:
    assert "10.0.0.7 web\n" in render_hosts("web", ["10.0.0.7"])
    assert "127.0.1.1 web\n" in render_hosts("web", [])
    told = (["10.0.0.1", "10.0.0.1", "fd00::1"], ["lxd"])
    assert render_resolver({}, told).endswith("nameserver 10.0.0.1\nnameserver fd00::1\nsearch lxd\n")
    own = {"oci.dns.nameservers": "9.9.9.9, 1.1.1.1", "oci.dns.search": "a.example, b.example"}
    assert render_resolver(own, told).endswith("nameserver 9.9.9.9\nnameserver 1.1.1.1\nsearch a.example b.example\n")
    assert render_resolver({"oci.dns.domain": "c.example"}, told).endswith("search c.example\n")
    assert "nameserver" not in render_resolver({}, ([], []))


# --- instances ---


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("oci.entrypoint", "sh 'open", "No closing quotation"),
        ("oci.entrypoint", " ", "nothing to run"),
        ("oci.cwd", "here", "absolute path"),
        ("oci.uid", "root", "a user or group id"),
        ("oci.gid", "4294967296", "a user or group id"),
        ("oci.dns.nameservers", "here", "'here' does not appear to be"),
        ("oci.dns.search", "a b", "names of domains"),
    ],
)
async def test_wrong_settings(home: House, key: str, value: str, fault: str) -> None:
    with pytest.raises(BadRequest, match=rf"{key}: .*{fault}"):
        await home.create(config={key: value})


async def _running_application(home: House, **config: str) -> None:
    """`c1`, as an OCI image of SHOP makes it."""
    await home.create()
    document = home.daemon.registry.find(PROJECT, "c1")
    document.value.config.update(application_config(SHOP) | config)
    await home.daemon.registry.instances.update(document.path, document.value, document.revision)
    await home.act("start")


async def test_what_is_started(home: House) -> None:
    await _running_application(home)
    spec = home.runtime.specs["c1"]
    assert spec.application == ApplicationSpec(("/bin/shop", "--name", "a  b"), "/srv", 33, 34, (44,))
    assert (spec.stop_signal, spec.environment) == ("SIGQUIT", {"A": "1", "B": "x=y"})
    assert spec.sysctls == {"net.ipv4.ip_unprivileged_port_start": "0"}
    (nic,) = spec.nics
    (address, *_) = nic.addresses
    assert nic.gateways
    chosen = home.daemon.instances.show(PROJECT, "c1").config["volatile.eth0.last_state.ip_addresses"].split(",")
    assert chosen[0] == address.partition("/")[0]
    async with home.daemon.files.open(PROJECT, "c1") as files:
        with open(await files.open("/etc/hosts", 0), encoding="utf-8") as file:
            assert f"{address.partition('/')[0]} c1\n" in file.read()
    assert init_argv(spec) == ["/dev/.flexd/init", "--", "/bin/shop", "--name", "a  b"]


async def test_an_ordinary_instance_asks_for_itself(home: House) -> None:
    await home.create()
    await home.act("start")
    spec = home.runtime.specs["c1"]
    assert (spec.application, spec.stop_signal, init_argv(spec)) == (None, "", [])
    assert spec.nics[0].addresses == ()
    assert "volatile.eth0.last_state.ip_addresses" not in home.daemon.instances.show(PROJECT, "c1").config


async def _ended(home: House) -> dict[str, str]:
    while home.status() != "Stopped":
        await asyncio.sleep(0.01)
    return home.daemon.instances.show(PROJECT, "c1").config


async def test_the_status_is_kept_until_the_next_start(home: House) -> None:
    await _running_application(home)
    home.runtime.end("c1", status=3)
    assert (await _ended(home))["volatile.last_state.exit_status"] == "3"
    await home.act("start")
    assert "volatile.last_state.exit_status" not in home.daemon.instances.show(PROJECT, "c1").config
    home.runtime.end("c1")
    assert "volatile.last_state.exit_status" not in await _ended(home)


async def test_a_program_that_has_little_to_do(home: House) -> None:
    await _running_application(home, **{"oci.entrypoint": "true"})
    assert (await _ended(home))["volatile.last_state.exit_status"] == "0"
    assert home.daemon.instances.show(PROJECT, "c1").config["volatile.last_state.power"] == "STOPPED"


async def test_ten_restarts_in_a_minute(home: House) -> None:
    await _running_application(home, **{"boot.autorestart": "true"})
    for _ in range(10):
        before = home.runtime.specs.pop("c1")
        home.runtime.end("c1", status=1)
        while "c1" not in home.runtime.specs or home.status() != "Running":
            await asyncio.sleep(0.01)
        assert home.runtime.specs["c1"] == before
    home.runtime.end("c1", status=1)
    await _ended(home)
    await home.act("start")
    await home.act("stop", force=True)
    assert home.status() == "Stopped"


async def test_the_configuration_of_liblxc(home: House, tmp_path: Path) -> None:
    await _running_application(home)
    spec, paths = home.runtime.specs["c1"], ContainerPaths("c1", tmp_path, tmp_path)
    lines = render(spec, paths, HostFacts(application_init="/usr/bin/tini-static")).splitlines()
    assert {
        "lxc.init.cwd = /srv",
        "lxc.init.uid = 33",
        "lxc.init.gid = 34",
        "lxc.signal.halt = SIGQUIT",
        "lxc.mount.entry = /usr/bin/tini-static dev/.flexd/init none bind,ro,create=file 0 0",
    } <= set(lines)
    assert not any(line.startswith("lxc.init.cmd") for line in lines)
