# SPDX-License-Identifier: Apache-2.0
"""`/1.0/events`: a websocket of operation, lifecycle and logging events."""

import asyncio
from collections.abc import Sequence

import msgspec
from aiohttp import web

from flexd.api.errors import BadRequest, Forbidden
from flexd.api.event import Event
from flexd.operations.events import Subscription
from flexd.server.call import Call
from flexd.server.endpoint import Endpoint
from flexd.server.websocket import WebSocketChannel

_KINDS = ("logging", "operation", "lifecycle")
# Proxies drop an idle connection after 30-60 s; LXD pings every 10.
_HEARTBEAT_S = 10.0

_encoder = msgspec.json.Encoder()


async def follow_events(call: Call) -> web.StreamResponse:
    """Subscribed before the 101 is sent: a client that then starts an operation misses nothing of it."""
    kinds = [kind for kind in call.query("type").split(",") if kind] or list(_KINDS)
    for kind in kinds:
        if kind not in _KINDS:
            raise BadRequest(f'"{kind}" isn\'t a supported event type')
    if call.caller.restricted:
        kinds = _check_restricted(call, kinds)
    project = None if len(call.projects) > 1 or call.flag("all-projects") else call.project
    channel = WebSocketChannel(call.request, call.sockets, heartbeat_s=_HEARTBEAT_S)
    with call.services.events.subscribe(kinds, project) as stream:
        await channel.open()
        await _until_either_ends(stream, channel)
    await channel.close()
    return channel.response


def _check_restricted(call: Call, kinds: Sequence[str]) -> list[str]:
    """The daemon's log is about everybody; one listener hears one project, or all."""
    if call.flag("all-projects") or (call.query("type") and "logging" in kinds):
        raise Forbidden("not authorized")
    return [kind for kind in kinds if kind != "logging"]


async def _until_either_ends(stream: Subscription, channel: WebSocketChannel) -> None:
    """Clients say nothing here; reading answers pings and sees them leave."""
    tasks = [asyncio.create_task(_forward(stream, channel)), asyncio.create_task(channel.pump(discard=True))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _forward(stream: Subscription, channel: WebSocketChannel) -> None:
    async for event in stream:
        await channel.send(_render(event))


def _render(event: Event) -> str:
    return _encoder.encode(event).decode()


ENDPOINTS = (Endpoint("/1.0/events", {"GET": follow_events}),)
