# SPDX-License-Identifier: Apache-2.0
"""Which hosts need no proxy, which keyring is whose, what the images' settings may say."""

import pytest

from flexd.images.keys import KEYS
from flexd.images.simplestreams import keyring_of
from flexd.images.transfer import is_ignored


@pytest.mark.parametrize(
    ("host", "ignored", "expected"),
    [
        ("a.example", "a.example", True),
        ("A.Example", "a.example", True),
        ("b.a.example", "a.example", True),
        ("b.a.example", ".a.example", True),
        ("ba.example", "a.example", False),
        ("198.18.70.9", "198.18.70.0/24", True),
        ("198.18.71.9", "198.18.70.0/24", False),
        ("fd42::1", "fd42::/16", True),
        ("x", "*", True),
        ("x", "", False),
        ("x", "y, x", True),
    ],
)
def test_hosts_without_a_proxy(host: str, ignored: str, expected: bool) -> None:
    assert is_ignored(host, ignored) is expected


@pytest.mark.parametrize(
    ("setting", "host", "expected"),
    [
        ("", "a", ""),
        ("/k.gpg", "a", "/k.gpg"),
        ("a=/a.gpg, /k.gpg", "a", "/a.gpg"),
        ("a=/a.gpg,/k.gpg", "b", "/k.gpg"),
        ("a=/a.gpg", "b", ""),
        ("a=,/k.gpg", "a", ""),
    ],
)
def test_keyrings(setting: str, host: str, expected: str) -> None:
    assert keyring_of(setting, host) == expected


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("images.compression_algorithm", "gzip -9", None),
        ("images.compression_algorithm", "none", None),
        ("images.compression_algorithm", "rm -rf /", "expected one of"),
        ("images.default_architecture", "arm64", None),
        ("images.default_architecture", "pdp11", 'architecture "pdp11" is not known'),
        ("images.remote_cache_expiry", "-1", "expected 0 or more"),
        ("images.auto_update_interval", "x", "expected an integer"),
        ("core.proxy_http", "proxy:3128", "expected http://"),
        ("core.proxy_https", "http://proxy:3128", None),
    ],
)
def test_settings(name: str, value: str, fault: str | None) -> None:
    (key,) = (key for key in KEYS if key.name == name)
    found = key.fault(value)
    assert found is None if fault is None else fault in (found or "")
