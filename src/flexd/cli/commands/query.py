# SPDX-License-Identifier: Apache-2.0
"""`flexc query`: the API itself."""

from __future__ import annotations

import json
import sys

from flexd.cli.command import Command, Option, Positional
from flexd.cli.errors import CliError, UsageError
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context


def _run(context: Context, args: Arguments) -> None:
    if args.project and "project=" in args.path:
        raise UsageError("--project can't be used with a path that names a project")
    client, path = context.resolve(args.path)
    if not path.startswith("/"):
        raise UsageError("Query path must start with /")
    body = _body(args.data)
    if args.raw:
        response = client.open(args.request, path, body, headers=_headers(body))
        for chunk in response.chunks():
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        return
    reply = client.request(args.request, path, body, headers=_headers(body))
    metadata = reply.metadata
    if reply.operation and args.wait:
        metadata = client.wait(path_of("operations", metadata["id"]))
    if metadata not in (None, {}):
        print(json.dumps(metadata, indent="\t", ensure_ascii=False, sort_keys=True))


def _body(data: str) -> bytes | None:
    """The bytes to send: the data as given, `-` for standard input."""
    if not data:
        return None
    text = sys.stdin.read() if data == "-" else data
    try:
        json.loads(text)
    except ValueError as error:
        raise CliError(f"The data are not JSON: {error}") from error
    return text.encode()


def _headers(body: bytes | None) -> dict[str, Any]:
    return {"Content-Type": "application/json"} if body is not None else {}


COMMAND = Command(
    "query",
    "Send a request to the API and print the answer",
    _run,
    "[<remote>:]<API path>",
    [Positional("path")],
    [
        Option("-d", "--data", default="", help="JSON to send; - reads it from standard input"),
        Option("--raw", action="store_true", help="Print the whole answer as it came"),
        Option("-X", "--request", default="GET", help='Method (default "GET")'),
        Option("--wait", action="store_true", help="Wait for the end of an operation"),
    ],
    examples=[
        ("flexc query /1.0/instances?recursion=1", "A list"),
        ("flexc query -X DELETE --wait /1.0/instances/first", "Something asynchronous"),
        ('flexc query -X PATCH -d \'{"config": {"user.stage": "test"}}\' /1.0/instances/first', "With a body"),
    ],
)
