# SPDX-License-Identifier: Apache-2.0
"""Routes of the guest API. LXD answers without an envelope: plain JSON, plain text, and errors as text."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web

from flexd.api.errors import BadRequest
from flexd.instances.guest import EVENT_KINDS, Guest, GuestEvent, GuestInstance
from flexd.server.decode import decode
from flexd.server.streaming import FilePart, send_parts, send_path
from flexd.server.websocket import OpenSockets, WebSocketChannel

Handler = Callable[[web.Request, Guest, GuestInstance], Awaitable[web.StreamResponse]]

SOCKETS = web.AppKey("guest_sockets", OpenSockets)
# LXD pings every 10 s.
_HEARTBEAT_S = 10.0


class _StatePatch(msgspec.Struct):
    state: str = ""


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value) + b"\n", content_type="application/json")


def _raw(text: str) -> web.Response:
    return web.Response(body=text.encode(), content_type="application/octet-stream")


async def root(_request: web.Request, guest: Guest, asking: GuestInstance) -> web.StreamResponse:
    guest.check(asking)
    return _json(["/1.0"])


async def show(_request: web.Request, guest: Guest, asking: GuestInstance) -> web.StreamResponse:
    state = guest.state(asking)
    return _json({"api_version": "1.0", "location": "none", "instance_type": "container", "state": state})


async def patch(request: web.Request, guest: Guest, asking: GuestInstance) -> web.StreamResponse:
    await guest.set_state(asking, decode(await request.read(), _StatePatch).state)
    return _raw("")


async def list_config(_request: web.Request, guest: Guest, asking: GuestInstance) -> web.StreamResponse:
    return _json([f"/1.0/config/{key}" for key in guest.config(asking)])


async def show_config(request: web.Request, guest: Guest, asking: GuestInstance) -> web.StreamResponse:
    return _raw(guest.config_value(asking, request.match_info["key"]))


async def meta_data(_request: web.Request, guest: Guest, asking: GuestInstance) -> web.StreamResponse:
    return _raw(guest.meta_data(asking))


async def devices(_request: web.Request, guest: Guest, asking: GuestInstance) -> web.StreamResponse:
    return _json(guest.devices(asking))


async def export_image(request: web.Request, guest: Guest, asking: GuestInstance) -> web.StreamResponse:
    files = await guest.image_files(asking, request.match_info["fingerprint"])
    if files.rootfs is None:
        return await send_path(request, files.metadata, files.metadata_name)
    parts = [
        FilePart("metadata", files.metadata_name, files.metadata),
        FilePart("rootfs", files.rootfs_name, files.rootfs),
    ]
    return await send_parts(request, parts, boundary=secrets.token_hex(16))


async def follow_events(request: web.Request, guest: Guest, asking: GuestInstance) -> web.StreamResponse:
    """A websocket, or one line of JSON an event for a client that does not upgrade."""
    kinds = frozenset(kind for kind in request.query.get("type", "").split(",") if kind) or EVENT_KINDS
    if not kinds <= EVENT_KINDS:
        raise BadRequest(f'"{", ".join(sorted(kinds - EVENT_KINDS))}" isn\'t a supported event type')
    guest.check(asking)
    events = guest.events(asking, kinds)
    if request.headers.get("Upgrade", "").lower() == "websocket":
        return await _by_websocket(request, events)
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    async for event in events:
        await response.write(msgspec.json.encode(event) + b"\n")
    await response.write_eof()
    return response


async def _by_websocket(request: web.Request, events: AsyncIterator[GuestEvent]) -> web.StreamResponse:
    channel = WebSocketChannel(request, request.app[SOCKETS], heartbeat_s=_HEARTBEAT_S)
    await channel.open()
    tasks = [asyncio.create_task(_forward(events, channel)), asyncio.create_task(channel.pump(discard=True))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await channel.close()
    return channel.response


async def _forward(events: AsyncIterator[GuestEvent], channel: WebSocketChannel) -> None:
    async for event in events:
        await channel.send(msgspec.json.encode(event).decode())


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/", root),
    ("GET", "/1.0", show),
    ("PATCH", "/1.0", patch),
    ("GET", "/1.0/config", list_config),
    ("GET", "/1.0/config/{key}", show_config),
    ("GET", "/1.0/devices", devices),
    ("GET", "/1.0/events", follow_events),
    ("GET", "/1.0/images/{fingerprint}/export", export_image),
    ("GET", "/1.0/meta-data", meta_data),
)


def error(status: int, message: str) -> web.Response:
    return web.Response(status=status, text=(message or HTTPStatus(status).phrase) + "\n")
