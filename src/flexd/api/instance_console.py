# SPDX-License-Identifier: Apache-2.0
"""Wire types of LXD's `/1.0` API: instance console."""

from msgspec import Struct


class InstanceConsolePost(Struct):
    height: int = 0
    type: str = ""
    width: int = 0
