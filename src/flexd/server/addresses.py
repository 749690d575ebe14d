# SPDX-License-Identifier: Apache-2.0
"""Addresses to listen on, as `core.https_address` names them: `10.0.0.1`, `[::]:8443`, `:8443`, `host`, several with
commas between them (LXD takes one). Pure."""

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache

from msgspec import Struct

from flexd.api.errors import BadRequest

HTTPS_PORT = 8443
METRICS_PORT = 9100
# RFC 1123 2.1, and what resolvers take beyond it.
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_.])?")
_ANY = ("", "*")


class Address(Struct, frozen=True, order=True):
    """`host` without brackets; "" is every address, IPv4 and IPv6."""

    host: str
    port: int

    @property
    def is_wildcard(self) -> bool:
        return self.host in ("", "::", "0.0.0.0")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_addresses(text: str, default_port: int = HTTPS_PORT) -> tuple[Address, ...]:
    """Each once, in the order given; BadRequest names the one that is wrong."""
    found = (parse_address(part.strip(), default_port) for part in text.split(",") if part.strip())
    return tuple(dict.fromkeys(found))


def parse_address(text: str, default_port: int = HTTPS_PORT) -> Address:
    host, port = _split(text)
    if host in _ANY:
        host = ""
    elif not _is_ip(host) and (not _HOST_NAME.fullmatch(host) or re.fullmatch(r"[0-9.]+", host)):
        raise BadRequest(f'invalid address "{text}" (expected ADDRESS, ADDRESS:PORT, [IPv6]:PORT or :PORT)')
    if not port:
        return Address(host, default_port)
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise BadRequest(f'invalid address "{text}": the port must be a number from 1 to 65535')
    return Address(host, int(port))


def _split(text: str) -> tuple[str, str]:
    """Host and port; "" where there is none."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        # Brackets around anything but an IPv6 address are a mistake.
        if not bracket or not _is_ip6(host) or (rest and not rest.startswith(":")) or rest == ":":
            raise BadRequest(f'invalid address "{text}" (expected [IPv6]:PORT)')
        return host, rest[1:]
    if _is_ip6(text):
        return text, ""
    host, colon, port = text.rpartition(":")
    if not colon:
        return text, ""
    if not port or ":" in host:
        raise BadRequest(f'invalid address "{text}" (expected ADDRESS, ADDRESS:PORT, [IPv6]:PORT or :PORT)')
    return host, port


@lru_cache(maxsize=8)
def parse_proxies(text: str) -> frozenset[str]:
    """Addresses without ports, commas between; BadRequest names the one that is wrong."""
    found = set()
    for part in filter(None, map(str.strip, text.split(","))):
        try:
            found.add(str(ipaddress.ip_address(part)))
        except ValueError as error:
            raise BadRequest(f'invalid address "{part}" (expected an IP address)') from error
    return frozenset(found)


def proxies_fault(text: str) -> str | None:
    """For rows of configuration keys."""
    try:
        parse_proxies(text)
    except BadRequest as error:
        return str(error)
    return None


def addresses_fault(default_port: int, text: str) -> str | None:
    """For rows of configuration keys."""
    try:
        found = parse_addresses(text, default_port)
    except BadRequest as error:
        return str(error)
    return None if found else f'invalid value "{text}" (expected an address)'


def reachable(listening: Iterable[Address], own: Iterable[str]) -> list[str]:
    """What to tell clients: a wildcard becomes each of the host's `own` addresses that others can reach."""
    found: list[str] = []
    for address in listening:
        if not address.is_wildcard:
            found.append(str(address))
            continue
        found += [str(Address(each, address.port)) for each in own if _suits(each, address.host)]
    return list(dict.fromkeys(found))


def _suits(own: str, host: str) -> bool:
    parsed = ipaddress.ip_address(own)
    if parsed.is_loopback or parsed.is_link_local or parsed.is_multicast or parsed.is_unspecified:
        return False
    return parsed.version == 4 or host != "0.0.0.0"


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_ip6(text: str) -> bool:
    return ":" in text and _is_ip(text)
