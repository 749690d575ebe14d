# SPDX-License-Identifier: Apache-2.0
"""The server's own configuration (`/1.0` `config`): rows, and the document that keeps the values."""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct, field

from flexd.api.errors import Conflict, Fault, raise_faults
from flexd.api.keys import Key, check_config
from flexd.images.keys import KEYS as IMAGE_KEYS
from flexd.operations.events import Events
from flexd.store.contract import RevisionConflict
from flexd.store.documents import Documents, Mirror

KEYS = (Key("user.*", description="Free for users"), *IMAGE_KEYS)

_PATH = ("config",)


class ConfigRecord(Struct):
    """The document `/server/config`."""

    config: dict[str, str] = field(default_factory=dict)


class ServerConfig:
    """`keys`: the server's rows and those of the packages that read their settings here."""

    def __init__(self, mirror: Mirror, events: Events, keys: Sequence[Key] = KEYS) -> None:
        self._documents = Documents(mirror, "server", ConfigRecord)
        self._events = events
        self.keys = tuple(keys)

    def show(self) -> dict[str, str]:
        """What is set; every value is a string."""
        found = self._documents.get(*_PATH)
        return {} if found is None else dict(found.value.config)

    def get(self, name: str) -> str:
        """A value, or the default of its row."""
        default = next((key.default for key in self.keys if key.name == name), "")
        return self.show().get(name) or default

    async def update(self, config: Mapping[str, Any]) -> None:
        """Replace all values (PUT); the empty string unsets."""
        raise_faults(self._faults(config))
        found = self._documents.get(*_PATH)
        record = ConfigRecord({name: value for name, value in config.items() if value != ""})
        try:
            await self._documents.update(_PATH, record, found.revision if found else 0)
        except RevisionConflict as error:
            raise Conflict("Failed updating the server's configuration: it was changed meanwhile") from error
        self._events.lifecycle("config-updated", "/1.0", "")

    def _faults(self, config: Mapping[str, Any]) -> list[Fault]:
        wrong = [
            Fault(f"config.{name}", f"expected a string, got {value!r}")
            for name, value in config.items()
            if not isinstance(value, str)
        ]
        return wrong + check_config({k: v for k, v in config.items() if isinstance(v, str)}, self.keys)
