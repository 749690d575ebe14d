# SPDX-License-Identifier: Apache-2.0
"""Where a server listens, and how to connect to it."""

from __future__ import annotations

# The C half of `socket`, which is all that a unix socket needs; the other half costs 3 ms of the command's start.
import _socket

from flexd.client.errors import ConnectionFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    import ssl
    from typing import Protocol

    class Endpoint(Protocol):
        """`url` names it in errors; `host` goes into the Host header."""

        url: str
        host: str

        def connect(self) -> socket.socket | _socket.socket: ...


# How long a server may take to accept; answers themselves may take any time.
_CONNECT_TIMEOUT_S = 10.0


class UnixEndpoint:
    def __init__(self, path: str) -> None:
        self.path = path
        self.url = path
        self.host = "flexd"

    def connect(self) -> _socket.socket:
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            sock.connect(self.path)
        except OSError as error:
            sock.close()
            raise ConnectionFailed(_unix_failure(self.path, error)) from error
        return sock


def _unix_failure(path: str, error: OSError) -> str:
    advice = "Is the daemon running? Try: sudo ./run up"
    if isinstance(error, PermissionError):
        advice = "Try sudo, or join the group that may talk to the daemon (usually flexd) and log in again"
    reason = (error.strerror or str(error)).lower()
    return f"Failed connecting to flexd at {path}: {reason}. {advice}"


class HttpsEndpoint:
    """A server on the network. `pinned_pem`: the only certificate it may show; without it the system's CAs judge."""

    def __init__(
        self, host: str, port: int, client_certificate: tuple[str, str] | None = None, pinned_pem: str | None = None
    ) -> None:
        self.host = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.url = f"https://{self.host}"
        self._address = (host, port)
        self._client_certificate = client_certificate
        self._pinned_pem = pinned_pem

    def _context(self) -> ssl.SSLContext:
        import ssl

        context = ssl.create_default_context()
        if self._pinned_pem is not None:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self._client_certificate is not None:
            context.load_cert_chain(*self._client_certificate)
        return context

    def connect(self) -> socket.socket:
        import socket

        try:
            plain = socket.create_connection(self._address, timeout=_CONNECT_TIMEOUT_S)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wrapped = self._context().wrap_socket(plain, server_hostname=self._address[0])
        except OSError as error:  # ssl.SSLError is one
            reason = error.strerror or str(error)
            raise ConnectionFailed(f"Failed connecting to {self.url}: {reason}") from error
        wrapped.settimeout(None)
        self._check_pin(wrapped)
        return wrapped

    def _check_pin(self, wrapped: ssl.SSLSocket) -> None:
        if self._pinned_pem is None:
            return
        import ssl

        if wrapped.getpeercert(binary_form=True) != ssl.PEM_cert_to_DER_cert(self._pinned_pem):
            wrapped.close()
            raise ConnectionFailed(
                f"Failed connecting to {self.url}: the server's certificate is not the one that was accepted for "
                "this remote. If the server was set up anew, remove the remote and add it again"
            )


def fetch_certificate(host: str, port: int) -> str:
    """The certificate (PEM) that a server shows, unverified: to be shown to a person before it is pinned."""
    import ssl

    try:
        return ssl.get_server_certificate((host, port), timeout=_CONNECT_TIMEOUT_S)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConnectionFailed(f"Failed connecting to https://{host}:{port}: {reason}") from error
