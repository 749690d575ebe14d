# SPDX-License-Identifier: Apache-2.0
"""Sums over a project, and what is said when a limit is reached."""

import pytest

from flexd.instances.record import Expanded, InstanceRecord
from flexd.instances.usage import Contents, Sized, explain, limits_of, over, shares, shown, too_low, total

KIB, MIB, GIB = 2**10, 2**20, 2**30


def instance(name: str, size: str = "", pool: str = "default", **config: str) -> tuple[InstanceRecord, Expanded]:
    values = {f"limits.{key}": value for key, value in config.items()}
    root = {"type": "disk", "path": "/", "pool": pool} | ({"size": size} if size else {})
    return InstanceRecord(name, "p", config=values), Expanded(values, {"root": root})


ONE = instance("c1", "5GiB", memory="600MiB", cpu="2", processes="100")
TWO = instance("c2", "1GiB", "fast", memory="100MiB", cpu="1", processes="50")
VOLUME = Sized('volume "v"', "fast", 2 * GIB)
IMAGE = Sized('image "f00"', "", GIB)
ALL = Contents((ONE, TWO), (VOLUME,), (IMAGE,), ("br0",))


@pytest.mark.parametrize(
    ("key", "used"),
    [
        ("limits.instances", 2),
        ("limits.containers", 2),
        ("limits.virtual-machines", 0),
        ("limits.networks", 1),
        ("limits.cpu", 3),
        ("limits.memory", 700 * MIB),
        ("limits.processes", 150),
        ("limits.disk", 9 * GIB),
        ("limits.disk.pool.default", 5 * GIB),
        ("limits.disk.pool.fast", 3 * GIB),
        ("limits.disk.pool.other", 0),
    ],
)
def test_sums(key: str, used: int):
    found = shares(key, "p", ALL)
    assert total(found) == used
    assert not [share for share in found if share.amount is None]


def test_limits():
    config = {"limits.memory": "1GiB", "limits.disk.pool.fast": "5GB", "limits.cpu": "0", "limits.disk": "", "a": "1"}
    assert limits_of(config) == {"limits.memory": GIB, "limits.disk.pool.fast": 5_000_000_000, "limits.cpu": 0}


@pytest.mark.parametrize(
    ("key", "wrong", "message"),
    [
        ("limits.memory", instance("c3"), 'Instance "c3" in project "p" has no "limits.memory" config'),
        ("limits.memory", instance("c3", memory="50%"), "a percentage of the host"),
        ("limits.cpu", instance("c3", cpu="0-3"), "pinned CPUs"),
        ("limits.cpu", instance("c3"), 'has no "limits.cpu" config'),
        ("limits.processes", instance("c3"), 'has no "limits.processes" config'),
        ("limits.disk", instance("c3"), 'has no "size" config set on the root device'),
    ],
)
def test_whoever_is_not_limited_cannot_be_counted(key: str, wrong: tuple[InstanceRecord, Expanded], message: str):
    after = Contents((ONE, wrong))
    (fault,) = over(key, "p", 2**60, Contents((ONE,)), after)
    assert message in fault
    assert message in too_low(key, "p", 2**60, after)[0]
    assert over(key, "p", 2**60, after, after) == []  # no worse than before


def test_a_volume_without_a_size():
    after = Contents(volumes=(Sized('volume "v"', "fast", None),))
    (fault,) = over("limits.disk", "p", GIB, Contents(), after)
    assert fault == 'Custom volume "v" in project "p" has no "size" config set'
    assert over("limits.disk.pool.default", "p", GIB, Contents(), after) == []


def test_a_limit_that_is_reached_names_sum_limit_and_users():
    more = Contents((*ALL.instances, instance("c3", "1GiB", memory="400MiB", cpu="1", processes="1")))
    (fault,) = over("limits.memory", "p", GIB, Contents(ALL.instances), more)
    assert fault == (
        'Reached maximum aggregate value for "limits.memory" in project "p": 1100MiB where 1GiB is the limit, '
        'used by instance "c1" (600MiB), instance "c3" (400MiB), instance "c2" (100MiB)'
    )
    (fault,) = over("limits.containers", "p", 2, Contents(ALL.instances), more)
    assert fault == (
        'Reached maximum number of instances of type "container" in project "p" (limits.containers): 3 where 2 is the '
        'limit, used by instance "c1", instance "c2", instance "c3"'
    )


def test_exactly_the_limit_is_allowed():
    assert over("limits.memory", "p", 700 * MIB, Contents(), ALL) == []
    assert over("limits.memory", "p", 700 * MIB - 1, Contents(), ALL) != []


def test_a_way_back_below_the_limit():
    smaller = Contents((instance("c1", memory="500MiB"), TWO))
    assert over("limits.memory", "p", MIB, Contents(ALL.instances), smaller) == []
    assert over("limits.memory", "p", MIB, smaller, Contents(ALL.instances)) != []


def test_a_limit_below_what_is_used_names_the_users():
    assert too_low("limits.instances", "p", 2, ALL) == []
    (fault,) = too_low("limits.instances", "p", 1, ALL)
    assert fault == (
        '"limits.instances" is too low for project "p": 2 where 1 is the limit, used by instance "c1", instance "c2"'
    )


def test_many_users_are_cut_short():
    many = Contents(tuple(instance(f"c{n:02}") for n in range(30)))
    text = explain("limits.instances", 1, shares("limits.instances", "p", many))
    assert text.endswith('instance "c09" and 20 more')


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0B"), (1, "1B"), (KIB, "1KiB"), (3 * MIB, "3MiB"), (GIB, "1GiB"), (GIB + 1, f"{GIB + 1}B")],
)
def test_sizes_in_words(amount: int, text: str):
    assert shown("limits.memory", amount) == text
    assert shown("limits.cpu", amount) == str(amount)
