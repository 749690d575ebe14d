# SPDX-License-Identifier: Apache-2.0
"""`flexc start`."""

from flexd.cli.command import Option
from flexd.cli.lifecycle import ALL, CONSOLE, state_command

COMMAND = state_command(
    "start",
    "Start instances",
    "start",
    [ALL, CONSOLE, Option("--stateless", action="store_true", help="Ignore a stored running state")],
    [("flexc start web db", "Two at once"), ("flexc start --all", "Every one that is stopped or paused")],
)
