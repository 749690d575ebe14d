# SPDX-License-Identifier: Apache-2.0
"""What a task knows of why it runs. The server sets them per request; operations started there inherit them."""

from contextvars import ContextVar

from flexd.operations.contract import Requestor

current_requestor: ContextVar[Requestor | None] = ContextVar("current_requestor", default=None)
# The id of the operation that this task carries out; "" outside of one.
current_operation: ContextVar[str] = ContextVar("current_operation", default="")
