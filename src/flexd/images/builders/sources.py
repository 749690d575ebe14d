# SPDX-License-Identifier: Apache-2.0
"""Which mirrors this machine's apt uses (sources.list(5), one-line and deb822 style); pure."""

import re
from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct

_ONE_LINE = re.compile(r"deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s*(.*)")


class HostSource(Struct, frozen=True):
    uri: str
    suite: str


def parse_sources(files: Mapping[str, str]) -> list[HostSource]:
    """Every archive that packages are taken from, in the order of the file names."""
    found: list[HostSource] = []
    for name in sorted(files):
        found += _deb822(files[name]) if name.endswith(".sources") else _one_line(files[name])
    return found


def _one_line(text: str) -> Iterator[HostSource]:
    for line in text.splitlines():
        match = _ONE_LINE.fullmatch(line.partition("#")[0].strip())
        if match is not None:
            yield HostSource(match[1].rstrip("/"), match[2])


def _deb822(text: str) -> Iterator[HostSource]:
    for stanza in re.split(r"\n\s*\n", text):
        fields = _fields(stanza)
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false"):
            continue
        for uri in fields.get("uris", "").split():
            yield from (HostSource(uri.rstrip("/"), suite) for suite in fields.get("suites", "").split())


def _fields(stanza: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    last = ""
    for line in stanza.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        if line[0] in " \t" and last:
            fields[last] += " " + line.strip()
        else:
            name, _, value = line.partition(":")
            last = name.strip().lower()
            fields[last] = value.strip()
    return fields


def mirror_of(sources: Iterable[HostSource], suites: Iterable[str], default: str) -> str:
    """The machine's mirror for an archive that has one of these suites; only HTTP, which any place can reach."""
    wanted = set(suites)
    for source in sources:
        if source.suite in wanted and source.uri.startswith(("http://", "https://")):
            return source.uri
    return default
