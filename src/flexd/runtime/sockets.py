# SPDX-License-Identifier: Apache-2.0
"""Waiting for sockets whose ancillary data (unix(7)) asyncio's own calls would drop."""

import asyncio
import socket


async def wait_readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(connection, _settle, ready)
    try:
        await ready
    finally:
        loop.remove_reader(connection)


async def wait_writable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(connection, _settle, ready)
    try:
        await ready
    finally:
        loop.remove_writer(connection)


async def receive_with_ancillary(
    connection: socket.socket, count: int, ancillary_bytes: int
) -> tuple[bytes, list[tuple[int, int, bytes]]]:
    """Up to `count` bytes, none at the end; received descriptors are close-on-exec."""
    while True:
        await wait_readable(connection)
        try:
            data, ancillary, _, _ = connection.recvmsg(count, ancillary_bytes, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            continue
        return data, ancillary


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
