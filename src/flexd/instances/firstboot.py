# SPDX-License-Identifier: Apache-2.0
"""What makes an instance set itself up again: the trigger of its templates, and cloud-init's instance id; pure."""

import uuid
from typing import Literal

from flexd.instances.record import Config, Expanded

Trigger = Literal["create", "copy", "rename", "start"]

APPLY_TEMPLATE = "volatile.apply_template"
INSTANCE_ID = "volatile.cloud-init.instance-id"
# What cloud-init is told through the seed; it looks at it again only as a new instance.
_SEEDS = tuple(
    f"{prefix}.{name}" for prefix in ("cloud-init", "user") for name in ("user-data", "vendor-data", "network-config")
)


def _new_id() -> str:
    return str(uuid.uuid4())


def made(trigger: Trigger) -> Config:
    """Keys of a new instance: its templates are applied at its first start."""
    return {APPLY_TEMPLATE: trigger, INSTANCE_ID: _new_id()}


def renamed(config: Config) -> Config:
    """A configuration after a rename; a trigger that waits already stays."""
    return {APPLY_TEMPLATE: "rename"} | config | {INSTANCE_ID: _new_id()}


def rebuilt(config: Config) -> Config:
    return config | made("create")


def edited(config: Config, before: Expanded, after: Expanded) -> Config:
    """A configuration that cloud-init is to see as a new instance's, if anything changed that it should look at."""
    seeds = any(before.config.get(key) != after.config.get(key) for key in _SEEDS)
    if seeds or _nic_names(before) != _nic_names(after):
        return config | {INSTANCE_ID: _new_id()}
    return config


def _nic_names(expanded: Expanded) -> set[str]:
    return {
        entry.get("name") or expanded.config.get(f"volatile.{device}.name") or device
        for device, entry in expanded.devices.items()
        if entry.get("type") == "nic"
    }


def cloud_init_id(name: str, config: Config) -> str:
    """The instance id that cloud-init is told."""
    return config.get(INSTANCE_ID) or name
