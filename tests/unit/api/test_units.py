# SPDX-License-Identifier: Apache-2.0
"""Sizes and booleans."""

import pytest

from flexd.api.errors import BadRequest
from flexd.api.units import format_size, is_true, parse_bits, parse_bool, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("", 0), ("7", 7), ("10B", 10), ("1kB", 1000), ("1KiB", 1024), ("2GiB", 2 << 30), ("3 MB", 3_000_000)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["x", "-1", "1.5GiB", "10XB", "GiB", "10gib"])
def test_bad_sizes(text):
    with pytest.raises(BadRequest, match="Invalid size"):
        parse_size(text)


def test_booleans():
    assert parse_bool("True")
    assert parse_bool("on")
    assert not parse_bool("0")
    with pytest.raises(BadRequest, match="Invalid boolean"):
        parse_bool("maybe")
    assert not is_true(None)


def test_formatted_sizes():
    assert format_size(10) == "10B"
    assert format_size(1536) == "1.50KiB"
    assert format_size(5 << 30) == "5.00GiB"


@pytest.mark.parametrize(
    ("text", "bits"), [("", 0), ("5000", 5000), ("8Mbit", 8_000_000), ("1 Gbit", 10**9), ("2Kibit", 2048)]
)
def test_bits(text: str, bits: int) -> None:
    assert parse_bits(text) == bits


@pytest.mark.parametrize("text", ["fast", "8MB", "-1", "1.5Mbit"])
def test_wrong_bits(text: str) -> None:
    with pytest.raises(BadRequest, match="Invalid rate"):
        parse_bits(text)
