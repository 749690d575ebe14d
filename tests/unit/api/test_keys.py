# SPDX-License-Identifier: Apache-2.0
"""Rows of configuration keys."""

from flexd.api.keys import Key, check_config, find_key

KEYS = (
    Key("limits.memory", kind="size"),
    Key("boot.autostart", kind="bool"),
    Key("mode", choices=("a", "b")),
    Key("user.*"),
    Key("count", kind="integer"),
    Key("path", required=True),
)


def test_every_fault_is_collected():
    config = {
        "limits.memory": "x",
        "boot.autostart": "perhaps",
        "mode": "c",
        "user.k": "v",
        "count": "1.5",
        "nope": "1",
    }
    faults = {fault.path: fault.message for fault in check_config(config, KEYS)}
    assert set(faults) == {
        "config.limits.memory",
        "config.boot.autostart",
        "config.mode",
        "config.count",
        "config.nope",
        "config.path",
    }
    assert faults["config.nope"] == "unknown configuration key"
    assert "expected one of a, b" in faults["config.mode"]


def test_an_empty_value_means_unset():
    assert check_config({"limits.memory": "", "path": "/"}, KEYS) == []


def test_exact_names_beat_prefixes():
    keys = (Key("user.*"), Key("user.name", kind="bool"))
    assert find_key(keys, "user.name") == keys[1]
    assert find_key(keys, "user.other") == keys[0]
    assert find_key(keys, "user.") is None or find_key(keys, "user.") == keys[0]
