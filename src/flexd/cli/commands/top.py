# SPDX-License-Identifier: Apache-2.0
"""`flexc top`: what running instances use, again and again."""

from __future__ import annotations

import sys
import time

from flexd.cli.command import Command, Option, Positional
from flexd.cli.context import only_remote
from flexd.cli.show import size_iec
from flexd.cli.table import render

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context

_HEADER = ["name", "cpu %", "cpu time", "memory", "disk", "processes", "received", "sent"]
_CLEAR = "\033[H\033[2J"
_ORDERS = {"cpu": 0, "memory": 1, "disk": 2, "name": 3}


def _run(context: Context, args: Arguments) -> None:
    client = only_remote(context, args.remote)
    if not args.interval.isdecimal() or not int(args.interval):
        from flexd.cli.errors import UsageError

        raise UsageError(f'Invalid interval "{args.interval}": a number of seconds')
    rounds = 1 if args.once else 0
    before: dict[str, tuple[float, int]] = {}
    shown = 0
    while True:
        running = [each for each in client.get("/1.0/instances", {"recursion": "2"}) or [] if each.get("state")]
        seen = time.monotonic()
        table = render("compact", _HEADER, _rows(running, before, seen, args.sort), None)
        sys.stdout.write((_CLEAR if sys.stdout.isatty() and not args.once else "") + table)
        sys.stdout.flush()
        before = {each["name"]: (seen, each["state"]["cpu"]["usage"]) for each in running}
        shown += 1
        if shown == rounds:
            return
        time.sleep(int(args.interval))


def _rows(
    running: list[dict[str, Any]], before: dict[str, tuple[float, int]], seen: float, order: str
) -> list[list[str]]:
    """One row for each instance that runs, the greatest first."""
    found = []
    for each in running:
        state = each["state"]
        if state["status"] != "Running":
            continue
        load = _load(before.get(each["name"]), seen, state["cpu"]["usage"])
        memory = state["memory"]["usage"]
        disk = sum(part["usage"] for part in (state["disk"] or {}).values())
        links = [link["counters"] for name, link in (state["network"] or {}).items() if name != "lo"]
        row = [
            each["name"],
            f"{load:.1f}",
            f"{state['cpu']['usage'] / 1e9:.1f}s",
            size_iec(memory),
            size_iec(disk) if disk else "",
            str(state["processes"]),
            size_iec(sum(link["bytes_received"] for link in links)),
            size_iec(sum(link["bytes_sent"] for link in links)),
        ]
        found.append(((-load, -memory, -disk, each["name"]), row))
    key = _ORDERS[order]
    return [row for _, row in sorted(found, key=lambda item: (item[0][key], item[0][3]))]


def _load(before: tuple[float, int] | None, seen: float, usage_ns: int) -> float:
    """Per cent of one CPU since the last look; 0 at the first."""
    if before is None or seen <= before[0]:
        return 0.0
    return max(usage_ns - before[1], 0) / 1e7 / (seen - before[0])


COMMAND = Command(
    "top",
    "Show what running instances use",
    _run,
    "[<remote>:]",
    [Positional("remote", "?", completes="remote")],
    [
        Option("-s", "--sort", default="cpu", choices=tuple(_ORDERS), help="Order (cpu|memory|disk|name)"),
        Option("-i", "--interval", default="2", help="Seconds between two looks (default 2)"),
        Option("--once", action="store_true", help="Look once, for a script"),
    ],
    details="CPU is per cent of one CPU since the last look. Ctrl-C ends it.",
    examples=[("flexc top -s memory", "The greatest users of memory first")],
)
