# SPDX-License-Identifier: Apache-2.0
"""What a client showed in a handshake. Trust in it is decided in `trust.py`; `x509.py` reads what is inside."""

import asyncio
import hashlib
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from cryptography import x509


def fingerprint_of(der: bytes) -> str:
    """What a certificate is known by: the SHA-256 of its DER."""
    return hashlib.sha256(der).hexdigest()


class PeerCertificate:
    """A certificate that somebody holds the key of (the handshake proved it), not yet trusted. Parsed when asked."""

    def __init__(self, der: bytes) -> None:
        self.der = der
        self.fingerprint = fingerprint_of(der)

    @cached_property
    def parsed(self) -> "x509.Certificate | None":
        """None if only OpenSSL, but not a strict parser, takes it for a certificate."""
        from cryptography import x509

        try:
            return x509.load_der_x509_certificate(self.der)
        except ValueError:
            return None

    @cached_property
    def validity(self) -> tuple[datetime, datetime] | None:
        parsed = self.parsed
        return None if parsed is None else (parsed.not_valid_before_utc, parsed.not_valid_after_utc)


class SentCertificate(Struct, frozen=True):
    """One that a client wants to be trusted by, checked as LXD checks it."""

    der: bytes
    pem: str
    common_name: str


async def read_certificate(data: bytes) -> SentCertificate:
    """DER or PEM; BadRequest says what is wrong with it."""
    return await asyncio.to_thread(_read, data)


def _read(data: bytes) -> SentCertificate:
    from flexd.server.x509 import common_name, der_of, parse_certificate, pem_of

    certificate = parse_certificate(data)
    return SentCertificate(der_of(certificate), pem_of(certificate), common_name(certificate))
