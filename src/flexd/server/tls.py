# SPDX-License-Identifier: Apache-2.0
"""TLS below HTTP: a protocol that decrypts for the application's protocol, and the transport that one writes to.

Not asyncio's own TLS, which cannot ask for a certificate that nobody vouches for, and which keeps a read buffer of
256 KiB for each connection; here one buffer serves all (decision 0012). Imported with the first address that is
listened on: OpenSSL and `cryptography` are 12 MB.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Container, Iterable
from typing import Any, Protocol, cast

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL, crypto

from flexd.server.certificate import PeerCertificate
from flexd.server.proxy_header import parse_header

log = logging.getLogger(__name__)

Application = Callable[[], asyncio.Protocol]

# What recv(2) may take at once; all connections share the buffer, as its content is passed on before the next read.
_READ_BYTES = 128 * 1024
# A record's most (RFC 8446 5.1): what OpenSSL encrypts and decrypts in one call.
_RECORD_BYTES = 16 * 1024
# Encrypted bytes taken from OpenSSL at once: more than a record, so that one call empties it.
_FLUSH_BYTES = 20 * 1024
# A handshake costs 1-2 ms of CPU: so many in a turn of the loop, that others are answered while thousands wait.
_HANDSHAKES_A_TURN = 4
# Resumed sessions show the certificate they began with, which is judged anew for every request.
_SESSION_ID = b"flexd"
_CIPHERS_1_2 = b"ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL"


def make_context(chain_pem: bytes, key_pem: bytes) -> SSL.Context:
    """TLS 1.2 or later; asks for a client's certificate and takes any, or none. The chain begins with our own."""
    certificate, *issuers = x509.load_pem_x509_certificates(chain_pem)
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE)
    context.set_cipher_list(_CIPHERS_1_2)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_session_id(_SESSION_ID)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_verify(SSL.VERIFY_PEER, _take_any)
    context.use_certificate(certificate)
    for issuer in issuers:
        context.add_extra_chain_cert(issuer)
    context.use_privatekey(cast(ec.EllipticCurvePrivateKey, serialization.load_pem_private_key(key_pem, None)))
    context.check_privatekey()
    return context


def _take_any(*_about: object) -> bool:
    """The handshake proves that the peer holds the key; whether it is trusted is asked for every request."""
    return True


class Observer(Protocol):
    """Who is told of connections (`connections.Connections`)."""

    def opened(self, connection: "TlsConnection") -> None: ...
    def readdressed(self, connection: "TlsConnection") -> None: ...
    def secured(self, connection: "TlsConnection") -> None: ...
    def active(self, connection: "TlsConnection", count: int) -> None: ...
    def closed(self, connection: "TlsConnection") -> None: ...


class TlsLayer:
    """What the connections of all listeners share. `context` may be replaced: new connections take the new one.
    `proxies`: addresses of those who may tell, by the PROXY protocol, whose connection they pass on."""

    def __init__(
        self,
        context: SSL.Context,
        application: Application,
        observer: Observer,
        proxies: Callable[[], Container[str]] = tuple,
    ) -> None:
        self.context = context
        self.application = application
        self.observer = observer
        self.proxies = proxies
        self.buffer = memoryview(bytearray(_READ_BYTES))
        self._waiting: deque[TlsConnection] = deque()

    def accept(self, *, metrics_only: bool = False) -> "TlsConnection":
        """The protocol of a new connection."""
        return TlsConnection(self, metrics_only)

    def queue(self, connection: "TlsConnection") -> None:
        """Go on with a handshake when it is its turn."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._take_turn)
        self._waiting.append(connection)

    def _take_turn(self) -> None:
        for _ in range(min(_HANDSHAKES_A_TURN, len(self._waiting))):
            self._waiting.popleft().shake_hands()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._take_turn)


class TlsConnection(asyncio.BufferedProtocol):
    """One connection. `peer`: the certificate that the client showed, known after the handshake."""

    def __init__(self, layer: TlsLayer, metrics_only: bool) -> None:
        self._layer = layer
        self._tls = SSL.Connection(layer.context)
        self._tls.set_accept_state()
        self.metrics_only = metrics_only
        self.secured = False
        self.peer: PeerCertificate | None = None
        self.address = ""
        self.transport: asyncio.Transport | None = None
        self.application: asyncio.BaseProtocol | None = None
        self._reading = True
        self._closing = False
        # What a trusted proxy has sent of its header; None: it is complete, or none is expected.
        self._header: bytes | None = None

    # What the socket's transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        # A socket for both families shows IPv4 addresses inside of IPv6 ones.
        self.address = str((transport.get_extra_info("peername") or ("",))[0]).removeprefix("::ffff:")
        if self.address in self._layer.proxies():
            self._header = b""
        self._layer.observer.opened(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the contract of BufferedProtocol
        return self._layer.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._closing:
            return
        self._layer.observer.active(self, nbytes)
        data = self._layer.buffer[:nbytes] if self._header is None else self._after_header(nbytes)
        if not data:
            return
        self._tls.bio_write(data)
        if self.secured:
            self._deliver()
        elif self.transport is not None:
            # What else it sends waits in the kernel, so that a flood of handshakes costs no memory here.
            self.transport.pause_reading()
            self._layer.queue(self)

    def _after_header(self, nbytes: int) -> bytes:
        """What follows a proxy's header, "" while it is not complete."""
        received = (self._header or b"") + bytes(self._layer.buffer[:nbytes])
        try:
            header = parse_header(received)
        except ValueError as error:
            log.warning("ending a connection of the proxy %s: %s", self.address, error)
            self.abort()
            return b""
        if header is None:
            self._header = received
            return b""
        self._header = None
        if header.address:
            self.address = header.address
            self._layer.observer.readdressed(self)
        return received[header.length :]

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._layer.observer.closed(self)
        if self.application is not None:
            self.application.connection_lost(exc)

    def pause_writing(self) -> None:
        if self.application is not None:
            self.application.pause_writing()

    def resume_writing(self) -> None:
        self._layer.observer.active(self, 0)
        if self.application is not None:
            self.application.resume_writing()

    # The handshake, and bytes in both directions.

    def shake_hands(self) -> None:
        """As far as the bytes that have arrived allow."""
        if self._closing or self.transport is None:
            return
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
            self._flush()
            self.transport.resume_reading()
            return
        except SSL.Error as error:
            log.debug("handshake with %s failed: %s", self.address, error)
            self._flush()  # the alert says why
            self.close()
            return
        self.transport.resume_reading()
        self._begin()

    def _begin(self) -> None:
        certificate = self._tls.get_peer_certificate()
        if certificate is not None:
            self.peer = PeerCertificate(crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate))
        self.secured = True
        self._layer.observer.secured(self)
        self._flush()
        if self._closing:
            return  # there are too many (`secured` ended it)
        self.application = self._layer.application()
        self.application.connection_made(TlsTransport(self))
        self._deliver()

    def _deliver(self) -> None:
        """Decrypt what has arrived, until the application has had enough."""
        try:
            while self._reading and not self._closing:
                data = self._tls.recv(_RECORD_BYTES)
                cast(asyncio.Protocol, self.application).data_received(data)
        except SSL.WantReadError:
            return  # the answer to a key update goes out with the next bytes (RFC 8446 4.6.3)
        except SSL.ZeroReturnError:
            self.close()
        except SSL.Error as error:
            log.debug("connection with %s broke: %s", self.address, error)
            self._flush()  # the alert
            self.abort()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing:
            return
        view = memoryview(data).cast("B")
        try:
            for start in range(0, len(view), _RECORD_BYTES):
                self._tls.send(view[start : start + _RECORD_BYTES])
                self._flush()
        except SSL.Error as error:
            log.debug("connection with %s broke: %s", self.address, error)
            self.abort()

    def _flush(self) -> None:
        """Hand to the socket what OpenSSL wants to send."""
        transport = self.transport
        while transport is not None:
            try:
                data = self._tls.bio_read(_FLUSH_BYTES)
            except SSL.WantReadError:
                return
            transport.write(data)
            if len(data) < _FLUSH_BYTES:
                return  # that was all; to ask again costs an exception

    def pause_reading(self) -> None:
        self._reading = False
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._reading or self._closing or self.transport is None:
            return
        self._reading = True
        self.transport.resume_reading()
        # Not at once: the application may be in the middle of what made it resume.
        asyncio.get_running_loop().call_soon(self._deliver)

    @property
    def is_reading(self) -> bool:
        return self._reading and not self._closing

    @property
    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Say goodbye; what was written before is still sent."""
        if self._closing or self.transport is None:
            return
        if self.secured:
            try:
                self._tls.shutdown()
                self._flush()
            except SSL.Error as error:
                log.debug("goodbye to %s failed: %s", self.address, error)
        self._closing = True
        self.transport.close()

    def abort(self) -> None:
        self._closing = True
        if self.transport is not None:
            self.transport.abort()


class TlsTransport(asyncio.Transport):
    """What the application writes to. `get_extra_info("tls")` is the `TlsConnection`."""

    def __init__(self, connection: TlsConnection) -> None:
        super().__init__()
        self._connection = connection
        # It was there when this was made, and stays for as long as the application may ask.
        self._inner = cast(asyncio.Transport, connection.transport)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "tls":
            return self._connection
        # Its being there tells aiohttp that the scheme is https.
        if name == "sslcontext":
            return self._connection
        return self._inner.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._connection.write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self._connection.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self._connection.is_closing

    def close(self) -> None:
        self._connection.close()

    def abort(self) -> None:
        self._connection.abort()

    def is_reading(self) -> bool:
        return self._connection.is_reading

    def pause_reading(self) -> None:
        self._connection.pause_reading()

    def resume_reading(self) -> None:
        self._connection.resume_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._connection.application = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return cast(asyncio.BaseProtocol, self._connection.application)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._inner.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._inner.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._inner.get_write_buffer_limits()
