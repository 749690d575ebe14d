# SPDX-License-Identifier: Apache-2.0
"""The server's own configuration (`/1.0` `config`): rows, and the document that keeps the values."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

from msgspec import Struct, field

from flexd.api.errors import Conflict, Fault, raise_faults
from flexd.api.keys import Key, check_config
from flexd.images.keys import KEYS as IMAGE_KEYS
from flexd.instances.backups import KEYS as BACKUP_KEYS
from flexd.instances.fitness import SERVER_KEYS as FITNESS_KEYS
from flexd.operations.events import Events
from flexd.server.network_keys import NETWORK_KEYS
from flexd.server.password import hash_password
from flexd.store.contract import RevisionConflict
from flexd.store.documents import Documents, Mirror

KEYS = (Key("user.*", description="Free for users"), *BACKUP_KEYS, *IMAGE_KEYS, *FITNESS_KEYS, *NETWORK_KEYS)

_PATH = ("config",)

# What is shown of a password that is set. LXD shows the JSON value true, on which the `incus` client fails.
_IS_SET = "true"

Guard = Callable[[Mapping[str, str]], AbstractAsyncContextManager[None]]
"""Entered with the values to be; if it raises they are not stored, and if storing raises it takes back what it did."""


class ConfigRecord(Struct):
    """The document `/server/config`."""

    config: dict[str, str] = field(default_factory=dict)


class ServerConfig:
    """`keys`: the server's rows and those of the packages that read their settings here."""

    def __init__(self, mirror: Mirror, events: Events, keys: Sequence[Key] = KEYS) -> None:
        self._documents = Documents(mirror, "server", ConfigRecord)
        self._events = events
        self.keys = tuple(keys)
        self._defaults = {key.name: key.default for key in keys}
        self._hidden = frozenset(key.name for key in keys if key.kind == "password")
        self._guards: list[Guard] = []

    def guard(self, guard: Guard) -> None:
        """Have it carry out, or refuse, what a change means."""
        self._guards.append(guard)

    def show(self) -> dict[str, str]:
        """What is set; every value is a string, and a password only says that it is there."""
        return {name: _IS_SET if name in self._hidden else value for name, value in self.stored().items()}

    def stored(self) -> dict[str, str]:
        """What is set, passwords as their hashes: not for clients."""
        found = self._documents.get(*_PATH)
        return {} if found is None else dict(found.value.config)

    def get(self, name: str) -> str:
        """A value, or the default of its row."""
        found = self._documents.get(*_PATH)
        value = "" if found is None else found.value.config.get(name, "")
        return value or self._defaults.get(name, "")

    async def update(self, config: Mapping[str, Any]) -> None:
        """Replace all values (PUT); the empty string unsets."""
        # Real LXD shows JSON booleans, so clients that copy its configuration send them.
        config = {name: str(value).lower() if isinstance(value, bool) else value for name, value in config.items()}
        raise_faults(self._faults(config))
        found = self._documents.get(*_PATH)
        stored = {name: await self._kept(name, value) for name, value in config.items() if value != ""}
        async with AsyncExitStack() as changes:
            for guard in self._guards:
                await changes.enter_async_context(guard(stored))
            try:
                await self._documents.update(_PATH, ConfigRecord(stored), found.revision if found else 0)
            except RevisionConflict as error:
                raise Conflict("Failed updating the server's configuration: it was changed meanwhile") from error
        self._events.lifecycle("config-updated", "/1.0", "")

    async def _kept(self, name: str, value: str) -> str:
        """How a value is stored: a password as its hash, and as it was if a client sends back what it was shown."""
        if name not in self._hidden:
            return value
        current = self.stored().get(name)
        return current if current and value == _IS_SET else await hash_password(value)

    def _faults(self, config: Mapping[str, Any]) -> list[Fault]:
        wrong = [
            Fault(f"config.{name}", f"expected a string, got {value!r}")
            for name, value in config.items()
            if not isinstance(value, str)
        ]
        return wrong + check_config({k: v for k, v in config.items() if isinstance(v, str)}, self.keys)
