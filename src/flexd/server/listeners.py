# SPDX-License-Identifier: Apache-2.0
"""The daemon's addresses on the network: opened at start, changed live with the configuration, reopened when lost.

Who is connected stays so when an address goes away; only nobody new gets in there.
"""

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from flexd.api.errors import BadRequest, FlexdError
from flexd.host.contract import Links
from flexd.server.addresses import METRICS_PORT, Address, parse_addresses, parse_proxies, reachable
from flexd.server.connections import Connections
from flexd.server.identity import Identity
from flexd.server.network_keys import TRUSTED_PROXY

if TYPE_CHECKING:
    from flexd.server.tls import TlsLayer

log = logging.getLogger(__name__)

Application = Callable[[], asyncio.Protocol]

HTTPS_ADDRESS, METRICS_ADDRESS = "core.https_address", "core.metrics_address"
_BACKLOG = 512
# How often overdue connections are looked for: the shortest limit is 10 s.
_SWEEP_S = 2.0
# How often files, revocations and addresses that could not be opened are looked at again.
_CHECK_S = 30.0
# Dead peers are noticed after 30 + 6 * 10 s (tcp(7)); an exec session would wait for ever.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 6))


class Place(Struct, frozen=True):
    """An address, and whether only metrics are served there."""

    address: Address
    metrics_only: bool = False


def wanted_places(config: Mapping[str, str]) -> list[Place]:
    https = parse_addresses(config.get(HTTPS_ADDRESS, ""))
    metrics = parse_addresses(config.get(METRICS_ADDRESS, ""), METRICS_PORT)
    # Where both are the same, everything is served, metrics among it.
    return [*map(Place, https), *(Place(each, metrics_only=True) for each in metrics if each not in https)]


class Listeners:
    def __init__(
        self, identity: Identity, connections: Connections, links: Links, setting: Callable[[str], str]
    ) -> None:
        """`setting`: a value of the server's configuration now."""
        self._setting = setting
        self._identity = identity
        self._connections = connections
        self._links = links
        self._open: dict[Place, list[asyncio.Server]] = {}
        self._wanted: list[Place] = []
        self._application: Application | None = None
        # Made with the first address: TLS costs 12 MB.
        self._layer: TlsLayer | None = None
        self._task: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()

    async def start(self, application: Application, config: Mapping[str, str]) -> None:
        """An address that cannot be opened now (its interface is not there yet) is tried again later."""
        self._application = application
        self._wanted = wanted_places(config)
        await self._open_missing()
        self._task = asyncio.create_task(self._keep(), name="network listeners")

    async def adopt(self, listener: socket.socket) -> None:
        """Serve on a socket that systemd opened."""
        host, port = listener.getsockname()[:2]
        self._open[Place(Address(host, port))] = [await self._serve(listener, metrics_only=False)]

    def addresses(self) -> list[Address]:
        """Where everything is served."""
        return [place.address for place in self._open if not place.metrics_only]

    async def reachable(self) -> list[str]:
        """`environment.addresses`: what a client may use."""
        listening = self.addresses()
        if not any(address.is_wildcard for address in listening):
            return reachable(listening, ())
        links = await self._links.all()
        own = [each.address.partition("/")[0] for link in links for each in link.addresses]
        return reachable(listening, own)

    @contextlib.asynccontextmanager
    async def changing(self, config: Mapping[str, str]) -> AsyncIterator[None]:
        """Listen as this configuration says while the body stores it; on failure, as before."""
        if self._application is None:
            yield
            return
        async with self._changing:
            before, wanted = self._wanted, wanted_places(config)
            await self._switch(wanted)
            try:
                yield
            except BaseException:
                await self._switch(before)
                raise

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for place in list(self._open):
            self._close(place)

    async def _switch(self, wanted: Sequence[Place]) -> None:
        """All or nothing. Those to go are closed first: a new address may contain an old one's port."""
        gone = [place for place in self._wanted if place not in wanted]
        new = [place for place in wanted if place not in self._open]
        for place in gone:
            self._close(place)
        try:
            for place in new:
                await self._listen(place)
        except FlexdError:
            for place in new:
                self._close(place)
            await self._open_all(gone)
            raise
        self._wanted = list(wanted)

    async def _open_missing(self) -> None:
        await self._open_all(place for place in self._wanted if place not in self._open)

    async def _open_all(self, places: Iterable[Place]) -> None:
        for place in places:
            try:
                await self._listen(place)
                log.info("listening on %s", place.address)
            except FlexdError as error:
                log.error("%s; it is tried again every %d s", error, _CHECK_S)

    async def _listen(self, place: Place) -> None:
        opened: list[asyncio.Server] = []
        await self._prepared()
        try:
            for listener in await _sockets(place.address):
                opened.append(await self._serve(listener, place.metrics_only))
        except OSError as error:
            for server in opened:
                server.close()
            reason = error.strerror or str(error)
            raise BadRequest(f'Cannot listen on network HTTPS socket "{place.address}": {reason}') from error
        self._open[place] = opened

    async def _serve(self, listener: socket.socket, metrics_only: bool) -> asyncio.Server:
        layer = await self._prepared()
        for option, value in _KEEPALIVE:
            listener.setsockopt(socket.IPPROTO_TCP, option, value)  # accepted sockets inherit them
        loop = asyncio.get_running_loop()
        return await loop.create_server(
            lambda: layer.accept(metrics_only=metrics_only), sock=listener, backlog=_BACKLOG
        )

    async def _prepared(self) -> "TlsLayer":
        """What all connections share."""
        if self._layer is None:
            assert self._application is not None, "start() was told"
            context = await self._identity.context()  # imports TLS in a thread
            from flexd.server.tls import TlsLayer

            self._layer = TlsLayer(context, self._application, self._connections, self._proxies)
        return self._layer

    def _proxies(self) -> frozenset[str]:
        return parse_proxies(self._setting(TRUSTED_PROXY))

    def _close(self, place: Place) -> None:
        for server in self._open.pop(place, ()):
            server.close()

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        checked = loop.time()
        while True:
            await asyncio.sleep(_SWEEP_S)
            try:
                self._connections.sweep()
                if loop.time() - checked >= _CHECK_S:
                    checked = loop.time()
                    await self.check()
            except Exception:  # border of a background task: it goes on
                log.exception("Failed keeping the network listeners")

    async def check(self) -> None:
        """What may have changed without anybody telling: files, dates of certificates, addresses of the host."""
        try:
            if await self._identity.reload() and self._layer is not None:
                self._layer.context = await self._identity.context()
                log.info("certificates were read anew")
        except FlexdError as error:
            log.error("%s; what was read before stays in use", error)
        self._connections.recheck()
        async with self._changing:
            await self._open_missing()


async def _sockets(address: Address) -> list[socket.socket]:
    """Listening sockets: one for each address that the host stands for; a wildcard is one for both families."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    if address.host == "":
        found = [each for each in found if each[0] == socket.AF_INET6] or found
    sockets: list[socket.socket] = []
    try:
        for family, _type, _protocol, _name, where in dict.fromkeys(found):
            sockets.append(_bound(family, where, both=address.host in ("", "::")))
    except OSError:
        for each in sockets:
            each.close()
        raise
    return sockets


def _bound(family: int, where: tuple[object, ...], *, both: bool) -> socket.socket:
    try:
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        if both and error.errno == errno.EAFNOSUPPORT:  # a kernel without IPv6
            return _bound(socket.AF_INET, ("0.0.0.0", where[1]), both=False)
        raise
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if both else 1)
        listener.bind(where)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
