# SPDX-License-Identifier: Apache-2.0
"""`flexc pause`."""

from flexd.cli.lifecycle import ALL, state_command

COMMAND = state_command(
    "pause",
    "Pause instances",
    "freeze",
    [ALL],
    [
        ("flexc pause web", "Freeze its processes; flexc start web lets them go on"),
    ],
)
