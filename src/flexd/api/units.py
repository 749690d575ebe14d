# SPDX-License-Identifier: Apache-2.0
"""Sizes, booleans and durations as LXD's configuration writes them."""

import re

from flexd.api.errors import BadRequest

# LXD: plain and binary suffixes are powers of 1024 (kiB…), SI ones of 1000 (kB…).
_BYTE_UNITS = {
    "": 1,
    "B": 1,
    "bytes": 1,
    **{prefix + "B": 1000**power for power, prefix in enumerate(("k", "M", "G", "T", "P", "E"), start=1)},
    **{prefix + "iB": 1024**power for power, prefix in enumerate(("K", "M", "G", "T", "P", "E"), start=1)},
    "kiB": 1024,
    "KB": 1000,
}
_BIT_UNITS = {
    "": 1,
    "bit": 1,
    **{prefix + "bit": 1000**power for power, prefix in enumerate(("k", "M", "G", "T", "P", "E"), start=1)},
    **{prefix + "ibit": 1024**power for power, prefix in enumerate(("K", "M", "G", "T", "P", "E"), start=1)},
}
_SIZE = re.compile(r"([0-9]+)\s*([A-Za-z]*)")
_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off", ""})


def parse_size(text: str) -> int:
    """Bytes of `10GiB`, `512MB`, `1024`; empty means 0 (no limit)."""
    if not text:
        return 0
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2] not in _BYTE_UNITS:
        raise BadRequest(f'Invalid size "{text}": expected a number and one of B, kB, MB, GB, TB, KiB, MiB, GiB, TiB')
    return int(match[1]) * int(_BYTE_UNITS[match[2]])


def parse_bits(text: str) -> int:
    """Bits (per second) of `100Mbit`, `1Gibit`, `5000`; empty means 0 (no limit)."""
    if not text:
        return 0
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2] not in _BIT_UNITS:
        raise BadRequest(
            f'Invalid rate "{text}": expected a number and one of bit, kbit, Mbit, Gbit, Kibit, Mibit, Gibit'
        )
    return int(match[1]) * int(_BIT_UNITS[match[2]])


def parse_bool(text: str) -> bool:
    """True of `true`, `1`, `yes`, `on` in any case; false of the opposites and of the empty string."""
    lowered = text.lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise BadRequest(f'Invalid boolean "{text}": expected true or false')


def is_true(text: str | None) -> bool:
    """`parse_bool` of a value already validated or absent."""
    return text is not None and text.lower() in _TRUE


def format_size(size_bytes: int) -> str:
    """`1.50MiB`: two decimals and a binary unit, as `lxc` prints sizes."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024 or unit == "PiB":
            return f"{size_bytes}B" if unit == "B" else f"{value:.2f}{unit}"
        value /= 1024
    raise AssertionError("unreachable")
