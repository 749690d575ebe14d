# SPDX-License-Identifier: Apache-2.0
"""Protocol Buffers on the wire (encoding only, no schemas), as much as CRIU's calls and images need: numbers, and
bytes that are texts or messages. What is not asked for survives decoding and encoding unchanged."""

from collections.abc import Iterable

from flexd.api.errors import FlexdError

Value = int | bytes
Field = tuple[int, Value]  # its number, and what it holds

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}


class Malformed(FlexdError):
    """These bytes are no message."""


def encode(fields: Iterable[Field]) -> bytes:
    """A message. Numbers become varints (negative ones in 10 bytes, as int32 and int64 are)."""
    out = bytearray()
    for number, value in fields:
        if isinstance(value, int):
            out += _varint(number << 3 | _VARINT) + _varint(value & (1 << 64) - 1)
        else:
            out += _varint(number << 3 | _BYTES) + _varint(len(value)) + value
    return bytes(out)


def decode(data: bytes) -> list[Field]:
    """The fields of a message in their order; `Malformed` if it is none."""
    fields: list[Field] = []
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position)
        kind = key & 7
        if kind == _VARINT:
            value, position = _read_varint(data, position)
            fields.append((key >> 3, value))
            continue
        if kind == _BYTES:
            length, position = _read_varint(data, position)
        elif kind in _FIXED:
            raise Malformed(f"a field of {_FIXED[kind]} fixed bytes at {position}, which no message here has")
        else:
            raise Malformed(f"wire type {kind} at {position}")
        if position + length > len(data):
            raise Malformed(f"a field at {position} is longer than the message")
        fields.append((key >> 3, data[position : position + length]))
        position += length
    return fields


def first(fields: Iterable[Field], number: int) -> Value | None:
    """What a field holds that is there at most once."""
    return next((value for found, value in fields if found == number), None)


def number_of(fields: Iterable[Field], number: int) -> int:
    """As `first`, of a number; 0 if it is not there."""
    value = first(fields, number)
    return value if isinstance(value, int) else 0


def text_of(fields: Iterable[Field], number: int) -> str:
    """As `first`, of a text; "" if it is not there."""
    value = first(fields, number)
    return value.decode(errors="replace") if isinstance(value, bytes) else ""


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise Malformed(f"a number at {position} does not end")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
        shift += 7
