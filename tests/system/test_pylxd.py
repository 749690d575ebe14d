# SPDX-License-Identifier: Apache-2.0
"""pylxd, unmodified, against a real daemon."""

import pytest

from tests.system.machine import Machine

pylxd = pytest.importorskip("pylxd")
# pylxd and its ws4py leave their sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)


@pytest.fixture
def client(tiny: Machine):
    return pylxd.Client(endpoint=f"http+unix://{str(tiny.socket_path).replace('/', '%2F')}")


def test_life_of_an_instance(tiny: Machine, client):
    config = {"name": "py1", "source": {"type": "image", "alias": "tiny"}}
    instance = client.instances.create(config, wait=True)
    instance.start(wait=True)
    assert instance.status == "Running"
    result = instance.execute(["sh", "-c", "echo out; echo err >&2; exit 5"])
    assert (result.exit_code, result.stdout, result.stderr) == (5, "out\n", "err\n")
    instance.files.put("/root/file", b"content")
    assert instance.files.get("/root/file") == b"content"
    instance.config["user.colour"] = "red"
    instance.save(wait=True)
    assert client.instances.get("py1").config["user.colour"] == "red"
    assert instance.state().pid > 0
    instance.freeze(wait=True)
    instance.unfreeze(wait=True)
    instance.stop(force=True, wait=True)
    instance.rename("py2", wait=True)
    client.instances.get("py2").delete(wait=True)
    assert [found.name for found in client.instances.all()] == []


def test_profiles_networks_pools_images(client):
    profile = client.profiles.create("py", config={"user.a": "b"})
    profile.description = "made by pylxd"
    profile.save()
    assert client.profiles.get("py").description == "made by pylxd"
    profile.delete()
    assert client.networks.get("flexbr0").managed
    assert client.storage_pools.get("default").driver == "overlay"
    assert client.images.get_by_alias("tiny").fingerprint
    with pytest.raises(pylxd.exceptions.NotFound):
        client.instances.get("nobody")
