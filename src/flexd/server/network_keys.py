# SPDX-License-Identifier: Apache-2.0
"""Rows of the server's configuration about the network: addresses, trust, and what browsers are allowed."""

from functools import partial

from flexd.api.keys import Key
from flexd.operations.schedule import expiry_fault
from flexd.server.addresses import HTTPS_PORT, METRICS_PORT, addresses_fault, proxies_fault

TRUST_PASSWORD, TOKEN_EXPIRY, TRUST_CA = (
    "core.trust_password",
    "core.remote_token_expiry",
    "core.trust_ca_certificates",
)
TRUSTED_PROXY = "core.https_trusted_proxy"
METRICS_AUTHENTICATION = "core.metrics_authentication"
ALLOWED_ORIGIN, ALLOWED_METHODS, ALLOWED_HEADERS, ALLOWED_CREDENTIALS = (
    "core.https_allowed_origin",
    "core.https_allowed_methods",
    "core.https_allowed_headers",
    "core.https_allowed_credentials",
)


def _header_fault(value: str) -> str | None:
    return None if value.isprintable() and value.isascii() else f'invalid value "{value}" (it goes into a header)'


NETWORK_KEYS = (
    Key(
        "core.https_address",
        description="Where clients reach the API: ADDRESS:PORT, [IPv6]:PORT or :PORT; several with commas between",
        check=partial(addresses_fault, HTTPS_PORT),
    ),
    Key(
        ALLOWED_CREDENTIALS,
        "bool",
        "false",
        "Access-Control-Allow-Credentials, for browsers",
    ),
    Key(ALLOWED_HEADERS, description="Access-Control-Allow-Headers, for browsers", check=_header_fault),
    Key(ALLOWED_METHODS, description="Access-Control-Allow-Methods, for browsers", check=_header_fault),
    Key(ALLOWED_ORIGIN, description="Access-Control-Allow-Origin, for browsers", check=_header_fault),
    Key(
        TRUSTED_PROXY,
        description="Addresses of proxies, commas between, that tell clients' addresses by the PROXY protocol",
        check=proxies_fault,
    ),
    Key(
        "core.metrics_address",
        description="Where only metrics are served, written as core.https_address; the port is 9100 unless it is named",
        check=partial(addresses_fault, METRICS_PORT),
    ),
    Key(METRICS_AUTHENTICATION, "bool", "true", "Whether metrics are for trusted certificates only"),
    Key(
        TOKEN_EXPIRY,
        description="How long tokens to be trusted are valid (`1H`); unset: until the daemon ends",
        check=expiry_fault,
    ),
    Key(TRUST_CA, "bool", "false", "Whether what server.ca has signed is trusted without being in the list"),
    Key(TRUST_PASSWORD, "password", description="A password that lets clients be trusted; a token is safer"),
)
