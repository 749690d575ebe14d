# SPDX-License-Identifier: Apache-2.0
"""Wire types of LXD's `/1.0` API: instance exec."""

from msgspec import Struct, field


class InstanceExecPost(Struct):
    command: list[str] = field(default_factory=list)
    cwd: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    group: int = 0
    height: int = 0
    interactive: bool = False
    record_output: bool = field(name="record-output", default=False)
    user: int = 0
    wait_for_websocket: bool = field(name="wait-for-websocket", default=False)
    width: int = 0
