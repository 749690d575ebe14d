# SPDX-License-Identifier: Apache-2.0
"""`/1.0/metrics`, for Prometheus."""

import asyncio
from collections.abc import Iterable

from aiohttp import web

from flexd.api.instance import InstanceFull
from flexd.server.call import Call
from flexd.server.endpoint import Endpoint


async def show_metrics(call: Call) -> web.Response:
    """Of one project if it is named, else of all, as LXD does."""
    allowed = [project for project in call.services.projects.names() if call.caller.may_use(project)]
    projects = (call.project,) if call.query("project") else allowed
    found = [instance for project in projects for instance in await call.services.states.full(project)]
    return web.Response(body=await asyncio.to_thread(_render, found), content_type="text/plain")


def _render(instances: Iterable[InstanceFull]) -> bytes:
    from flexd.server.metrics import render_metrics  # with Prometheus' library, where nobody may ever ask

    return render_metrics(instances)


ENDPOINTS = (Endpoint("/1.0/metrics", {"GET": show_metrics}),)
