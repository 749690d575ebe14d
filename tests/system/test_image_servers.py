# SPDX-License-Identifier: Apache-2.0
"""Images from a simplestreams server and between two daemons, as Debian's lxc and flexc ask for them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.images import tiny_image
from tests.system.machine import Machine, wait_until

PORT = 8444
URL = f"https://localhost:{PORT}"


class Neighbour(Machine):
    """A second daemon in the network of a first one."""

    def __init__(self, directory: Path, first: Machine) -> None:
        self._first = first
        super().__init__(directory)

    def enter(self) -> list[str]:
        return self._first.enter()


@dataclass
class Place:
    """A daemon, a site beside it, and what trusts its certificate."""

    daemon: Machine
    site: Path
    fingerprint: str

    def lxc(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.daemon.run(*self.daemon.enter(), "lxc", *argv, check=check)

    def flexc(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = os.fspath(Path(sys.executable).parent / "flexc")
        return self.daemon.run(*self.daemon.enter(), command, *argv, check=check)


class _Trusting(Machine):
    """Its clients too believe in the authority of the tests."""

    def __init__(self, directory: Path, authority_file: Path) -> None:
        super().__init__(directory)
        self._authority = authority_file

    def environment(self) -> dict[str, str]:
        return super().environment() | {"SSL_CERT_FILE": os.fspath(self._authority)}


@pytest.fixture(scope="module")
def place(root_only: None, state_root: Path) -> Iterator[Place]:
    image = tiny_image()
    directory = state_root / "fxj"
    directory.mkdir()
    certificate, key = directory / "web.crt", directory / "web.key"
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    command = ["openssl", "req", "-x509", *curve, *names, "-out", certificate, "-keyout", key]
    subprocess.run(command, check=True, capture_output=True)
    daemon = _Trusting(directory / "flexd", certificate)
    site = directory / "site"
    web = None
    try:
        daemon.start()
        daemon.init()
        daemon.flexc("image", "tree", os.fspath(site), "--file", os.fspath(image))
        script = Path(__file__).parent / "web_server.py"
        web = subprocess.Popen(
            [*daemon.enter(), sys.executable, script, site, str(PORT), certificate, key], stderr=subprocess.DEVNULL
        )
        document = json.loads((site / "streams/v1/images.json").read_text())
        product = document["products"]["busybox:tiny:amd64:default"]
        (version,) = product["versions"].values()
        made = Place(daemon, site, version["items"]["lxd_combined.tar.gz"]["sha256"])
        wait_until(lambda: made.flexc("image", "list", "local:").returncode == 0)
        made.lxc("remote", "add", "mine", URL, "--protocol", "simplestreams")
        made.flexc("remote", "add", "mine", URL, "--protocol", "simplestreams")
        yield made
    finally:
        if web is not None:
            web.kill()
            web.wait()
        left = daemon.stop()
        shutil.rmtree(directory, ignore_errors=True)
    assert left == [], left


@pytest.fixture(autouse=True)
def no_images(place: Place) -> Iterator[None]:
    yield
    place.daemon.clear()
    for path in place.daemon.get("/1.0/images"):
        place.daemon.call("DELETE", path)


def test_lists_of_both_clients_agree(place: Place) -> None:
    columns = ("--format", "csv", "-c", "lFad")
    listed = place.lxc("image", "list", "mine:", *columns).stdout
    assert place.fingerprint in listed
    assert place.flexc("image", "list", "mine:", *columns).stdout == listed
    theirs = place.lxc("image", "info", "mine:busybox/tiny").stdout
    ours = place.flexc("image", "info", "mine:busybox/tiny").stdout
    for line in ("Fingerprint:", "    description:", "    os:", "    serial:", "    type:"):
        assert _line(ours, line) == _line(theirs, line)


def _line(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


def test_launch_by_lxc(place: Place) -> None:
    place.lxc("launch", "mine:busybox/tiny", "c1")
    assert place.lxc("exec", "c1", "--", "cat", "/run/hostname").stdout == "c1\n"
    image = place.daemon.get(f"/1.0/images/{place.fingerprint}")
    assert (image["cached"], image["auto_update"], image["public"]) == (True, True, False)
    assert image["update_source"] == {
        "alias": "busybox/tiny",
        "certificate": "",
        "image_type": "",
        "protocol": "simplestreams",
        "server": URL,
    }
    config = place.daemon.get("/1.0/instances/c1")["config"]
    assert config["volatile.base_image"] == place.fingerprint
    assert config["image.os"] == "Busybox"


def test_many_launches_by_flexc_download_once(place: Place) -> None:
    for name in ("c1", "c2", "c3"):
        place.flexc("init", "mine:busybox/tiny", name)
    assert place.daemon.get("/1.0/images") == [f"/1.0/images/{place.fingerprint}"]


def test_copy_by_both_clients(place: Place) -> None:
    place.lxc("image", "copy", "mine:busybox/tiny", "local:", "--copy-aliases", "--auto-update", "--public")
    image = place.daemon.get(f"/1.0/images/{place.fingerprint}")
    assert (image["cached"], image["auto_update"], image["public"]) == (False, True, True)
    assert [alias["name"] for alias in image["aliases"]] == ["busybox/tiny", "busybox/tiny/amd64"]
    place.flexc("image", "copy", f"mine:{place.fingerprint[:12]}", "local:", "--alias", "mine")
    assert place.daemon.get("/1.0/images/aliases/mine")["target"] == place.fingerprint
    assert "already up to date" in place.lxc("image", "refresh", "busybox/tiny").stdout


def test_damaged_file_is_refused_with_both_hashes(place: Place) -> None:
    (file,) = place.site.rglob("lxd_combined.tar.gz")
    whole = file.read_bytes()
    file.write_bytes(bytes(len(whole)))
    try:
        refused = place.lxc("launch", "mine:busybox/tiny", "c1", check=False)
    finally:
        file.write_bytes(whole)
    assert refused.returncode != 0
    assert f"expected {place.fingerprint}" in refused.stderr
    assert place.daemon.get("/1.0/images") == []
    assert place.daemon.get("/1.0/instances") == []
    assert list((place.daemon.directory / "images").glob(".incoming*")) == []


# --- between two daemons ---


@pytest.fixture(scope="module")
def other(place: Place, state_root: Path) -> Iterator[Machine]:
    """A second daemon, `other:` to both clients of the first, with the image tiny that is private. `self:` is the
    first by its address: a unix socket has none that another server could reach."""
    neighbour = Neighbour(state_root / "fxjo", place.daemon)
    try:
        neighbour.start()
        for daemon, port in ((place.daemon, 8445), (neighbour, 8446)):
            daemon.call("PATCH", "/1.0", {"config": {"core.https_address": f"127.0.0.1:{port}"}})
        neighbour.import_image(tiny_image(), "tiny")
        for name, client in (("lxc", place.lxc), ("flexc", place.flexc)):
            for remote, daemon in (("other", neighbour), ("self", place.daemon)):
                token = daemon.run("lxc", "config", "trust", "add", "--name", name, "-q").stdout.split()[-1]
                client("remote", "add", remote, token)
        yield neighbour
    finally:
        left = neighbour.stop()
    assert left == [], left


@pytest.mark.parametrize("mode", ["pull", "push", "relay"])
def test_copy_between_daemons(place: Place, other: Machine, mode: str) -> None:
    for client in (place.lxc, place.flexc):
        client("image", "copy", "other:tiny", "self:", "--mode", mode, "--alias", "theirs", "--copy-aliases")
        assert place.daemon.get("/1.0/images/aliases/theirs")["target"] == place.fingerprint
        image = place.daemon.get(f"/1.0/images/{place.fingerprint}")
        assert sorted(alias["name"] for alias in image["aliases"]) == ["theirs", "tiny"]
        assert image["public"] is False
        place.daemon.call("DELETE", f"/1.0/images/{place.fingerprint}")


def test_launch_from_another_daemon(place: Place, other: Machine) -> None:
    for client, name in ((place.lxc, "c1"), (place.flexc, "c2")):
        client("init", "other:tiny", name if client == place.flexc else f"local:{name}")
        assert place.daemon.get(f"/1.0/instances/{name}")["config"]["volatile.base_image"] == place.fingerprint
    assert place.daemon.get(f"/1.0/images/{place.fingerprint}")["cached"] is True


def test_strangers_see_what_is_public(place: Place, other: Machine, tmp_path: Path) -> None:
    """A client whose certificate nobody trusts."""

    def stranger(*argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = ["env", f"LXD_CONF={tmp_path}", "lxc", *argv]
        return place.daemon.run(*place.daemon.enter(), *command, check=check)

    stranger("remote", "add", "shop", "https://127.0.0.1:8446", "--public", "--accept-certificate")
    assert stranger("image", "list", "shop:", "--format", "csv").stdout == ""
    assert stranger("image", "info", "shop:tiny", check=False).returncode != 0
    assert stranger("image", "copy", "shop:tiny", "local:", check=False).returncode != 0
    other.call("PATCH", f"/1.0/images/{place.fingerprint}", {"public": True})
    try:
        assert place.fingerprint[:12] in stranger("image", "list", "shop:", "--format", "csv").stdout
        stranger("image", "copy", "shop:tiny", "local:", "--auto-update")
        source = place.daemon.get(f"/1.0/images/{place.fingerprint}")["update_source"]
        assert (source["server"], source["protocol"]) == ("https://127.0.0.1:8446", "lxd")
        assert stranger("image", "delete", "shop:tiny", check=False).returncode != 0
    finally:
        other.call("PATCH", f"/1.0/images/{place.fingerprint}", {"public": False})
