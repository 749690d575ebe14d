# SPDX-License-Identifier: Apache-2.0
"""How much a project uses of what its `limits.*` count, by whom; pure.

What is counted is what instances and volumes are allowed, not what they happen to use, as in LXD."""

from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct

from flexd.api.units import parse_size
from flexd.instances.record import Expanded, InstanceRecord
from flexd.projects.keys import POOL_LIMIT, SUMS

COUNTS = ("limits.instances", "limits.containers", "limits.virtual-machines", "limits.networks")
SIZES = ("limits.memory", "limits.disk")
# A list of users in an error ends there.
_SHOWN = 10


class Sized(Struct, frozen=True):
    """A custom volume or an image: what to call it, the pool it is on, its size (None: it has none)."""

    label: str
    pool: str
    size_bytes: int | None


class Contents(Struct, frozen=True):
    """Everything of a project that limits count. `images` are no pool's."""

    instances: tuple[tuple[InstanceRecord, Expanded], ...] = ()
    volumes: tuple[Sized, ...] = ()
    images: tuple[Sized, ...] = ()
    networks: tuple[str, ...] = ()


class Share(Struct, frozen=True):
    """What one user of a limit takes; None: it is not limited itself, so that no sum can be held."""

    label: str
    amount: int | None
    fault: str = ""


def limits_of(config: Mapping[str, str]) -> dict[str, int]:
    """The limits that are set, as numbers."""
    found = {}
    for key, value in config.items():
        if value and key in (*COUNTS, *SUMS):
            found[key] = parse_size(value) if key in SIZES else int(value)
        elif value and key.startswith(POOL_LIMIT):
            found[key] = parse_size(value)
    return found


def shares(key: str, project: str, contents: Contents) -> list[Share]:
    """Who takes how much of a limit."""
    if key in COUNTS:
        return [Share(label, 1) for label in _counted(key, contents)]
    if key == "limits.disk" or key.startswith(POOL_LIMIT):
        return list(_disk(key, project, contents))
    return [_of_instance(key, project, *each) for each in contents.instances]


def _counted(key: str, contents: Contents) -> Iterator[str]:
    if key == "limits.networks":
        yield from (f'network "{name}"' for name in contents.networks)
        return
    kind = {"limits.containers": "container", "limits.virtual-machines": "virtual-machine"}.get(key)
    for record, _ in contents.instances:
        if kind in (None, record.type):
            yield f'instance "{record.name}"'


def _of_instance(key: str, project: str, record: InstanceRecord, expanded: Expanded) -> Share:
    label, value = f'instance "{record.name}"', expanded.config.get(key, "")
    where = f'{label[0].upper()}{label[1:]} in project "{project}"'
    if not value:
        return Share(label, None, f'{where} has no "{key}" config, either directly or via a profile')
    if key == "limits.memory":
        if value.endswith("%"):
            return Share(
                label, None, f'{where} has "{value}" for "{key}": a percentage of the host cannot be summed up'
            )
        return Share(label, parse_size(value))
    if not value.isdecimal():
        return Share(label, None, f'{where} has "{value}" for "{key}": pinned CPUs cannot be summed up')
    return Share(label, int(value))


def _disk(key: str, project: str, contents: Contents) -> Iterator[Share]:
    pool = key.removeprefix(POOL_LIMIT) if key.startswith(POOL_LIMIT) else None
    for record, expanded in contents.instances:
        root = expanded.root()
        if root is None or pool not in (None, root[1].get("pool")):
            continue
        size, label = root[1].get("size", ""), f'instance "{record.name}"'
        where = f'Instance "{record.name}" in project "{project}"'
        wrong = f'{where} has no "size" config set on the root device either directly or via a profile'
        yield Share(label, parse_size(size) if size else None, "" if size else wrong)
    for volume in contents.volumes:
        if pool in (None, volume.pool):
            wrong = f'Custom {volume.label} in project "{project}" has no "size" config set'
            yield Share(volume.label, volume.size_bytes, wrong if volume.size_bytes is None else "")
    if pool is None:
        yield from (Share(image.label, image.size_bytes or 0) for image in contents.images)


def total(found: Iterable[Share]) -> int:
    return sum(share.amount or 0 for share in found)


def over(key: str, project: str, limit: int, now: Contents, after: Contents) -> list[str]:
    """Why a change from `now` to `after` is more than a limit allows. What makes it no worse is allowed, so that a
    project that is over its limit for whatever reason can get back below it."""
    was = {share.label: share for share in shares(key, project, now)}
    wanted = shares(key, project, after)
    found = [
        share.fault
        for share in wanted
        if share.amount is None and (share.label not in was or was[share.label].amount is not None)
    ]
    before, sum_after = total(was.values()), total(wanted)
    if sum_after > limit and sum_after > before:
        found.append(f"{_reached(key, project)}: {explain(key, limit, wanted)}")
    return found


def too_low(key: str, project: str, limit: int, contents: Contents) -> list[str]:
    """Why a project cannot get this limit: those who are not limited, or who take more together."""
    found = shares(key, project, contents)
    faults = [share.fault for share in found if share.amount is None]
    if total(found) > limit:
        faults.append(f'"{key}" is too low for project "{project}": {explain(key, limit, found)}')
    return faults


def explain(key: str, limit: int, found: Iterable[Share]) -> str:
    """Sum, limit and users: `700MiB of 1GiB, used by instance "c1" (600MiB), …`, the largest first."""
    users = sorted((share for share in found if share.amount), key=lambda share: (-(share.amount or 0), share.label))
    words = [share.label if key in COUNTS else f"{share.label} ({shown(key, share.amount or 0)})" for share in users]
    more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    users_text = f", used by {', '.join(words[:_SHOWN])}{more}" if words else ""
    return f"{shown(key, total(users))} where {shown(key, limit)} is the limit{users_text}"


def shown(key: str, amount: int) -> str:
    """A number of bytes in the largest unit that keeps it exact."""
    if key not in SIZES and not key.startswith(POOL_LIMIT):
        return str(amount)
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if amount and amount % factor == 0:
            return f"{amount // factor}{unit}"
    return f"{amount}B"


def _reached(key: str, project: str) -> str:
    """LXD's words."""
    if key == "limits.instances":
        return f'Reached maximum number of instances in project "{project}" ({key})'
    if key in ("limits.containers", "limits.virtual-machines"):
        kind = key.removeprefix("limits.").removesuffix("s")
        return f'Reached maximum number of instances of type "{kind}" in project "{project}" ({key})'
    if key == "limits.networks":
        return f'Reached maximum number of networks in project "{project}" ({key})'
    return f'Reached maximum aggregate value for "{key}" in project "{project}"'
