# SPDX-License-Identifier: Apache-2.0
"""Connections that notice a cut link: one that only waits, and one whose data is not acknowledged."""

import socket
from typing import Any

# Within 30 s in both cases (tcp(7)): four probes, 5 s apart, after 10 s of silence.
_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
)


def keep_alive(connection: Any) -> None:
    """Of a unix socket there is nothing to notice. `connection`: a socket, or what asyncio shows of one, or None."""
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        for level, option, value in _OPTIONS:
            connection.setsockopt(level, option, value)
