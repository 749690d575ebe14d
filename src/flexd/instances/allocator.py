# SPDX-License-Identifier: Apache-2.0
"""Hands out id maps: the choice of `idmaps.py` with this host's range and the maps that are taken."""

from flexd.api.idmap import IdMap
from flexd.host.contract import Host, SubordinateRange
from flexd.instances.idmaps import choose_idmap, from_wire, isolated_range, to_wire
from flexd.instances.record import Config
from flexd.instances.registry import Registry


class IdmapAllocator:
    """One per daemon."""

    def __init__(self, *, registry: Registry, host: Host) -> None:
        self._registry = registry
        self._host = host
        self._range: SubordinateRange | None = None

    async def choose(self, expanded_config: Config, storage_name: str) -> Config:
        """`volatile.idmap.base` and `.next` for an instance with these settings."""
        if self._range is None:
            self._range = await self._host.machine.subordinate_ids()
        idmap, base = choose_idmap(expanded_config, self._range, self._taken(storage_name))
        return {"volatile.idmap.base": str(base), "volatile.idmap.next": to_wire(idmap)}

    def _taken(self, but: str) -> list[tuple[int, int]]:
        ranges = (
            isolated_range(self._registry.expand(other).config)
            for other in self._registry.all_instances()
            if other.storage_name != but
        )
        return [taken for taken in ranges if taken is not None]


def current_idmap(config: Config) -> IdMap:
    """The map an instance runs with, or will have at its first start."""
    return from_wire(config.get("volatile.idmap.current") or config.get("volatile.idmap.next", ""))
