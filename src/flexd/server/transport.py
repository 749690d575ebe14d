# SPDX-License-Identifier: Apache-2.0
"""The TLS connection below a request, without importing TLS where nobody listens on the network."""

from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from flexd.server.tls import TlsConnection


def tls_of(request: web.BaseRequest) -> "TlsConnection | None":
    """The connection that a request came over; None if that is a unix socket."""
    found: TlsConnection | None = request.get_extra_info("tls")  # TlsTransport's answer
    return found
