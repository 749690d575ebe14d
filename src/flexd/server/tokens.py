# SPDX-License-Identifier: Apache-2.0
"""Join tokens: operations of class token whose secret lets one client be trusted, once, for a while."""

import asyncio
import hashlib
import json
import secrets
from binascii import Error, a2b_base64
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct

from flexd.api.certificate import CertificateAddToken, CertificatesPost
from flexd.api.errors import Forbidden
from flexd.api.times import ZERO_TIME, now
from flexd.operations.operations import Operation, Operations

_SECRET_BYTES = 32
# base64 of JSON with a handful of addresses.
_MAX_TOKEN_BYTES = 16 * 1024


class _Issued(Struct):
    operation: Operation
    request: CertificatesPost
    expires_at: datetime


def decode_token(text: str) -> CertificateAddToken | None:
    """What `lxc config trust add` printed; None if it is something else, such as a password."""
    if len(text) > _MAX_TOKEN_BYTES:
        return None
    try:
        token = msgspec.json.decode(a2b_base64(text.encode(), strict_mode=False), type=CertificateAddToken)
    except (Error, ValueError, msgspec.MsgspecError, RecursionError):
        return None
    return token if token.secret else None


class Tokens:
    """Kept in memory, as LXD's: who restarts the daemon revokes them."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._issued: dict[bytes, _Issued] = {}
        self._timers: dict[bytes, asyncio.TimerHandle] = {}

    def issue(
        self, request: CertificatesPost, *, project: str, addresses: list[str], fingerprint: str, expires_at: datetime
    ) -> Operation:
        """`fingerprint`: of the server's certificate, so that the client knows whom it talks to."""
        secret = secrets.token_hex(_SECRET_BYTES)
        metadata: dict[str, Any] = {
            "addresses": addresses,
            "fingerprint": fingerprint,
            "request": msgspec.to_builtins(request),
            "secret": secret,
        }
        if expires_at != ZERO_TIME:
            metadata["expiresAt"] = json.loads(msgspec.json.encode(expires_at))
        operation = self._operations.start("token", "Executing operation", project, {}, None, metadata=metadata)
        key = _key(secret)
        self._issued[key] = _Issued(operation, request, expires_at)
        if expires_at != ZERO_TIME:
            wait_s = (expires_at - now()).total_seconds()
            self._timers[key] = asyncio.get_running_loop().call_later(wait_s, self._end, key)
        self._forget_cancelled()
        return operation

    def redeem(self, token: CertificateAddToken) -> CertificatesPost:
        """What the token's maker allowed; it is used up. Forbidden if there is no such token any more."""
        key = _key(token.secret)
        issued = self._issued.get(key)
        if issued is None or issued.operation.finished or token.client_name != issued.request.name:
            raise Forbidden("No matching certificate add operation found")
        if issued.expires_at != ZERO_TIME and issued.expires_at <= now():
            self._end(key)
            raise Forbidden("The token has expired")
        self._end(key)
        return issued.request

    def _end(self, key: bytes) -> None:
        issued = self._issued.pop(key, None)
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        if issued is not None:
            issued.operation.end_token()

    def _forget_cancelled(self) -> None:
        """Those that their makers took back (DELETE of the operation)."""
        for key in [key for key, issued in self._issued.items() if issued.operation.finished]:
            self._end(key)

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()


def _key(secret: str) -> bytes:
    """Hashed, so that how long the look-up takes says nothing about secrets."""
    return hashlib.sha256(secret.encode()).digest()
