# SPDX-License-Identifier: Apache-2.0
"""A certificate authority that decides which clients there may be: `server.ca`, and `ca.crl` with what it revoked."""

from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from flexd.api.errors import FlexdError
from flexd.server.certificate import PeerCertificate

# Certificates whose signature was checked: a check costs 1 ms, and is asked for with every request.
_REMEMBERED = 4096


class Authority:
    """`server.ca` (one certificate, PEM) and the revocation list (PEM or DER), if there is one."""

    def __init__(self, ca: bytes, revocations: bytes | None = None) -> None:
        try:
            self._ca = x509.load_pem_x509_certificate(ca)
        except ValueError as error:
            raise FlexdError(f"Failed reading server.ca: {error}") from error
        self._revoked, self._next_update = _revoked_by(self._ca, revocations) if revocations else (frozenset(), None)
        self._signed: dict[str, bool] = {}

    def has_signed(self, peer: PeerCertificate) -> bool:
        known = self._signed.get(peer.fingerprint)
        if known is None:
            if len(self._signed) >= _REMEMBERED:
                self._signed.clear()
            known = self._signed[peer.fingerprint] = self._check(peer.parsed)
        return known

    def has_revoked(self, peer: PeerCertificate) -> bool:
        return peer.parsed is not None and peer.parsed.serial_number in self._revoked

    def outdated_since(self, current: datetime) -> datetime | None:
        """When the authority was to have made a new list. What the old one revoked stays so; nobody else is refused, as
        in LXD: a list that somebody forgot to renew must not lock out those who could renew it."""
        return self._next_update if self._next_update is not None and self._next_update < current else None

    def _check(self, certificate: x509.Certificate | None) -> bool:
        if certificate is None:
            return False
        try:
            certificate.verify_directly_issued_by(self._ca)
        except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
            return False
        return True


def _revoked_by(ca: x509.Certificate, data: bytes) -> tuple[frozenset[int], datetime | None]:
    """Serial numbers in a list, and when the next one is due; one that the authority has not signed is refused."""
    try:
        pem = data.lstrip().startswith(b"-----BEGIN")
        found = x509.load_pem_x509_crl(data) if pem else x509.load_der_x509_crl(data)
        valid = found.is_signature_valid(ca.public_key())  # type: ignore[arg-type]  # checked by what is caught
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise FlexdError(f"Failed reading ca.crl: {error}") from error
    if not valid:
        raise FlexdError("Failed reading ca.crl: the authority in server.ca has not signed it")
    return frozenset(revoked.serial_number for revoked in found), found.next_update_utc
