# SPDX-License-Identifier: Apache-2.0
"""Filters of `flexc list`."""

from __future__ import annotations

import re

from flexd.cli.show import addresses

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    Instance = Mapping[str, Any]


def matches_all(instance: Instance, filters: Sequence[str]) -> bool:
    """True if every filter fits."""
    return all(_matches(instance, text) for text in filters)


def _matches(instance: Instance, text: str) -> bool:
    key, equals, value = text.partition("=")
    if not equals:
        return _matches_name(instance["name"], text)
    if key in ("ipv4", "ipv6"):
        return any(_has_address(instance, key, wanted) for wanted in value.split(","))
    if key in ("type", "status", "architecture", "location"):
        return str(instance.get(key, "")).lower() in value.lower().split(",")
    return _matches_config(instance, key, value)


def _matches_name(name: str, text: str) -> bool:
    return name.startswith(text) or _fits(text, name)


def _fits(pattern: str, value: str) -> bool:
    """Whether a regular expression fits; all of the value unless it has anchors of its own."""
    try:
        found = re.search(pattern, value) if "^" in pattern or "$" in pattern else re.fullmatch(pattern, value)
    except re.error:
        return False
    return found is not None


def _matches_config(instance: Instance, key: str, wanted: str) -> bool:
    config = instance.get("expanded_config") or instance.get("config") or {}
    return any(_abbreviates(key, name) and (value == wanted or _fits(wanted, value)) for name, value in config.items())


def _abbreviates(short: str, name: str) -> bool:
    """`s.privileged` stands for `security.privileged`."""
    shorts, parts = short.split("."), name.split(".")
    return len(shorts) == len(parts) and all(map(str.startswith, parts, shorts))


def _has_address(instance: Instance, key: str, wanted: str) -> bool:
    from ipaddress import ip_address, ip_network

    family = "inet" if key == "ipv4" else "inet6"
    try:
        network = ip_network(wanted, strict=False)
    except ValueError:
        return False
    return any(ip_address(address) in network for address, _ in addresses(instance.get("state"), family))
