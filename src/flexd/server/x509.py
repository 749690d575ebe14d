# SPDX-License-Identifier: Apache-2.0
"""X.509: certificates that clients send to have them trusted, and the server's own.

Imported only where a certificate is read or made: `cryptography` costs 11 MB, and a daemon that only its unix socket
reaches never needs it (docs/limits.md). `python -m flexd.server.x509 HOST` prints a new certificate and its key.
"""

import ipaddress
import sys
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flexd.api.errors import BadRequest

# As LXD's: clients pin it, so its date protects nobody, and its end would cut all of them off.
_VALID = timedelta(days=3650)
# Clocks of clients may be behind.
_LEEWAY = timedelta(minutes=5)
# What NIST SP 800-57 asks for; LXD refuses less too.
_RSA_MIN_BITS = 2048
_COMMON_NAME_MAX = 64


def parse_certificate(data: bytes) -> x509.Certificate:
    """DER or PEM that a client sent to have it trusted; checked as LXD does."""
    try:
        pem = data.lstrip().startswith(b"-----BEGIN")
        certificate = x509.load_pem_x509_certificate(data) if pem else x509.load_der_x509_certificate(data)
    except ValueError as error:
        raise BadRequest(f"Invalid certificate material: {error}") from error
    _check(certificate)
    return certificate


def _check(certificate: x509.Certificate) -> None:
    current = datetime.now(UTC)
    if current < certificate.not_valid_before_utc:
        raise BadRequest(f"The provided certificate isn't valid yet (from {certificate.not_valid_before_utc})")
    if current > certificate.not_valid_after_utc:
        raise BadRequest(f"The provided certificate is expired (since {certificate.not_valid_after_utc})")
    try:
        key = certificate.public_key()
    except ValueError as error:  # UnsupportedAlgorithm is none of ours to answer for, but is a ValueError too
        raise BadRequest(f"Invalid certificate material: {error}") from error
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _RSA_MIN_BITS:
        raise BadRequest(f"RSA key too weak (minimum of {_RSA_MIN_BITS} bits)")


def pem_of(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def der_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def common_name(certificate: x509.Certificate) -> str:
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def make_server_certificate(host_name: str) -> tuple[bytes, bytes]:
    """A self-signed certificate and its key, in PEM: ECDSA P-384, and the names LXD's has."""
    key = ec.generate_private_key(ec.SECP384R1())
    person = f"root@{host_name}"[:_COMMON_NAME_MAX]
    name = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "flexd"), x509.NameAttribute(NameOID.COMMON_NAME, person)]
    )
    begin = datetime.now(UTC) - _LEEWAY
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + _VALID)
        .add_extension(_key_usage(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_alternative_names(host_name), critical=False)
        .sign(key, hashes.SHA384())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM), private


def _key_usage() -> x509.KeyUsage:
    """Digital signatures and key encipherment."""
    return x509.KeyUsage(
        digital_signature=True,
        key_encipherment=True,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_names(host_name: str) -> x509.SubjectAlternativeName:
    addresses = (ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1"))
    # A host name may hold what a DNS name may not (hostname(7) does not say); then it is left out.
    names: list[x509.GeneralName] = [x509.DNSName(host_name)] if host_name.isascii() else []
    return x509.SubjectAlternativeName([*names, *(x509.IPAddress(address) for address in addresses)])


def main() -> None:
    certificate, key = make_server_certificate(sys.argv[1])
    sys.stdout.write((key + certificate).decode())


if __name__ == "__main__":
    main()
