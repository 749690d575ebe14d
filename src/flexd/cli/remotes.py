# SPDX-License-Identifier: Apache-2.0
"""Servers on the network: addresses, the client's certificate, and server certificates that were accepted."""

from __future__ import annotations

import os

from flexd.cli.config import config_dir
from flexd.cli.errors import CliError
from flexd.client.endpoint import HttpsEndpoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_DEFAULT_PORT = 8443
# Ten years, as LXD's clients make them: the certificate is trusted by its hash, not by its date.
_VALID_DAYS = 3650


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `https://host[:port]`, `host`, `[v6]:port`."""
    rest = address.removeprefix("https://").rstrip("/")
    if rest.count(":") > 1 and not rest.startswith("["):
        return rest, _DEFAULT_PORT
    host, colon, port = rest.rpartition(":")
    if not colon or rest.endswith("]"):
        return rest.strip("[]"), _DEFAULT_PORT
    if not port.isdigit():
        raise CliError(f'Invalid address "{address}": expected https://HOST[:PORT]')
    return host.strip("[]"), int(port)


def certificate_path(remote: str) -> str:
    """Where the accepted certificate of a server is kept."""
    return os.path.join(config_dir(), "servercerts", f"{remote}.crt")


def https_endpoint(remote: str, address: str, settings: Mapping[str, Any]) -> HttpsEndpoint:
    """How to connect to a remote that is no unix socket."""
    if settings.get("protocol") in ("simplestreams", "build", "oci"):
        raise CliError(f'The remote "{remote}" serves images only: it has no instances, networks or storage')
    if not address.startswith("https://"):
        raise CliError(f'The remote "{remote}" has an address that is neither unix:// nor https://: {address}')
    host, port = split_address(address)
    pinned = None
    if os.path.exists(certificate_path(remote)):
        with open(certificate_path(remote), encoding="ascii") as file:
            pinned = file.read()
    return HttpsEndpoint(host, port, client_certificate(), pinned)


def client_certificate() -> tuple[str, str]:
    """Paths of our certificate and key; made at first use."""
    certificate, key = (os.path.join(config_dir(), f"client.{suffix}") for suffix in ("crt", "key"))
    if not (os.path.exists(certificate) and os.path.exists(key)):
        _make_certificate(certificate, key)
    return certificate, key


def _make_certificate(certificate_file: str, key_file: str) -> None:
    import socket
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP384R1())
    user = f"{os.environ.get('USER') or os.getuid()}@{socket.gethostname()}"
    names = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "flexd"), x509.NameAttribute(NameOID.COMMON_NAME, user[:64])]
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(names))
        .issuer_name(x509.Name(names))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=_VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA384())
    )
    os.makedirs(config_dir(), mode=0o700, exist_ok=True)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with os.fdopen(os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(private)
    with open(certificate_file, "wb") as file:
        file.write(certificate.public_bytes(serialization.Encoding.PEM))
