# SPDX-License-Identifier: Apache-2.0
"""A server's setup as one document, in LXD's preseed format: made, applied and dumped."""

from __future__ import annotations

from flexd.cli.errors import CliError
from flexd.client.client import path_of
from flexd.client.errors import ClientError, NotFoundError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from flexd.cli.context import Context
    from flexd.client.client import Client

    Document = dict[str, Any]

_NETWORK = "flexbr0"
_POOL = "default"
_DRIVERS = ("overlay", "btrfs", "dir")
# Section, collection, and the fields of a PUT; in the order in which they depend on each other.
_SECTIONS = (
    ("networks", "networks", ("config", "description")),
    ("storage_pools", "storage-pools", ("config", "description")),
    ("projects", "projects", ("config", "description")),
    ("profiles", "profiles", ("config", "description", "devices")),
)


def auto_document(client: Client, driver: str, source: str, listen: str) -> Document:
    """What `--auto` makes, less what is there already."""
    networks = [each for each in client.get("/1.0/networks", {"recursion": "1"}) if each["managed"]]
    pools = client.get("/1.0/storage-pools", {"recursion": "1"})
    profile = client.get(path_of("profiles", "default"))
    document: Document = {"config": {"core.https_address": listen} if listen else {}}
    document["networks"] = [] if networks else [_auto_network()]
    document["storage_pools"] = [] if pools else [_auto_pool(client, driver, source)]
    devices: dict[str, dict[str, str]] = {}
    if not any(_is_root(device) for device in profile["devices"].values()):
        pool = pools[0]["name"] if pools else _POOL
        devices["root"] = {"type": "disk", "path": "/", "pool": pool}
    if not any(device.get("type") == "nic" for device in profile["devices"].values()):
        network = networks[0]["name"] if networks else _NETWORK
        devices["eth0"] = {"type": "nic", "name": "eth0", "network": network}
    document["profiles"] = [{"name": "default", "config": {}, "devices": devices}] if devices else []
    return document


def _is_root(device: dict[str, str]) -> bool:
    return device.get("type") == "disk" and device.get("path") == "/"


def _auto_network() -> Document:
    config = {"ipv4.address": "auto", "ipv4.nat": "true", "ipv6.address": "auto", "ipv6.nat": "true"}
    return {"name": _NETWORK, "type": "bridge", "description": "", "config": config}


def _auto_pool(client: Client, driver: str, source: str) -> Document:
    supported = {each["Name"] for each in client.server()["environment"].get("storage_supported_drivers") or ()}
    chosen = driver or next((each for each in _DRIVERS if each in supported), "dir")
    config = {"source": source} if source else {}
    return {"name": _POOL, "driver": chosen, "description": "", "config": config}


def dump_server(client: Client) -> Document:
    """The present setup."""
    document: Document = {"config": client.get("/1.0")["config"]}
    extra = {"networks": ("name", "type"), "storage_pools": ("name", "driver")}
    for section, collection, fields in _SECTIONS:
        try:
            found = client.get(f"/1.0/{collection}", {"recursion": "1"})
        except NotFoundError:
            continue
        keys = (*fields, *extra.get(section, ("name",)))
        document[section] = [
            {key: each[key] for key in keys if key in each} for each in found if each.get("managed", True)
        ]
    return document


class Preseed:
    """Applies a document; what was created is removed again if a later part fails."""

    def __init__(self, context: Context, client: Client) -> None:
        self._context = context
        self._client = client
        self._created: list[str] = []

    def apply(self, document: Document) -> list[str]:
        """Bring the server to what the document says; what was done, in words."""
        unknown = set(document) - {"config", *(section for section, _, _ in _SECTIONS)}
        if unknown:
            raise CliError(f"Unknown sections in the preseed: {', '.join(sorted(unknown))}")
        try:
            return list(self._apply(document))
        except ClientError:
            for path in reversed(self._created):
                self._context.perform(self._client, "DELETE", path)
            raise

    def _apply(self, document: Document) -> Iterator[str]:
        config = document.get("config") or {}
        if config:
            self._context.perform(self._client, "PATCH", "/1.0", {"config": config})
            yield f"Server configured: {', '.join(sorted(config))}"
        for section, collection, fields in _SECTIONS:
            for each in document.get(section) or []:
                if "name" not in each:
                    raise CliError(f"An entry of {section} in the preseed has no name")
                yield self._apply_one(collection, each, fields)

    def _apply_one(self, collection: str, wanted: Document, fields: tuple[str, ...]) -> str:
        path = path_of(collection, wanted["name"])
        noun = collection.rstrip("s").replace("-", " ").capitalize()
        try:
            reply = self._client.request("GET", path)
        except NotFoundError:
            body = {"description": "", "config": {}, **wanted}
            self._context.perform(self._client, "POST", f"/1.0/{collection}", body)
            self._created.append(path)
            return f"{noun} {wanted['name']} created"
        merged = {key: _merged(reply.metadata.get(key), wanted.get(key)) for key in fields}
        if all(merged[key] == reply.metadata.get(key) for key in fields):
            return f"{noun} {wanted['name']} is as it should be"
        self._context.perform(self._client, "PUT", path, merged, etag=reply.etag)
        return f"{noun} {wanted['name']} updated"


def _merged(present: Any, wanted: Any) -> Any:
    """Keys of a mapping are added and replaced; anything else is replaced if it is named."""
    if isinstance(present, dict) and isinstance(wanted, dict):
        return {**present, **wanted}
    return present if wanted is None else wanted
