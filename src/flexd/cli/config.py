# SPDX-License-Identifier: Apache-2.0
"""The person's own settings: remotes, the default one, aliases (`~/.config/flexc/config.yml`, the shape of lxc's)."""

from __future__ import annotations

import os

from flexd.cli.errors import CliError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEFAULT_DIR = "/var/lib/flexd"


def config_dir() -> str:
    """Where settings, the client's certificate and accepted server certificates live."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.environ.get("FLEXC_CONF") or os.path.join(base, "flexc")


def local_socket() -> str:
    """The socket of the daemon on this machine."""
    return os.environ.get("FLEXD_SOCKET") or os.path.join(os.environ.get("FLEXD_DIR") or DEFAULT_DIR, "unix.socket")


class Config:
    """Contents of the file. `local` is always there."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.default_remote: str = document.get("default-remote") or "local"
        self.remotes: dict[str, dict[str, Any]] = {"local": {"addr": "unix://"}, **(document.get("remotes") or {})}
        self.aliases: dict[str, str] = dict(document.get("aliases") or {})

    def remote(self, name: str) -> dict[str, Any]:
        if name not in self.remotes:
            known = ", ".join(sorted(self.remotes))
            raise CliError(f'The remote "{name}" doesn\'t exist. Known remotes: {known}; see: flexc remote --help')
        return self.remotes[name]

    def save(self) -> None:
        """Write the file anew, in one piece."""
        from flexd.cli.yamltext import dump

        remotes = {name: value for name, value in self.remotes.items() if name != "local" or len(value) > 1}
        document = {"default-remote": self.default_remote, "remotes": remotes, "aliases": self.aliases}
        os.makedirs(config_dir(), mode=0o700, exist_ok=True)
        path = os.path.join(config_dir(), "config.yml")
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            file.write(dump(document))
        os.replace(f"{path}.new", path)


def load_config() -> Config:
    """The settings, or the defaults where there is no file (then no YAML parser is imported: 12 ms)."""
    path = os.path.join(config_dir(), "config.yml")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        return Config({})
    except OSError as error:
        raise CliError(f"Failed reading {path}: {error.strerror}") from error
    from flexd.cli.yamltext import load

    document = load(text, path)
    if not isinstance(document, dict):
        raise CliError(f"Failed reading {path}: expected a mapping of settings")
    return Config(document)
