# SPDX-License-Identifier: Apache-2.0
"""Which CPUs a container with `limits.cpu` runs on: pinned sets as they are, counts spread over the rest; pure."""

from collections.abc import Iterable, Mapping

from flexd.api.errors import BadRequest


def parse_set(text: str) -> frozenset[int]:
    """The CPUs of `0-3,7` (the kernel's list format, cpuset(7))."""
    cpus: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def format_set(cpus: Iterable[int]) -> str:
    """The shortest list of a set of CPUs."""
    ranges: list[list[int]] = []
    for cpu in sorted(cpus):
        if ranges and cpu == ranges[-1][1] + 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def check_pinning(wanted: str, online: frozenset[int]) -> None:
    """BadRequest if a set names a CPU that is not there."""
    if not wanted or wanted.isdecimal():
        return
    missing = parse_set(wanted) - online
    if missing:
        raise BadRequest(
            f"Failed setting limits.cpu: CPU {format_set(missing)} is not online ({format_set(online)} are)"
        )


def balance(wanted: Mapping[str, str], online: frozenset[int]) -> dict[str, frozenset[int]]:
    """The CPUs for each container, by its `limits.cpu`; "" (no limit) may use all.

    Counts take the CPUs with the fewest pinned containers so far, most demanding first, so that the load spreads; the
    result depends on the input only, so an unchanged set of containers keeps its CPUs.
    """
    load = dict.fromkeys(sorted(online), 0)
    chosen: dict[str, frozenset[int]] = {}
    counted = []
    for name, limit in sorted(wanted.items()):
        if not limit:
            chosen[name] = online
        elif limit.isdecimal():
            counted.append((name, int(limit)))
        else:
            chosen[name] = parse_set(limit) & online or online
            for cpu in chosen[name]:
                load[cpu] += 1
    for name, count in sorted(counted, key=lambda item: (-item[1], item[0])):
        cpus = sorted(load, key=lambda cpu: (load[cpu], cpu))[:count]
        chosen[name] = frozenset(cpus)
        for cpu in cpus:
            load[cpu] += 1
    return chosen
