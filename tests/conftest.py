# SPDX-License-Identifier: Apache-2.0
"""Fixtures for every test: nothing in flexd may block the event loop."""

import signal
from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from tests import kernel


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a network is skipped on a kernel that has crashed: it would hang for ever."""
    needing = [item for item in items if kernel.needs_network(item.path, item.name)]
    reason = kernel.crashed() if needing else ""
    for item in needing if reason else ():
        item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True, scope="session")
def signals_count() -> None:
    """Tests may be run by nohup(1) or in a shell's background; what they start would ignore the same signals."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def blockbuster(request: pytest.FixtureRequest) -> Iterator[BlockBuster | None]:
    """Fail a test in which flexd's own code blocks the loop (invariant 5)."""
    if request.node.get_closest_marker("asyncio") is None:
        yield None
        return
    with blockbuster_ctx("flexd") as blocker:
        yield blocker
