# SPDX-License-Identifier: Apache-2.0
"""The person's own settings: remotes, the default one, aliases (`~/.config/flexc/config.yml`, the shape of lxc's)."""

from __future__ import annotations

import json
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


# What everybody has. Whoever wants another server under one of these names adds it under that name.
_IMAGES = {"protocol": "simplestreams", "public": True}
BUILT_IN: dict[str, dict[str, Any]] = {
    "local": {"addr": "unix://"},
    "images": {"addr": "https://images.linuxcontainers.org", **_IMAGES},
    "ubuntu": {"addr": "https://cloud-images.ubuntu.com/releases", **_IMAGES},
    "ubuntu-daily": {"addr": "https://cloud-images.ubuntu.com/daily", **_IMAGES},
    "docker": {"addr": "https://docker.io", "protocol": "oci", "public": True},
    "debian": {"addr": "build:debian", "protocol": "build", "public": True},
}


class Config:
    """Contents of the file, and the remotes that are built in."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.default_remote: str = document.get("default-remote") or "local"
        known = {name: dict(settings) for name, settings in BUILT_IN.items()}
        self.remotes: dict[str, dict[str, Any]] = {**known, **(document.get("remotes") or {})}
        self.aliases: dict[str, str] = dict(document.get("aliases") or {})

    def remote(self, name: str) -> dict[str, Any]:
        if name not in self.remotes:
            known = ", ".join(sorted(self.remotes))
            raise CliError(f'The remote "{name}" doesn\'t exist. Known remotes: {known}; see: flexc remote --help')
        return self.remotes[name]

    def is_built_in(self, name: str) -> bool:
        """Whether it is as it comes, `local` always."""
        return name == "local" or self.remotes[name] == BUILT_IN.get(name)

    def save(self) -> None:
        """Write the file anew, in one piece."""
        from flexd.cli.yamltext import dump

        remotes = {name: value for name, value in self.remotes.items() if value != BUILT_IN.get(name)}
        document = {"default-remote": self.default_remote, "remotes": remotes, "aliases": self.aliases}
        os.makedirs(config_dir(), mode=0o700, exist_ok=True)
        path = os.path.join(config_dir(), "config.yml")
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            file.write(dump(document))
        os.replace(f"{path}.new", path)


def load_config() -> Config:
    """The settings, or the defaults where there is no file."""
    path = os.path.join(config_dir(), "config.yml")
    try:
        found = os.stat(path)
        # Importing a YAML parser costs 12 ms, half of `flexc list`: what it found is kept beside the file as JSON.
        stamp = [found.st_mtime_ns, found.st_size, found.st_ino]
        document = _load_parsed(stamp)
        if document is None:
            document = _parse(path)
            _save_parsed(stamp, document)
    except FileNotFoundError:
        return Config({})
    except OSError as error:
        raise CliError(f"Failed reading {path}: {error.strerror}") from error
    return Config(document)


def _parse(path: str) -> dict[str, Any]:
    from flexd.cli.yamltext import load

    with open(path, encoding="utf-8") as file:
        document = load(file.read(), path)
    if not isinstance(document, dict):
        raise CliError(f"Failed reading {path}: expected a mapping of settings")
    return document


def _parsed_path() -> str:
    return os.path.join(config_dir(), ".config.parsed.json")


def _load_parsed(stamp: list[int]) -> dict[str, Any] | None:
    """What was parsed before, unless the file has changed since."""
    try:
        with open(_parsed_path(), encoding="utf-8") as file:
            parsed = json.load(file)
        return parsed["document"] if parsed["stamp"] == stamp else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _save_parsed(stamp: list[int], document: dict[str, Any]) -> None:
    path = _parsed_path()
    try:
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            json.dump({"stamp": stamp, "document": document}, file)
        os.replace(f"{path}.new", path)
    except OSError:
        pass  # a directory that can't be written: parse again next time
