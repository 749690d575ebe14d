# SPDX-License-Identifier: Apache-2.0
"""Faults of the command itself; what servers answer is `flexd.client.errors.ClientError`."""


class CliError(Exception):
    """Something the person can put right; printed as `Error: …`."""


class UsageError(CliError):
    """The words can't be understood; a pointer to `--help` is printed too."""
