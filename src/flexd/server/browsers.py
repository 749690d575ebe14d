# SPDX-License-Identifier: Apache-2.0
"""What browsers ask a server on another origin than the page's (CORS): the `core.https_allowed_*` keys, as headers."""

from aiohttp import hdrs

from flexd.api.units import is_true
from flexd.server.config import ServerConfig
from flexd.server.network_keys import ALLOWED_CREDENTIALS, ALLOWED_HEADERS, ALLOWED_METHODS, ALLOWED_ORIGIN

_BY_KEY = {
    ALLOWED_ORIGIN: hdrs.ACCESS_CONTROL_ALLOW_ORIGIN,
    ALLOWED_METHODS: hdrs.ACCESS_CONTROL_ALLOW_METHODS,
    ALLOWED_HEADERS: hdrs.ACCESS_CONTROL_ALLOW_HEADERS,
}


def browser_headers(config: ServerConfig) -> dict[str, str]:
    """Those that are set; nothing is allowed that nobody set."""
    found: dict[str, str] = {header: value for key, header in _BY_KEY.items() if (value := config.get(key))}
    if is_true(config.get(ALLOWED_CREDENTIALS)):
        found[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"
    return found
