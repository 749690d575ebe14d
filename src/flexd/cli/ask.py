# SPDX-License-Identifier: Apache-2.0
"""Questions to the person."""

from __future__ import annotations

import sys


def confirm(question: str) -> bool:
    """True if the answer is yes."""
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def ask_secret(question: str) -> str:
    """A password, not shown while it is typed."""
    from getpass import getpass

    return getpass(question)
