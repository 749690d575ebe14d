# SPDX-License-Identifier: Apache-2.0
"""Wire types of LXD's `/1.0` API: event."""

from datetime import datetime
from typing import Any

from msgspec import Struct, field

from flexd.api.times import ZERO_TIME


class Event(Struct):
    location: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    project: str = ""
    timestamp: datetime = ZERO_TIME
    type: str = ""
