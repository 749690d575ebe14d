# SPDX-License-Identifier: Apache-2.0
"""What the server shows: `server.crt` and `server.key`, made at first start; `server.ca` and `ca.crl` where they are.

All in $FLEXD_DIR, where an administrator may replace them at any time: they are looked at again now and then. TLS and
X.509 are imported only with the first address that is listened on, and for an authority.
"""

import asyncio
import hashlib
import os
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from flexd.api.errors import FlexdError
from flexd.host.contract import Processes

if TYPE_CHECKING:
    from OpenSSL import SSL

    from flexd.server.pki import Authority

_CERTIFICATE, _KEY, _CA, _REVOCATIONS = "server.crt", "server.key", "server.ca", "ca.crl"
_BEGIN = "-----BEGIN CERTIFICATE-----"
_END = "-----END CERTIFICATE-----"

# To make a certificate takes a fifth of a second; on a slow machine that waits for random bytes, more.
_MAKING_S = 60.0

# Of each file when it was last read: modification time and inode.
_Stamp = tuple[tuple[int, int] | None, ...]
MakeCertificate = Callable[[str], Awaitable[tuple[bytes, bytes]]]
"""A certificate and its key, in PEM, for a host's name."""


class Identity:
    """`await Identity.open(directory, make)`. The members change only in `reload` and `context`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stamp: _Stamp = ()
        self.certificate = ""
        self.fingerprint = ""
        self.authority: Authority | None = None
        self._chain = b""
        self._key = b""
        self._context: SSL.Context | None = None

    @classmethod
    async def open(cls, directory: Path, make: MakeCertificate) -> "Identity":
        identity = cls(directory)
        await _make_if_missing(directory, make)
        await identity.reload()
        return identity

    async def context(self) -> "SSL.Context":
        """For new connections; made when first asked for."""
        if self._context is None:
            self._context = await asyncio.to_thread(self._make_context, self._chain, self._key)
        return self._context

    def outdated_since(self, current: datetime) -> datetime | None:
        """When the list of what the authority revoked was to be replaced, if that is past."""
        return None if self.authority is None else self.authority.outdated_since(current)

    async def reload(self) -> bool:
        """Whether anything was new. What cannot be read is an error, and what was there before stays."""
        stamp = await asyncio.to_thread(self._look)
        if stamp == self._stamp:
            return False
        # Noted also if reading fails: the same files would fail again.
        self._stamp = stamp
        await asyncio.to_thread(self._read)
        return True

    def _look(self) -> _Stamp:
        return tuple(_stamp_of(self._directory / name) for name in (_CERTIFICATE, _KEY, _CA, _REVOCATIONS))

    def _read(self) -> None:
        chain, key = (self._directory / _CERTIFICATE).read_bytes(), (self._directory / _KEY).read_bytes()
        try:
            first = chain.decode().partition(_BEGIN)[2].partition(_END)[0]
            fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(_BEGIN + first + _END)).hexdigest()
        except ValueError as error:
            raise self._unreadable(error) from error
        # Where connections use a context, files that make none must not replace it.
        context = None if self._context is None else self._make_context(chain, key)
        ca, revocations = _optional(self._directory / _CA), _optional(self._directory / _REVOCATIONS)
        self.authority = None if ca is None else _authority(ca, revocations)
        self._chain, self._key, self._context = chain, key, context
        self.certificate = chain.decode()
        self.fingerprint = fingerprint

    def _make_context(self, chain: bytes, key: bytes) -> "SSL.Context":
        from cryptography.exceptions import UnsupportedAlgorithm
        from OpenSSL import SSL, crypto

        from flexd.server.tls import make_context

        try:
            return make_context(chain, key)
        except (ValueError, TypeError, UnsupportedAlgorithm, SSL.Error, crypto.Error) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> FlexdError:
        return FlexdError(f"Failed reading {_CERTIFICATE} and {_KEY} in {self._directory}: {error!r}")


async def make_here(host_name: str) -> tuple[bytes, bytes]:
    """In this process, which keeps the memory that it takes."""

    def make() -> tuple[bytes, bytes]:
        from flexd.server.x509 import make_server_certificate

        return make_server_certificate(host_name)

    return await asyncio.to_thread(make)


async def make_apart(processes: Processes, host_name: str) -> tuple[bytes, bytes]:
    """In a short-lived process: this one does without X.509 until it listens on the network."""
    argv = [sys.executable, "-m", "flexd.server.x509", host_name]
    done = await processes.run(argv, env={"PYTHONPATH": os.pathsep.join(sys.path)}, timeout_s=_MAKING_S)
    key, begin, certificate = done.stdout.partition(_BEGIN.encode())
    return begin + certificate, key


def _authority(ca: bytes, revocations: bytes | None) -> "Authority":
    from flexd.server.pki import Authority

    return Authority(ca, revocations)


async def _make_if_missing(directory: Path, make: MakeCertificate) -> None:
    # Without its key: reading says so, rather than that a certificate is overwritten.
    if await asyncio.to_thread((directory / _CERTIFICATE).exists):
        return
    certificate, key = await make(socket.gethostname())
    await asyncio.to_thread(_write_both, directory, certificate, key)


def _write_both(directory: Path, certificate: bytes, key: bytes) -> None:
    # The key first: a crash in between leaves no certificate, and both are made anew.
    _write(directory / _KEY, key, 0o600)
    _write(directory / _CERTIFICATE, certificate, 0o644)


def _write(path: Path, data: bytes, mode: int) -> None:
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _stamp_of(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino


def _optional(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
