# SPDX-License-Identifier: Apache-2.0
"""Questions to the person."""

from __future__ import annotations

import sys


def confirm(question: str, expected: str = "") -> bool:
    """True if the answer is yes, or what is expected (the fingerprint that somebody was told)."""
    print(question, end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline().strip().lower()
    return answer in ("y", "yes") or (expected != "" and answer == expected)


def ask_secret(question: str) -> str:
    """A password, not shown while it is typed."""
    from getpass import getpass

    return getpass(question)
