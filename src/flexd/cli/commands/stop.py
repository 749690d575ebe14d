# SPDX-License-Identifier: Apache-2.0
"""`flexc stop`."""

from flexd.cli.command import Option
from flexd.cli.lifecycle import ALL, CONSOLE, FORCE, TIMEOUT, state_command

COMMAND = state_command(
    "stop",
    "Stop instances",
    "stop",
    [ALL, CONSOLE, FORCE, Option("--stateful", action="store_true", help="Store the running state"), TIMEOUT],
    [("flexc stop web --timeout 30", "Give it half a minute"), ("flexc stop -f web", "Cut it off")],
)
