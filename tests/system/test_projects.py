# SPDX-License-Identifier: Apache-2.0
"""Projects on a real host: Debian's `lxc project`, one name running twice, certificates for one project only."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.machine import ApiError, Machine, wait_until
from tests.system.test_https import ADDRESS, Far, token

Make = Callable[..., str]
SHARED = ("features.images=false", "features.profiles=false")


@pytest.fixture
def make(tiny: Machine) -> Iterator[Make]:
    """Makes projects, which go with everything in them when the test ends."""
    made: list[str] = []

    def create(name: str, *config: str) -> str:
        made.append(name)
        tiny.lxc("project", "create", name, *(word for pair in config for word in ("-c", pair)))
        return name

    yield create
    for name in made:
        _remove(tiny, name)


def _remove(machine: Machine, project: str) -> None:
    if f"/1.0/projects/{project}" not in machine.get("/1.0/projects"):
        return
    for url in machine.get(f"/1.0/projects/{project}")["used_by"]:
        if "/profiles/default" in url:
            machine.call("PUT", url, {"devices": {}})
            continue
        path, _, query = url.partition("?")
        if "/instances/" in url and machine.get(url)["status"] != "Stopped":
            machine.call("PUT", f"{path}/state?{query}", {"action": "stop", "force": True})
        machine.call("DELETE", url)
    machine.call("DELETE", f"/1.0/projects/{project}")


def _address(machine: Machine, name: str, project: str) -> str:
    network = machine.get(f"/1.0/instances/{name}/state?project={project}")["network"] or {}
    addresses = network.get("eth0", {}).get("addresses") or []
    return next((each["address"] for each in addresses if each["family"] == "inet"), "")


def test_every_verb_of_lxc_project(tiny: Machine, make: Make):
    make("pja", "user.owner=me")
    assert "pja" in tiny.lxc("project", "list", "--format", "csv").stdout
    shown = tiny.lxc("project", "show", "pja").stdout
    assert 'features.images: "true"' in shown
    assert "/1.0/profiles/default?project=pja" in shown
    tiny.lxc("project", "set", "pja", "limits.instances", "3")
    assert tiny.lxc("project", "get", "pja", "limits.instances").stdout == "3\n"
    assert "INSTANCES,3,0" in tiny.lxc("project", "info", "pja", "--format", "csv").stdout
    tiny.lxc("project", "unset", "pja", "limits.instances")
    document = b"config:\n  features.images: 'true'\n  features.profiles: 'true'\n  features.storage.volumes: 'true'\n"
    tiny.lxc("project", "edit", "pja", stdin=document + b"description: edited\n")
    assert tiny.get("/1.0/projects/pja")["description"] == "edited"
    tiny.lxc("project", "rename", "pja", "pjb")
    tiny.lxc("project", "switch", "pjb")
    try:
        assert "pjb (current)" in tiny.lxc("project", "list", "--format", "csv").stdout
        assert tiny.lxc("list", "--format", "csv").stdout == ""
    finally:
        tiny.lxc("project", "switch", "default")
    refused = tiny.lxc("project", "set", "pjb", "limits.nothing", "1", check=False)
    assert "limits.nothing" in refused.stderr
    tiny.lxc("project", "delete", "pjb")
    assert "pjb" not in tiny.lxc("project", "list", "--format", "csv").stdout


def test_one_name_running_twice(tiny: Machine, make: Make):
    """With a network, files and a name in the DNS each; a daemon that is killed finds both again."""
    make("pja", *SHARED)
    try:
        for project in ("default", "pja"):
            tiny.lxc("launch", "tiny", "twin", "--project", project)
            tiny.lxc("file", "push", "-", "twin/root/mine", "--project", project, stdin=project.encode())
        addresses = [wait_until(lambda p=project: _address(tiny, "twin", p)) for project in ("default", "pja")]
        assert len(set(addresses)) == 2
        for project, name, address in (("default", "twin", addresses[0]), ("pja", "twin_pja", addresses[1])):
            found = tiny.lxc("exec", "twin", "--project", project, "--", "nslookup", f"{name}.lxd", "198.18.77.1")
            assert address in found.stdout
            assert tiny.lxc("exec", "twin", "--project", project, "--", "hostname").stdout == "twin\n"
        tiny.restart(9)
        for project in ("default", "pja"):
            assert tiny.lxc("exec", "twin", "--project", project, "--", "cat", "/root/mine").stdout == project
        listed = json.loads(tiny.lxc("list", "--all-projects", "--format", "json").stdout)
        assert sorted((each["project"], each["status"]) for each in listed if each["name"] == "twin") == [
            ("default", "Running"),
            ("pja", "Running"),
        ]
        tiny.lxc("delete", "-f", "twin", "--project", "pja")
        assert tiny.lxc("exec", "twin", "--", "cat", "/root/mine").stdout == "default"
    finally:
        tiny.lxc("delete", "-f", "twin", check=False)


def test_the_longest_names(tiny: Machine, make: Make):
    """They become directories, cgroups and sockets."""
    project, name = "p" + "j" * 62, "i" * 63
    make(project, *SHARED)
    tiny.lxc("launch", "tiny", name, "--project", project)
    assert tiny.lxc("exec", name, "--project", project, "--", "hostname").stdout == f"{name}\n"
    tiny.lxc("snapshot", name, "s", "--project", project)
    tiny.restart(9)
    tiny.lxc("stop", "--force", name, "--project", project)


def test_limits_and_restrictions(tiny: Machine, make: Make):
    make("pja", *SHARED, "limits.instances=1", "restricted=true")
    tiny.lxc("init", "tiny", "c1", "--project", "pja")
    refused = tiny.lxc("init", "tiny", "c2", "--project", "pja", check=False)
    assert 'Reached maximum number of instances in project "pja"' in refused.stderr
    assert '2 where 1 is the limit, used by instance "c1", instance "c2"' in refused.stderr
    for words in (("config", "set", "c1", "security.nesting", "true"), ("snapshot", "c1", "s")):
        refused = tiny.lxc(*words, "--project", "pja", check=False)
        assert refused.returncode != 0
        assert '"pja"' in refused.stderr


def test_moving_and_copying_between_projects(tiny: Machine, make: Make):
    make("pja", *SHARED)
    try:
        tiny.lxc("launch", "tiny", "goer")
        tiny.lxc("file", "push", "-", "goer/root/kept", stdin=b"kept")
        tiny.lxc("snapshot", "goer", "s")
        tiny.lxc("stop", "--force", "goer")
        tiny.lxc("move", "goer", "--target-project", "pja")
        tiny.lxc("start", "goer", "--project", "pja")
        assert tiny.lxc("exec", "goer", "--project", "pja", "--", "cat", "/root/kept").stdout == "kept"
        assert "goer" not in tiny.lxc("list", "--format", "csv", "-c", "n").stdout
        tiny.lxc("stop", "--force", "goer", "--project", "pja")
        tiny.lxc("restore", "goer", "s", "--project", "pja")
        tiny.lxc("copy", "goer", "goer", "--project", "pja", "--target-project", "default")
        tiny.lxc("start", "goer")
        assert tiny.lxc("exec", "goer", "--", "cat", "/root/kept").stdout == "kept"
    finally:
        tiny.lxc("delete", "-f", "goer", check=False)


def test_a_volume_of_its_own(tiny: Machine, make: Make):
    """With the name that another project's volume has, on the same pool."""
    make("pja", *SHARED)
    try:
        for project in ("default", "pja"):
            tiny.lxc("storage", "volume", "create", "default", "pjdata", "--project", project)
            tiny.lxc("launch", "tiny", "pjv", "--project", project)
            tiny.lxc("storage", "volume", "attach", "default", "pjdata", "pjv", "/data", "--project", project)
            tiny.lxc("exec", "pjv", "--project", project, "--", "sh", "-c", f"echo {project} > /data/x")
        for project in ("default", "pja"):
            assert tiny.lxc("exec", "pjv", "--project", project, "--", "cat", "/data/x").stdout == f"{project}\n"
        tiny.lxc("delete", "-f", "pjv", "--project", "pja")
    finally:
        tiny.lxc("delete", "-f", "pjv", check=False)
        tiny.lxc("storage", "volume", "delete", "default", "pjdata", check=False)


def test_a_link_does_not_lead_out_of_the_allowed_directory(tiny: Machine, make: Make, tmp_path: Path):
    allowed, secret = tmp_path / "allowed", tmp_path / "secret"
    for directory in (allowed / "data", secret):
        directory.mkdir(parents=True)
    (secret / "key").write_text("secret")
    (allowed / "data/file").write_text("data")
    restricted = ("restricted=true", "restricted.devices.disk=allow", f"restricted.devices.disk.paths={allowed}")
    make("pja", *SHARED, *restricted)
    tiny.lxc("init", "tiny", "c1", "--project", "pja")
    disk = ("config", "device", "add", "c1", "d", "disk", "path=/d")
    assert tiny.lxc(*disk, f"source={secret}", "--project", "pja", check=False).returncode != 0
    tiny.lxc(*disk, f"source={allowed}/data", "--project", "pja")
    tiny.lxc("start", "c1", "--project", "pja")
    assert tiny.lxc("exec", "c1", "--project", "pja", "--", "cat", "/d/file").stdout == "data"
    tiny.lxc("stop", "--force", "c1", "--project", "pja")
    (allowed / "data").rename(allowed / "old")
    (allowed / "data").symlink_to(secret)
    refused = tiny.lxc("start", "c1", "--project", "pja", check=False)
    assert "leads out of" in refused.stderr


# --- from far away ---


@pytest.fixture
def far(tiny: Machine, tmp_path: Path) -> Iterator[Far]:
    tiny.lxc("config", "set", "core.https_address", ADDRESS)
    yield Far(tiny, tmp_path / "home")
    for url in tiny.get("/1.0/certificates"):
        tiny.call("DELETE", url)
    tiny.call("PUT", "/1.0", {"config": {}})


def test_a_certificate_for_one_project(tiny: Machine, make: Make, far: Far):
    """With Debian's client: it launches, and of the other projects it sees nothing."""
    make("pja", *SHARED, "restricted=true")
    make("pjsecret", *SHARED)
    tiny.lxc("launch", "tiny", "hidden", "--project", "pjsecret")
    far.lxc("remote", "add", "there", token(tiny, "tenant", "--restricted", "--projects", "pja"))
    assert far.lxc("project", "list", "there:", "--format", "csv").stdout.startswith("pja")
    far.lxc("launch", "there:tiny", "there:mine", "--project", "pja")
    assert far.lxc("exec", "there:mine", "--project", "pja", "--", "hostname").stdout == "mine\n"
    assert "hidden" not in far.lxc("list", "there:", "--all-projects", "--format", "csv").stdout
    assert "hidden" not in far.lxc("network", "show", "there:flexbr0", "--project", "pja").stdout
    assert "hidden" not in far.lxc("network", "list-leases", "there:flexbr0", "--project", "pja").stdout
    assert "hidden" not in far.lxc("storage", "show", "there:default", "--project", "pja").stdout
    for words in (
        ("list", "there:", "--project", "pjsecret"),
        ("list", "there:", "--project", "default"),
        ("exec", "there:hidden", "--project", "pjsecret", "--", "true"),
        ("project", "create", "there:new"),
        ("project", "set", "there:pja", "restricted", "false"),
        ("profile", "set", "there:default", "security.privileged", "true", "--project", "pja"),
        ("network", "delete", "there:flexbr0", "--project", "pja"),
        ("config", "set", "there:mine", "security.privileged", "true", "--project", "pja"),
        ("config", "device", "add", "there:mine", "d", "disk", "source=/", "path=/host", "--project", "pja"),
    ):
        assert far.lxc(*words, check=False).returncode != 0, words
    far.flexc("remote", "add", "there", token(tiny, "tenant-too", "--restricted", "--projects", "pja"))
    assert far.flexc("list", "there:", "--all-projects", "-f", "csv", "-c", "n").stdout == "mine\n"


def test_a_project_that_is_gone_is_gone(tiny: Machine, make: Make):
    make("pja", *SHARED)
    tiny.lxc("init", "tiny", "c1", "--project", "pja")
    refused = tiny.lxc("project", "delete", "pja", check=False)
    assert "/1.0/instances/c1?project=pja" in refused.stderr
    tiny.lxc("delete", "c1", "--project", "pja")
    tiny.lxc("project", "delete", "pja")
    with pytest.raises(ApiError, match="Project not found"):
        tiny.get("/1.0/instances?project=pja")
