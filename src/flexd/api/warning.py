# SPDX-License-Identifier: Apache-2.0
"""Wire types of LXD's `/1.0` API: warning."""

from datetime import datetime

from msgspec import Struct

from flexd.api.times import ZERO_TIME


class Warning(Struct):
    count: int = 0
    entity_url: str = ""
    first_seen_at: datetime = ZERO_TIME
    last_message: str = ""
    last_seen_at: datetime = ZERO_TIME
    location: str = ""
    project: str = ""
    severity: str = ""
    status: str = ""
    type: str = ""
    uuid: str = ""


class WarningPut(Struct):
    status: str = ""
