# SPDX-License-Identifier: Apache-2.0
"""`limits.read`, `limits.write` and `limits.max` of disks: from values to the files of blkio (cgroup v1) and io (v2).

A cgroup's limit is per block device, so the limits of several disks on one device are averaged, as LXD does."""

import re
from collections.abc import Iterable, Mapping

from msgspec import Struct

from flexd.api.errors import BadRequest
from flexd.api.units import parse_size
from flexd.host.contract import CgroupLayout

KEYS = ("limits.max", "limits.read", "limits.write")
_IOPS = re.compile(r"([0-9]+)\s*iops")


class Rates(Struct, frozen=True):
    """Bytes and operations per second; 0: no limit."""

    read_bps: int = 0
    read_iops: int = 0
    write_bps: int = 0
    write_iops: int = 0


def rate_fault(value: str) -> str | None:
    """What is wrong with `10MB`, `100iops` or `10MB,100iops`."""
    try:
        _parse(value)
    except BadRequest as error:
        return f"{error}, or operations per second such as 100iops"
    return None


def _parse(value: str) -> tuple[int, int]:
    """(bytes, operations) per second."""
    bps = iops = 0
    for part in filter(None, (each.strip() for each in value.split(","))):
        match = _IOPS.fullmatch(part)
        if match is not None:
            iops = int(match[1])
        else:
            bps = parse_size(part)
    return bps, iops


def rates(config: Mapping[str, str]) -> Rates:
    """`limits.max` stands for both where it is set."""
    both = config.get("limits.max", "")
    read = _parse(both or config.get("limits.read", ""))
    write = _parse(both or config.get("limits.write", ""))
    return Rates(*read, *write)


def average(all_of: Iterable[Rates]) -> Rates:
    """Of those that limit, field by field."""
    rows = list(all_of)

    def mean(field: str) -> int:
        values = [value for row in rows if (value := getattr(row, field))]
        return sum(values) // len(values) if values else 0

    return Rates(*(mean(field) for field in Rates.__struct_fields__))


def files(device: str, wanted: Rates, layout: CgroupLayout) -> list[tuple[str, str, str]]:
    """(controller, file, value) for a device (`8:0`); v1 takes 0 for no limit, v2 `max`."""
    if "blkio" in layout.controllers:
        return [
            ("blkio", f"blkio.throttle.{name}_device", f"{device} {value}")
            for name, value in (
                ("read_bps", wanted.read_bps),
                ("read_iops", wanted.read_iops),
                ("write_bps", wanted.write_bps),
                ("write_iops", wanted.write_iops),
            )
        ]
    words = (("rbps", wanted.read_bps), ("wbps", wanted.write_bps), ("riops", wanted.read_iops))
    text = " ".join(f"{word}={value or 'max'}" for word, value in (*words, ("wiops", wanted.write_iops)))
    return [("io", "io.max", f"{device} {text}")]
