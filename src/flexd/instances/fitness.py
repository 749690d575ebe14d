# SPDX-License-Identifier: Apache-2.0
"""Which instances are started so that their running state can be saved, and moved to another server; pure.

docs/decisions/0018-live-migration.md says what that changes for them, and why it is the default."""

from collections.abc import Mapping

from flexd.api.keys import Key
from flexd.api.units import is_true

KEY = "migration.stateful"
SERVER_KEY = "instances.migration.stateful"
# What a running container was started as; its keys may say something else by now.
STARTED = "volatile.migration.stateful"

KEYS = (
    Key(
        KEY,
        kind="bool",
        live=False,
        description="Start it so that its running state can be saved, and moved to another server. Default: as "
        f"`{SERVER_KEY}` of the server says",
    ),
)
SERVER_KEYS = (
    Key(
        SERVER_KEY,
        kind="bool",
        description="`migration.stateful` of instances that do not set it. Default: true for those that it works for, "
        "where the server has a CRIU that works with its kernel",
    ),
)


def is_fit(config: Mapping[str, str], server_default: str, criu_usable: bool) -> bool:
    """Whether an instance that starts now is made fit. What contradicts it (privileges, nesting, a system call policy
    of its own) wins over a default, and an order is still an order: then it says what is in the way."""
    wanted = config.get(KEY) or ""
    if wanted:
        return is_true(wanted)
    if server_default:
        return is_true(server_default) and _possible(config)
    return criu_usable and _possible(config)


def _possible(config: Mapping[str, str]) -> bool:
    if is_true(config.get("security.privileged")) or is_true(config.get("security.nesting")):
        return False
    intercepting = any(
        key.startswith("security.syscalls.intercept.") and is_true(value) for key, value in config.items()
    )
    return not intercepting and not config.get("raw.seccomp")
