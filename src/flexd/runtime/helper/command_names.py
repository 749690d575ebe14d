# SPDX-License-Identifier: Apache-2.0
"""Addresses of liblxc's command sockets (monitor.c): abstract, so they end with who listens."""

import os

# sun_path without the leading NUL and, as liblxc counts, a closing one.
_LONGEST_NAME = 106


def socket_name(directory: str | os.PathLike[str], name: str) -> str:
    """A hash stands in for a path that is too long."""
    plain = f"\0{os.fspath(directory)}/{name}/command"
    if len(plain.encode()) - 1 <= _LONGEST_NAME:
        return plain
    return f"\0lxc/{_fnv64a(f'{os.fspath(directory)}/{name}'.encode()):016x}/command"


def _fnv64a(data: bytes) -> int:
    """FNV-1a, 64 bits."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value
