# SPDX-License-Identifier: Apache-2.0
"""The trust password: kept as LXD keeps it, and how fast it may be guessed."""

import asyncio
import hashlib
import hmac
import os
import time
from collections import OrderedDict
from collections.abc import Callable

from flexd.api.errors import FlexdError, Forbidden

# LXD's: scrypt with these, stored as the hex of salt and hash (RFC 7914); 16 MiB and some 50 ms a check.
_COST, _BLOCK, _PARALLEL, _SALT_BYTES, _HASH_BYTES = 1 << 14, 8, 1, 32, 64
_SCRYPT_BYTES = 64 * 1024 * 1024
# After so many wrong ones an address waits, each time twice as long.
_FREE_GUESSES = 3
_LONGEST_WAIT_S = 300.0
_REMEMBERED_ADDRESSES = 4096
# Checks that may wait for each other; each needs its 16 MiB.
_MOST_WAITING = 8


class TooManyGuesses(FlexdError):
    status = 429


async def hash_password(password: str) -> str:
    salt = os.urandom(_SALT_BYTES)
    return (salt + await asyncio.to_thread(_scrypt, password, salt)).hex()


async def matches(stored: str, password: str) -> bool:
    """Whether it is the one of which `hash_password` gave `stored`; "" is nobody's."""
    try:
        raw = bytes.fromhex(stored)
    except ValueError:
        return False
    salt, expected = raw[:_SALT_BYTES], raw[_SALT_BYTES:]
    return bool(expected) and hmac.compare_digest(expected, await asyncio.to_thread(_scrypt, password, salt))


def _scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(
        password.encode(), salt=salt, n=_COST, r=_BLOCK, p=_PARALLEL, maxmem=_SCRYPT_BYTES, dklen=_HASH_BYTES
    )


class Guesses:
    """Checks passwords one at a time, and makes addresses wait that were wrong."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Address: wrong ones, and until when it waits; the one that guessed last is at the end.
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._one = asyncio.Lock()
        self._waiting = 0

    async def check(self, address: str, stored: str, password: str) -> None:
        """Forbidden if it is wrong; TooManyGuesses if this address, or everybody together, asked too often."""
        self._check_wait(address)
        if self._waiting >= _MOST_WAITING:
            raise TooManyGuesses("too many passwords are being checked: try again later")
        self._waiting += 1
        try:
            async with self._one:
                self._check_wait(address)  # another of its guesses may have failed meanwhile
                right = await matches(stored, password)
        finally:
            self._waiting -= 1
        if not right:
            self._note_wrong(address)
            raise Forbidden("not authorized")
        self._wrong.pop(address, None)

    def _check_wait(self, address: str) -> None:
        _count, until = self._wrong.get(address, (0, 0.0))
        left_s = until - self._clock()
        if left_s > 0:
            raise TooManyGuesses(f"too many wrong passwords from {address}: try again in {left_s:.0f} s")

    def _note_wrong(self, address: str) -> None:
        count = self._wrong.pop(address, (0, 0.0))[0] + 1
        excess = count - _FREE_GUESSES
        wait_s = min(float(2**excess), _LONGEST_WAIT_S) if excess >= 0 else 0.0
        self._wrong[address] = (count, self._clock() + wait_s)
        if len(self._wrong) > _REMEMBERED_ADDRESSES:
            self._wrong.popitem(last=False)
