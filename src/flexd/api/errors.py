# SPDX-License-Identifier: Apache-2.0
"""One class per wire status; packages subclass these for their own errors.

A message starts with what was tried on which object and ends with the cause:
`Failed mounting volume "c1" of pool "default": /dev/loop3: wrong fs type`.
"""

from collections.abc import Iterable

from msgspec import Struct


class FlexdError(Exception):
    """Root of every error the API answers with; `status` is the HTTP code and LXD's `error_code`."""

    status = 500


class BadRequest(FlexdError):
    status = 400


class Forbidden(FlexdError):
    status = 403


class NotFound(FlexdError):
    status = 404


class Conflict(FlexdError):
    status = 409


class PreconditionFailed(FlexdError):
    status = 412


class TooLarge(FlexdError):
    status = 413


class Locked(FlexdError):
    status = 423


class NotSupported(FlexdError):
    status = 501


class Unavailable(FlexdError):
    status = 503


class Fault(Struct, frozen=True):
    """One thing wrong with an input: where (dotted path, `devices.eth0.network`) and what."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class InvalidInput(BadRequest):
    """Every fault of one input, raised once after all were collected."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = list(faults)
        super().__init__("; ".join(str(fault) for fault in self.faults))


def raise_faults(faults: Iterable[Fault]) -> None:
    """Raise `InvalidInput` if there is any fault."""
    collected = list(faults)
    if collected:
        raise InvalidInput(collected)
