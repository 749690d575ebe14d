# SPDX-License-Identifier: Apache-2.0
"""`flexc monitor`: events as they happen."""

from __future__ import annotations

import json
import sys

from flexd.cli.command import Command, Option, Positional
from flexd.cli.context import only_remote
from flexd.cli.errors import CliError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context

_LEVELS = ("trace", "debug", "info", "warning", "error", "fatal", "panic")
# The keys that a line of `--format pretty` shows by itself.
_SHOWN_ELSEWHERE = ("action", "source")


def _run(context: Context, args: Arguments) -> int:
    form = "pretty" if args.pretty else args.format
    if args.loglevel and form != "pretty":
        raise UsageError("Log level filtering can only be used with pretty formatting")
    client = only_remote(context, args.remote)
    query = {"type": ",".join(args.type)} if args.type else {}
    if args.all_projects:
        query["all-projects"] = "true"
    events = client.websocket("/1.0/events", query)
    while (message := events.receive()) is not None:
        event = json.loads(message)
        if form == "pretty" and not _is_loud(event, args.loglevel):
            continue
        sys.stdout.write(_render(form, event))
        sys.stdout.flush()
    raise CliError("The server closed the connection")


def _is_loud(event: Mapping[str, Any], least: str) -> bool:
    level = (event.get("metadata") or {}).get("level", "")
    if event.get("type") != "logging" or not least or level not in _LEVELS:
        return True
    return _LEVELS.index(level) >= _LEVELS.index(least)


def _render(form: str, event: Mapping[str, Any]) -> str:
    if form == "json":
        return json.dumps(event, separators=(",", ":"), ensure_ascii=False) + "\n"
    if form == "pretty":
        return pretty(event) + "\n"
    from flexd.cli.yamltext import dump

    return dump(event) + "\n\n"


def pretty(event: Mapping[str, Any]) -> str:
    """One line for one event."""
    metadata = event.get("metadata") or {}
    time = str(event.get("timestamp", ""))[:19].replace("T", " ")
    kind = event.get("type", "")
    if kind == "logging":
        return _line(metadata.get("level", ""), time, metadata.get("message", ""), metadata.get("context") or {})
    if kind == "lifecycle":
        extra = {key: value for key, value in (metadata.get("context") or {}).items() if key not in _SHOWN_ELSEWHERE}
        return _line("info", time, f"{metadata.get('action', '')} {metadata.get('source', '')}", extra)
    if kind == "operation":
        text = f"{metadata.get('description', '')}: {metadata.get('status', '')}"
        extra = {"id": metadata.get("id", ""), **(metadata.get("metadata") or {})}
        if metadata.get("err"):
            extra["err"] = metadata["err"]
        return _line("info", time, text, extra)
    return _line("info", time, str(kind), metadata)


def _line(level: str, time: str, text: str, extra: Mapping[str, Any]) -> str:
    details = " ".join(f"{key}={_value(value)}" for key, value in sorted(extra.items()))
    return f"{level.upper():7} [{time}] {text} {details}".rstrip()


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return json.dumps(text, ensure_ascii=False) if not text or " " in text else text


COMMAND = Command(
    "monitor",
    "Show what happens on the server",
    _run,
    "[<remote>:]",
    [Positional("remote", "?", completes="remote")],
    [
        Option("--all-projects", action="store_true", help="Events of all projects"),
        Option(
            "-f",
            "--format",
            default="yaml",
            choices=("json", "pretty", "yaml"),
            help='Format (json|pretty|yaml) (default "yaml")',
        ),
        Option("--loglevel", default="", choices=("", *_LEVELS), help="Least level of log messages, with pretty"),
        Option("--pretty", action="store_true", help="The same as --format=pretty"),
        Option(
            "--type",
            action="append",
            default=[],
            choices=("lifecycle", "logging", "operation"),
            help="Kind of event: lifecycle, logging, operation (default all)",
        ),
    ],
    examples=[
        ("flexc monitor --pretty --type=lifecycle", "One line for each thing that is created, started, deleted…"),
        ("flexc monitor --pretty --type=logging --loglevel=info", "The server's log"),
    ],
)
