# SPDX-License-Identifier: Apache-2.0
"""`flexc restart`."""

from flexd.cli.lifecycle import ALL, CONSOLE, FORCE, TIMEOUT, state_command

COMMAND = state_command(
    "restart",
    "Restart instances",
    "restart",
    [ALL, CONSOLE, FORCE, TIMEOUT],
    [
        ("flexc restart web", "Shut it down cleanly and start it again"),
    ],
)
