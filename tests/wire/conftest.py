# SPDX-License-Identifier: Apache-2.0
"""The server's fixtures."""

from tests.unit.server.conftest import busy

__all__ = ["busy"]
