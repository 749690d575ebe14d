# SPDX-License-Identifier: Apache-2.0
"""One request as a handler sees it: who asks, which project, path, query and body; and the services."""

import asyncio
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import msgspec
from aiohttp import web

from flexd.api.errors import BadRequest, FlexdError, Forbidden
from flexd.api.units import is_true
from flexd.projects.projects import Feature
from flexd.projects.record import DEFAULT_PROJECT
from flexd.server.decode import decode, merged
from flexd.server.etag import check_etag
from flexd.server.filtering import Filter, parse_filter
from flexd.server.services import Services
from flexd.server.transport import tls_of
from flexd.server.websocket import OpenSockets

T = TypeVar("T", bound=msgspec.Struct)


# A JSON body that has not arrived by then is given up: a stranger's holds a certificate, others' up to 16 MiB.
_BODY_S, _STRANGERS_BODY_S = 300.0, 20.0


class TooSlow(FlexdError):
    status = 408


@dataclass(frozen=True)
class Caller:
    """Who is at the other end. Whoever may open the unix socket is trusted: root and the socket's group.

    `projects`: those a `restricted` certificate may use. `reason`: why a certificate is not trusted."""

    username: str
    protocol: str
    address: str
    trusted: bool
    fingerprint: str = ""
    kind: str = "client"
    restricted: bool = False
    projects: tuple[str, ...] = ()
    reason: str = ""
    metrics_only: bool = False

    @property
    def is_admin(self) -> bool:
        return self.trusted and not self.restricted

    def may_use(self, project: str) -> bool:
        return not self.restricted or project in self.projects


@dataclass
class Call:
    request: web.Request
    services: Services
    caller: Caller
    sockets: OpenSockets

    def param(self, name: str) -> str:
        """A path parameter, percent-decoded."""
        return self.request.match_info[name]

    def query(self, name: str, default: str = "") -> str:
        return self.request.query.get(name, default)

    def flag(self, name: str) -> bool:
        return is_true(self.query(name))

    @property
    def project(self) -> str:
        """`project=`; empty means default (Ansible sends it empty)."""
        return self.query("project") or DEFAULT_PROJECT

    def check_project(self) -> None:
        """Called for every request, also where the project makes no difference."""
        self.services.projects.find(self.project)

    @cached_property
    def projects(self) -> tuple[str, ...]:
        """The projects a list is about: one, or all with `all-projects=true`."""
        if not self.flag("all-projects"):
            return (self.project,)
        if self.query("project"):
            raise BadRequest("Cannot specify a project when requesting all projects")
        return tuple(project for project in self.services.projects.names() if self.caller.may_use(project))

    def owner(self, feature: Feature) -> str:
        """Whose images (profiles, …) the request is about: `default`'s where its project has none of its own."""
        return self.services.projects.owner(self.project, feature)

    def owners(self, feature: Feature) -> tuple[str, ...]:
        """The same of `projects`, each once."""
        owner = self.services.projects.owner
        return tuple(dict.fromkeys(owner(project, feature) for project in self.projects))

    def check_allowed(self, project: str) -> None:
        """A project that the body names besides the request's: a source, a target."""
        self.services.projects.find(project)
        if not self.caller.may_use(project):
            raise Forbidden(f'not authorized: the certificate is not for the project "{project}"')

    def shown(self, value: T) -> T:
        """As the caller may see it: who else uses a network or a pool is the concern of their projects."""
        used_by = getattr(value, "used_by", None)
        if not self.caller.restricted or not used_by:
            return value
        return msgspec.structs.replace(value, used_by=[url for url in used_by if self.caller.may_use(_project_of(url))])

    @property
    def recursion(self) -> int:
        """0 for whatever is not a number, as LXD takes it."""
        text = self.query("recursion")
        return int(text) if text.isdecimal() else 0

    @cached_property
    def filter(self) -> Filter:
        return parse_filter(self.query("filter"))

    async def body(self, kind: type[T]) -> T:
        return decode(await self._read(), kind)

    async def optional_body(self, kind: type[T]) -> T:
        """For the few calls that LXD's clients make without a body."""
        return decode(await self._read() or b"{}", kind)

    async def patched(self, current: T) -> T:
        """The PATCH of what is now: current members, replaced by those sent."""
        return merged(await self._read(), current)

    async def _read(self) -> bytes:
        try:
            async with asyncio.timeout(_BODY_S if self.caller.trusted else _STRANGERS_BODY_S):
                return await self.request.read()
        except TimeoutError as error:
            raise TooSlow("Failed reading the request's body: it arrives too slowly") from error

    def exempt(self) -> None:
        """The caller showed a secret: what is limited for strangers (`connections.Limits`) is not for this one."""
        connection = tls_of(self.request)
        if connection is not None:
            self.services.connections.exempt(connection)

    def check_etag(self, editable: msgspec.Struct) -> None:
        check_etag(self.request.headers.get("If-Match"), editable)

    def header(self, name: str) -> str | None:
        """`X-LXD-<name>`, or `X-Incus-<name>`, which the `incus` client sends."""
        headers = self.request.headers
        return headers.get(f"X-LXD-{name}", headers.get(f"X-Incus-{name}"))

    def number(self, name: str, default: int) -> int:
        """A query parameter that must be a whole number."""
        text = self.query(name)
        if not text:
            return default
        try:
            return int(text)
        except ValueError as error:
            raise BadRequest(f'Invalid {name} "{text}": expected a whole number') from error


def _project_of(url: str) -> str:
    """The project that an object's URL names."""
    return parse_qs(urlsplit(url).query).get("project", [DEFAULT_PROJECT])[0]


def dual_headers(values: dict[str, Any]) -> dict[str, str]:
    """Headers in both families, `X-LXD-*` and `X-Incus-*`."""
    return {f"X-{family}-{name}": str(value) for name, value in values.items() for family in ("LXD", "Incus")}
