# SPDX-License-Identifier: Apache-2.0
"""Sizes as configuration writes them. `flexd.api.units` does the same, but with it comes msgspec (17 ms)."""

from __future__ import annotations

_SI = {unit: 1000 ** (power + 1) for power, unit in enumerate(("kb", "mb", "gb", "tb", "pb", "eb"))}
_IEC = {unit: 1024 ** (power + 1) for power, unit in enumerate(("kib", "mib", "gib", "tib", "pib", "eib"))}
_UNITS = {"": 1, "b": 1, **_SI, **_IEC}


def parse_size(text: str) -> int:
    """Bytes of `512MiB`; 0 if it is no size."""
    number = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
    unit = text[len(number) :].strip().lower()
    return int(number) * _UNITS.get(unit, 0) if number.isdigit() else 0
