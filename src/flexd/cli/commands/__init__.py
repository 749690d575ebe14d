# SPDX-License-Identifier: Apache-2.0
"""One module per first word, found by its name; each has a `COMMAND`. To add a word, add a file."""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from flexd.cli.command import Command, Group

# Second names of first words. Within groups, aliases stand beside their commands; here that would mean importing all.
ALIASES = {"ls": "list", "cp": "copy", "mv": "move", "rm": "delete"}


def load(word: str) -> Command | Group | None:
    """The command or group of a first word; None if there is none of that name."""
    name = ALIASES.get(word, word).replace("-", "_")
    if not name.isidentifier() or name.startswith("__"):
        return None
    module_name = f"{__name__}.{name}_" if name == "import" else f"{__name__}.{name}"
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name:
            raise
        return None
    command: Command | Group = module.COMMAND
    return command


def all_words() -> list[str]:
    """Every first word, sorted (names that begin with an underscore are for scripts)."""
    import pkgutil

    return sorted(info.name.rstrip("_") for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))
