# SPDX-License-Identifier: Apache-2.0
"""How values of the API look to people: sizes, times, yes and no."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def yes_no(value: Any) -> str:
    """`yes` or `no`."""
    return "yes" if value else "no"


def size_iec(count: int) -> str:
    """`1.50MiB`, the way lxc shows memory and disks."""
    return _size(count, 1024, ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"))


def size_si(count: int) -> str:
    """`1.57MB`, the way lxc shows images and traffic."""
    return _size(count, 1000, ("kB", "MB", "GB", "TB", "PB", "EB"))


def _size(count: int, base: int, units: Sequence[str]) -> str:
    if count < base:
        return f"{count}B"
    power = 1
    while power < len(units) and count >= base ** (power + 1):
        power += 1
    return f"{count / base**power:.2f}{units[power - 1]}"


def is_set(time: str) -> bool:
    """False for the API's two ways of saying "never": year 1 and the epoch."""
    return bool(time) and not time.startswith(("0001-01-01T", "1970-01-01T00:00:00"))


def utc_time(time: str) -> str:
    """`2026/11/23 06:10 UTC` of an RFC 3339 time in UTC; empty for never. (`datetime` costs 3 ms.)"""
    if not is_set(time):
        return ""
    return f"{_in_utc(time)[:16].replace('-', '/').replace('T', ' ')} UTC"


def long_time(time: str) -> str:
    """`Nov 23, 2026 at 6:10am (UTC)`, as images and warnings show it."""
    if not is_set(time):
        return ""
    utc = _in_utc(time)
    hour = int(utc[11:13])
    return (
        f"{_MONTHS[int(utc[5:7]) - 1]} {int(utc[8:10])}, {utc[:4]} at "
        f"{hour % 12 or 12}:{utc[14:16]}{'am' if hour < 12 else 'pm'} (UTC)"
    )


def _in_utc(time: str) -> str:
    if time.endswith("Z"):
        return time
    from datetime import UTC, datetime

    return datetime.fromisoformat(time).astimezone(UTC).isoformat()


def addresses(state: Mapping[str, Any] | None, family: str) -> list[tuple[str, str]]:
    """Addresses by which others reach an instance, each with its interface."""
    networks = (state or {}).get("network") or {}
    return [
        (address["address"], interface)
        for interface, network in networks.items()
        if interface != "lo"
        for address in network.get("addresses") or ()
        if address["family"] == family and address["scope"] not in ("link", "local")
    ]


def is_active(instance: Mapping[str, Any]) -> bool:
    """True unless it is stopped or broken: then it has a process, addresses, usage."""
    return str(instance.get("status", "")).lower() not in ("stopped", "error", "")
