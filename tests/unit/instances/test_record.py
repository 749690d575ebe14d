# SPDX-License-Identifier: Apache-2.0
"""Expansion of profiles, names and paths of records."""

from flexd.instances.record import InstanceRecord, ProfileRecord, device_volatile, expand, instance_url


def test_later_profiles_and_the_instance_win():
    first = ProfileRecord(
        "a", config={"user.x": "1", "user.y": "1"}, devices={"eth0": {"type": "nic", "parent": "br0"}}
    )
    second = ProfileRecord("b", config={"user.y": "2"}, devices={"eth0": {"type": "none"}})
    expanded = expand([first, second], {"user.z": "3"}, {"root": {"type": "disk", "path": "/", "pool": "p"}})
    assert expanded.config == {"user.x": "1", "user.y": "2", "user.z": "3"}
    assert expanded.devices["eth0"] == {"type": "none"}
    assert expanded.root() == ("root", {"type": "disk", "path": "/", "pool": "p"})


def test_a_bind_mount_is_no_root():
    assert expand([], {}, {"d": {"type": "disk", "path": "/", "source": "/srv"}}).root() is None


def test_expansion_changes_no_profile():
    profile = ProfileRecord("a", config={"user.x": "1"})
    expand([profile], {"user.x": "2"}, {})
    assert profile.config == {"user.x": "1"}


def test_names_outside_the_default_project_are_prefixed():
    record = InstanceRecord("c1", project="blue", pool="default")
    assert record.storage_name == "blue_c1"
    assert record.volume.name == "blue_c1"
    assert instance_url("blue", "c1") == "/1.0/instances/c1?project=blue"
    assert InstanceRecord("c1").url == "/1.0/instances/c1"


def test_volatile_keys_of_a_device():
    config = {"volatile.eth0.hwaddr": "00:16:3e:00:00:01", "volatile.eth0.name": "eth0", "volatile.eth01.name": "x"}
    assert device_volatile(config, "eth0") == {"hwaddr": "00:16:3e:00:00:01", "name": "eth0"}
