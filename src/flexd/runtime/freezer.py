# SPDX-License-Identifier: Apache-2.0
"""Freezing all processes of a cgroup: the v1 freezer where there is one, else `cgroup.freeze` of v2."""

import asyncio

from flexd.host.contract import Cgroups, HostError

# Freezing is asynchronous; a process in uninterruptible sleep freezes when that ends.
_TIMEOUT_S = 30.0
_POLL_S = 0.005


async def freeze(cgroups: Cgroups, name: str, group: str) -> None:
    """Returns when everything stands still; thaws again if that does not come about."""
    await _write(cgroups, group, frozen=True)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            while not await frozen(cgroups, group):  # noqa: ASYNC110
                # The v1 freezer has no events to wait for.
                await asyncio.sleep(_POLL_S)
    except TimeoutError as error:
        await unfreeze(cgroups, group)
        raise HostError(f'Failed freezing "{name}": some process did not freeze within {_TIMEOUT_S:g} s') from error


async def unfreeze(cgroups: Cgroups, group: str) -> None:
    await _write(cgroups, group, frozen=False)


async def frozen(cgroups: Cgroups, group: str) -> bool:
    """False also for a cgroup that is gone."""
    try:
        if await _is_v1(cgroups):
            return (await cgroups.read(group, "freezer", "freezer.state")).strip() == "FROZEN"
        return "frozen 1" in (await cgroups.read(group, "cgroup", "cgroup.events")).splitlines()
    except HostError:
        return False


async def _write(cgroups: Cgroups, group: str, *, frozen: bool) -> None:
    if await _is_v1(cgroups):
        await cgroups.write(group, "freezer", "freezer.state", "FROZEN" if frozen else "THAWED")
    else:
        await cgroups.write(group, "cgroup", "cgroup.freeze", "1" if frozen else "0")


async def _is_v1(cgroups: Cgroups) -> bool:
    return "freezer" in (await cgroups.layout()).controllers
