# SPDX-License-Identifier: Apache-2.0
"""Wire types of LXD's `/1.0` API: operation."""

from datetime import datetime
from typing import Any

from msgspec import Struct, field

from flexd.api.times import ZERO_TIME


class Operation(Struct):
    class_: str = field(name="class", default="")
    created_at: datetime = ZERO_TIME
    description: str = ""
    err: str = ""
    id: str = ""
    location: str = ""
    may_cancel: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)
    resources: dict[str, list[str]] = field(default_factory=dict)
    status: str = ""
    status_code: int = 0
    updated_at: datetime = ZERO_TIME
