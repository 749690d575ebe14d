# SPDX-License-Identifier: Apache-2.0
"""What the server shows: `server.crt` and `server.key`, made at first start; `server.ca` and `ca.crl` where they are.

All in $FLEXD_DIR, where an administrator may replace them at any time: they are looked at again now and then.
"""

import asyncio
import os
import socket
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from OpenSSL import SSL, crypto

from flexd.api.errors import FlexdError
from flexd.server.certificate import der_of, fingerprint_of, make_server_certificate
from flexd.server.pki import Authority
from flexd.server.tls import make_context

_CERTIFICATE, _KEY, _CA, _REVOCATIONS = "server.crt", "server.key", "server.ca", "ca.crl"

# Of each file when it was last read: modification time and inode.
_Stamp = tuple[tuple[int, int] | None, ...]


class Identity:
    """`await Identity.open(directory)`. The members change only in `reload`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stamp: _Stamp = ()
        self.certificate = ""
        self.fingerprint = ""
        self.authority: Authority | None = None
        self._context: SSL.Context | None = None

    @classmethod
    async def open(cls, directory: Path) -> "Identity":
        identity = cls(directory)
        await asyncio.to_thread(_make_if_missing, directory)
        await identity.reload()
        return identity

    @property
    def context(self) -> SSL.Context:
        assert self._context is not None, "made by open()"
        return self._context

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
            certificate = x509.load_pem_x509_certificate(chain)
            context = make_context(chain, key)
        except (ValueError, TypeError, UnsupportedAlgorithm, SSL.Error, crypto.Error) as error:
            raise FlexdError(f"Failed reading {_CERTIFICATE} and {_KEY} in {self._directory}: {error!r}") from error
        ca, revocations = _optional(self._directory / _CA), _optional(self._directory / _REVOCATIONS)
        self.authority = None if ca is None else Authority(ca, revocations)
        self._context = context
        self.certificate = chain.decode()
        self.fingerprint = fingerprint_of(der_of(certificate))


def _make_if_missing(directory: Path) -> None:
    certificate, key = directory / _CERTIFICATE, directory / _KEY
    if certificate.exists():
        return  # without its key: reading says so, rather than that a certificate is overwritten
    certificate_pem, key_pem = make_server_certificate(socket.gethostname())
    # The key first: a crash in between leaves no certificate, and both are made anew.
    _write(key, key_pem, 0o600)
    _write(certificate, certificate_pem, 0o644)


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
