# SPDX-License-Identifier: Apache-2.0
"""nftables by the nft program, one transaction per change (nft(8), "-f"). Only tables that are named are touched."""

import json
import re

from flexd.host.contract import CommandFailed, HostError, Processes

_FAMILIES = frozenset({"inet", "ip", "ip6", "bridge", "arp", "netdev"})
# nft(8), "LEXICAL CONVENTIONS": identifiers begin with a letter.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")


class LinuxFirewall:
    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    async def available(self) -> str | None:
        try:
            await self.tables()
        except CommandFailed as error:
            return str(error)
        return None

    async def replace_table(self, family: str, name: str, body: str) -> None:
        table = checked_table(family, name)
        # The first line makes the second one valid where there is no such table yet.
        await self._transact(f"table {table}\ndelete table {table}\ntable {table} {{\n{body}\n}}\n")

    async def delete_table(self, family: str, name: str) -> None:
        table = checked_table(family, name)
        await self._transact(f"table {table}\ndelete table {table}\n")

    async def tables(self) -> list[tuple[str, str]]:
        done = await self._processes.run(["nft", "-j", "list", "tables"])
        return parse_tables(done.stdout)

    async def _transact(self, script: str) -> None:
        await self._processes.run(["nft", "-f", "-"], stdin=script.encode())


def checked_table(family: str, name: str) -> str:
    """`family name`, refused if it could be read as anything else by nft."""
    if family not in _FAMILIES or not _NAME.fullmatch(name):
        raise HostError(f'use nftables table "{family} {name}": not a table name')
    return f"{family} {name}"


def parse_tables(output: bytes) -> list[tuple[str, str]]:
    """libnftables-json(5): `{"nftables": [{"metainfo": …}, {"table": {"family": …, "name": …}}]}`."""
    objects = json.loads(output)["nftables"] if output.strip() else []
    return [(each["table"]["family"], each["table"]["name"]) for each in objects if "table" in each]
