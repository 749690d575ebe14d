# SPDX-License-Identifier: Apache-2.0
"""What can go wrong when talking to a server."""


class ClientError(Exception):
    """An error that the server answered (`status` is its HTTP code), or a fault of the talk itself (status 0)."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class ConnectionFailed(ClientError):
    """Nobody answers at the address, or the talk broke off."""


class NotFoundError(ClientError):
    """The server answered 404."""


class OperationFailed(ClientError):
    """A background operation ended in failure or was cancelled; `operation` is its last state."""

    def __init__(self, message: str, status: int, operation: dict[str, object]) -> None:
        super().__init__(message, status)
        self.operation = operation
