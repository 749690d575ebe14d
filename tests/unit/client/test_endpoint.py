# SPDX-License-Identifier: Apache-2.0
"""Connecting: unix sockets that refuse, and TLS with pinned certificates."""

import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from flexd.client.client import Client
from flexd.client.endpoint import HttpsEndpoint, UnixEndpoint, fetch_certificate
from flexd.client.errors import ConnectionFailed

ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 34\r\n\r\n{"type":"sync","metadata":"hello"}'


def make_certificate(directory: Path, name: str) -> tuple[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    paths = directory / f"{name}.crt", directory / f"{name}.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(paths[0]), str(paths[1])


@pytest.fixture
def tls_port(tmp_path: Path) -> Iterator[int]:
    """A server that takes connections one after the other and gives one answer on each."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*make_certificate(tmp_path, "server"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_serve, args=(listener, context))
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def _serve(listener: socket.socket, context: ssl.SSLContext) -> None:
    while True:
        try:
            peer, _ = listener.accept()
        except OSError:
            return
        try:
            with context.wrap_socket(peer, server_side=True) as wrapped:
                if wrapped.recv(4096):
                    wrapped.sendall(ANSWER)
        except OSError:
            peer.close()


def test_a_pinned_certificate_is_enough(tls_port: int, tmp_path: Path) -> None:
    pem = (tmp_path / "server.crt").read_text()
    client = Client(HttpsEndpoint("127.0.0.1", tls_port, make_certificate(tmp_path, "me"), pem))
    assert client.get("/1.0") == "hello"
    client.close()


def test_another_certificate_than_the_pinned_one_is_refused(tls_port: int, tmp_path: Path) -> None:
    make_certificate(tmp_path, "other")
    client = Client(HttpsEndpoint("127.0.0.1", tls_port, None, (tmp_path / "other.crt").read_text()))
    with pytest.raises(ConnectionFailed, match="not the one that was accepted"):
        client.get("/1.0")


def test_without_a_pin_the_systems_authorities_judge(tls_port: int) -> None:
    with pytest.raises(ConnectionFailed, match=r"(?i)certificate"):
        Client(HttpsEndpoint("127.0.0.1", tls_port)).get("/1.0")


def test_the_certificate_that_is_shown(tls_port: int, tmp_path: Path) -> None:
    shown = fetch_certificate("127.0.0.1", tls_port)
    assert shown.split() == (tmp_path / "server.crt").read_text().split()


def test_nobody_listens_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionFailed, match="Connection refused"):
        Client(HttpsEndpoint("127.0.0.1", port)).get("/1.0")
    with pytest.raises(ConnectionFailed, match="Connection refused"):
        fetch_certificate("127.0.0.1", port)


def test_a_socket_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("")
    with pytest.raises(ConnectionFailed, match=r"connection refused\. Is the daemon running\?"):
        Client(UnixEndpoint(str(tmp_path / "s"))).get("/1.0")


def test_hosts_in_urls() -> None:
    assert HttpsEndpoint("fd42::1", 8443).url == "https://[fd42::1]:8443"
    assert HttpsEndpoint("big", 8443).url == "https://big:8443"
