# SPDX-License-Identifier: Apache-2.0
"""Every configuration key there is, by what it configures: for `/1.0/metadata/configuration` and for the reference.

`python -m flexd.configuration` prints docs/reference/configuration.md; a test compares.
"""

from collections.abc import Iterable, Mapping, Sequence

from flexd.api.keys import Key
from flexd.devices import devices as _kinds_are_registered  # noqa: F401
from flexd.devices.contract import Kind
from flexd.instances.keys import KEYS as INSTANCE_KEYS
from flexd.network.drivers import load_drivers as load_network_drivers
from flexd.server.config import KEYS as SERVER_KEYS
from flexd.server.projects import KEYS as PROJECT_KEYS
from flexd.storage import drivers as storage_drivers
from flexd.storage.custom import volume_keys
from flexd.storage.pools import pool_keys

_TITLES = {
    "server": "The server (`flexc config set KEY VALUE`)",
    "instance": "Instances and profiles (`flexc config set NAME KEY VALUE`)",
    "project": "Projects (`flexc project set PROJECT KEY VALUE`)",
    "device": "Device `{}` (`flexc config device set NAME DEVICE KEY VALUE`)",
    "network": "Network of type `{}` (`flexc network set NAME KEY VALUE`)",
    "storage": "Storage pool with driver `{}` (`flexc storage set NAME KEY VALUE`)",
    "volume": "Storage volume on a pool with driver `{}` (`flexc storage volume set POOL VOLUME KEY VALUE`)",
}


def configuration() -> dict[str, Sequence[Key]]:
    """Rows by entity: `server`, `instance`, `device-nic-bridged`, `network-bridge`, `storage-overlay`, …"""
    found: dict[str, Sequence[Key]] = {"server": SERVER_KEYS, "instance": INSTANCE_KEYS, "project": PROJECT_KEYS}
    for parts, kind in sorted(Kind.registered.items()):
        found["device-" + "-".join(filter(None, parts))] = kind.KEYS
    for name, network in sorted(load_network_drivers().items()):
        found[f"network-{name}"] = network.KEYS
    for name in sorted(storage_drivers.names()):
        found[f"storage-{name}"] = pool_keys(name)
        found[f"volume-{name}"] = volume_keys(name)
    return found


def _title(entity: str) -> str:
    family, _, kind = entity.partition("-")
    return _TITLES[family].format(kind)


def _row(key: Key) -> str:
    kind = "one of " + ", ".join(f"`{choice}`" for choice in key.choices) if key.choices else key.kind
    default = f"`{key.default}`" if key.default else ""
    return f"| `{key.name}` | {kind} | {default} | {'yes' if key.live else 'at the next start'} | {key.description} |"


def _section(entity: str, keys: Iterable[Key]) -> str:
    rows = "\n".join(_row(key) for key in sorted(keys, key=lambda key: key.name))
    if not rows:
        return f"## {_title(entity)}\n\nNo keys.\n"
    return f"## {_title(entity)}\n\n| key | type | default | live | what it is |\n|---|---|---|---|---|\n{rows}\n"


def reference(found: Mapping[str, Sequence[Key]]) -> str:
    """The page, in Markdown."""
    head = (
        "# Configuration keys\n\n"
        "Made by `python -m flexd.configuration` from the rows that also validate what clients send; do not edit by "
        "hand.\nThe same is at `GET /1.0/metadata/configuration`.\n\n"
    )
    return head + "\n".join(_section(entity, keys) for entity, keys in found.items())


if __name__ == "__main__":
    print(reference(configuration()), end="")  # noqa: T201 - a program of its own
