# SPDX-License-Identifier: Apache-2.0
"""YAML as LXD's clients write it and as people type it. Imported late: PyYAML costs 12 ms."""

from __future__ import annotations

import re

import yaml

from flexd.cli.errors import CliError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# A time of the API: written plain, though YAML would read it as a time.
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
# Fields of the API that are no strings; whatever else stands in a document is text (`limits.cpu: 2` is "2").
_BOOLEANS = frozenset(
    ("auto_update", "cached", "create_only", "ephemeral", "live", "managed", "public", "restricted", "stateful")
)
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False, "": False}
_SORTED = frozenset(("config", "devices", "expanded_config", "expanded_devices", "properties"))
_MAPPINGS = frozenset(("config", "devices", "properties", "remotes", "aliases"))
_LISTS = frozenset(("profiles", "networks", "storage_pools", "projects", "entries", "ingress", "egress", "ports"))

_DumperBase: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_Loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


class _Dumper(_DumperBase):  # type: ignore[misc]  # the C one only where PyYAML was built with it
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _represent_text(dumper: Any, text: str) -> Any:
    style = None
    if "\n" in text and not re.search(r"[ \t]\n|\t", text):
        style = "|"
    elif not text:
        style = '"'
    elif not _RFC3339.fullmatch(text):
        if dumper.resolve(yaml.ScalarNode, text, (True, False)) != "tag:yaml.org,2002:str":
            style = '"'
    else:
        return dumper.represent_scalar("tag:yaml.org,2002:timestamp", text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def dump(document: Any) -> str:
    """A document as text; the order of keys is kept, and configuration is sorted."""
    text: str = yaml.dump(
        _sorted_config(document),
        Dumper=_Dumper,
        default_flow_style=False,
        sort_keys=False,
        allow_unicode=True,
        width=2**30,
    )
    return text.removesuffix("...\n")


def _sorted_config(value: Any, within: bool = False) -> Any:
    if isinstance(value, dict):
        pairs = sorted(value.items()) if within else value.items()
        return {key: _sorted_config(each, within or key in _SORTED) for key, each in pairs}
    if isinstance(value, list):
        return [_sorted_config(each) for each in value]
    return value


def load(text: str, source: str = "the document") -> Any:
    """Text as a document: scalars are strings, but for the API's few boolean fields."""
    try:
        return _fit(yaml.load(text, Loader=_Loader))
    except yaml.YAMLError as error:
        raise CliError(f"Failed reading {source}: {error}") from error


def _fit(value: Any, inside: str = "") -> Any:
    if isinstance(value, list):
        return [_fit(each) for each in value]
    if not isinstance(value, dict):
        return value
    fitted: dict[str, Any] = {}
    for key, each in value.items():
        if inside not in ("config", "devices") and key in _BOOLEANS and isinstance(each, str):
            fitted[key] = _TRUTH.get(each.lower(), each)
        elif each in ("", "null", "~") and key in _MAPPINGS and inside != "config":
            fitted[key] = {}
        elif each in ("", "null", "~") and key in _LISTS and inside != "config":
            fitted[key] = []
        else:
            fitted[key] = _fit(each, inside if inside in ("config", "devices") else key)
    return fitted
