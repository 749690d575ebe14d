# SPDX-License-Identifier: Apache-2.0
"""Objects of the API as a server sends them."""

from typing import Any

FINGERPRINT = "f8f64ae348c5dfeeb9fe7e503c686e285ed6ee2c50d1cbb9679e45d944363b7a"


def instance(name: str = "c1", status: str = "Running", **fields: Any) -> dict[str, Any]:
    running = status != "Stopped"
    nic = {
        "addresses": [
            {"family": "inet", "address": "198.18.0.7", "netmask": "24", "scope": "global"},
            {"family": "inet6", "address": "fd42::7", "netmask": "64", "scope": "global"},
            {"family": "inet6", "address": "fe80::7", "netmask": "64", "scope": "link"},
        ],
        "counters": {"bytes_received": 1500, "bytes_sent": 7, "packets_received": 3, "packets_sent": 1},
        "hwaddr": "00:16:3e:00:00:07",
        "host_name": "veth7",
        "mtu": 1500,
        "state": "up",
        "type": "broadcast",
    }
    state = {
        "status": status,
        "status_code": 103 if running else 102,
        "disk": {"root": {"usage": 5 * 1024**2}} if running else {},
        "memory": {"usage": 48 * 1024**2, "usage_peak": 0, "swap_usage": 0, "swap_usage_peak": 0},
        "network": {"eth0": nic} if running else {},
        "pid": 4711 if running else 0,
        "processes": 12 if running else 0,
        "cpu": {"usage": 3_500_000_000},
    }
    return {
        "name": name,
        "status": status,
        "status_code": 103 if running else 102,
        "architecture": "x86_64",
        "config": {"volatile.base_image": FINGERPRINT, "user.stage": "test"},
        "expanded_config": {"volatile.base_image": FINGERPRINT, "user.stage": "test", "limits.memory": "96MiB"},
        "devices": {},
        "expanded_devices": {
            "root": {"type": "disk", "path": "/", "pool": "default"},
            "eth0": {"type": "nic", "name": "eth0", "network": "flexbr0"},
        },
        "created_at": "2026-11-23T06:10:02.749Z",
        "last_used_at": "2026-11-23T06:12:00Z",
        "description": "",
        "ephemeral": False,
        "location": "none",
        "profiles": ["default"],
        "project": "default",
        "snapshots": [],
        "stateful": False,
        "type": "container",
        "state": state,
        **fields,
    }


def image(**fields: Any) -> dict[str, Any]:
    return {
        "fingerprint": FINGERPRINT,
        "aliases": [{"name": "debian/12", "description": ""}, {"name": "bookworm", "description": ""}],
        "architecture": "x86_64",
        "auto_update": False,
        "cached": False,
        "created_at": "2026-11-20T00:00:00Z",
        "expires_at": "1970-01-01T00:00:00Z",
        "last_used_at": "0001-01-01T00:00:00Z",
        "uploaded_at": "2026-11-23T18:05:00Z",
        "filename": "debian.tar.xz",
        "profiles": ["default"],
        "properties": {"os": "debian", "release": "12", "description": "Debian 12"},
        "public": False,
        "size": 3 * 1024**2,
        "type": "container",
        **fields,
    }


def profile(name: str = "default", **fields: Any) -> dict[str, Any]:
    return {"name": name, "description": "", "config": {}, "devices": {}, "used_by": [], **fields}


def network(name: str = "flexbr0", **fields: Any) -> dict[str, Any]:
    return {
        "name": name,
        "type": "bridge",
        "managed": True,
        "config": {"ipv4.address": "198.18.0.1/24", "ipv6.address": "none"},
        "description": "",
        "used_by": ["/1.0/profiles/default"],
        "status": "Created",
        "locations": ["none"],
        **fields,
    }


def pool(name: str = "default", **fields: Any) -> dict[str, Any]:
    return {
        "name": name,
        "driver": "overlay",
        "config": {"source": "/srv/pool"},
        "description": "",
        "used_by": ["/1.0/profiles/default", "/1.0/instances/c1", "/1.0/storage-pools/default/volumes/custom/data"],
        "status": "Created",
        "locations": ["none"],
        **fields,
    }


def volume(name: str = "data", **fields: Any) -> dict[str, Any]:
    return {
        "name": name,
        "type": "custom",
        "content_type": "filesystem",
        "config": {},
        "description": "",
        "used_by": [],
        "location": "none",
        "project": "default",
        "created_at": "0001-01-01T00:00:00Z",
        **fields,
    }
