# SPDX-License-Identifier: Apache-2.0
"""Time on the wire: RFC 3339 in UTC; "never" is Go's zero time, year 1."""

from datetime import UTC, datetime

ZERO_TIME = datetime(1, 1, 1, tzinfo=UTC)


def now() -> datetime:
    """The current time, aware, in UTC."""
    return datetime.now(UTC)
