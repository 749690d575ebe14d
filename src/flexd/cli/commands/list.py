# SPDX-License-Identifier: Apache-2.0
"""`flexc list`."""

from __future__ import annotations

from flexd.cli.columns import DEFAULT_COLUMNS, FAST_COLUMNS, needs_state, parse_columns
from flexd.cli.command import Command, Option, Positional
from flexd.cli.table import natural_key, print_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.client.client import Client

_DETAILS = """
Filters select by name (a prefix or a regular expression), by configuration (key=value; parts of the key may be
shortened: u.stage=test) or by type=, status=, architecture=, location=, ipv4= and ipv6= (several values: a,b).
All filters must fit.

Columns (-c): letters, and configuration keys as key[:TITLE][:WIDTH], devices:eth0.parent for devices.
  4 - IPv4 addresses           m - Memory used
  6 - IPv6 addresses           M - Memory used, of its limit
  a - Architecture             n - Name
  b - Storage pool             N - Number of processes
  c - Creation time            p - PID of the init process
  d - Description              P - Profiles
  D - Disk used                s - State
  e - Project                  S - Number of snapshots
  f, F - Image, short, long    t - Type
  l - Last used                u - CPU time used, in seconds
  L - Location in a cluster
"""


def _run(context: Context, args: Arguments) -> None:
    client, filters = _server_and_filters(context, args.filter)
    columns = FAST_COLUMNS if args.fast else args.columns or DEFAULT_COLUMNS
    chosen = parse_columns(columns)
    full = args.format in ("json", "yaml") or needs_state(chosen)
    query = {"recursion": "2" if full else "1"}
    if args.all_projects:
        query["all-projects"] = "true"
    instances: list[dict[str, Any]] = client.get("/1.0/instances", query) or []
    if filters:
        from flexd.cli.filters import matches_all

        instances = [instance for instance in instances if matches_all(instance, filters)]
    if not args.columns and any(instance.get("location") not in ("", "none", None) for instance in instances):
        chosen += parse_columns("L")
    if args.all_projects and not args.columns:
        chosen = parse_columns("e") + chosen
    rows = sorted(([column.value(instance) for column in chosen] for instance in instances), key=natural_key)
    print_list(args.format, [column.title for column in chosen], rows, instances)


def _server_and_filters(context: Context, words: list[str]) -> tuple[Client, list[str]]:
    if words and ":" in words[0] and "=" not in words[0]:
        client, first = context.resolve(words[0])
        return client, [*([first] if first else []), *words[1:]]
    return context.client(), words


COMMAND = Command(
    "list",
    "List instances",
    _run,
    "[<remote>:] [<filter>...]",
    [Positional("filter", "*", completes="instance")],
    [
        Option("-c", "--columns", default="", help=f'Columns (default "{DEFAULT_COLUMNS}")'),
        Option(
            "-f",
            "--format",
            default="table",
            choices=("csv", "json", "table", "yaml", "compact"),
            help='Format (csv|json|table|yaml|compact) (default "table")',
        ),
        Option("--fast", action="store_true", help=f'Without live state, the same as -c "{FAST_COLUMNS}"'),
        Option("--all-projects", action="store_true", help="Instances of all projects"),
    ],
    details=_DETAILS,
    examples=[
        ("flexc list web status=running", "Running instances with a name that begins with web"),
        ("flexc list -c ns4,image.os:OS,devices:eth0.network:NET", "Choose columns"),
        ("flexc list -f csv -c n4", "For a script"),
    ],
    aliases=["ls"],
)
