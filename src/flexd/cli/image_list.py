# SPDX-License-Identifier: Apache-2.0
"""`flexc image list`."""

from __future__ import annotations

from flexd.cli.command import ALL_PROJECTS, FORMAT, Command, Option, Positional
from flexd.cli.errors import UsageError
from flexd.cli.image_remotes import images_of
from flexd.cli.show import long_time, yes_no
from flexd.cli.table import natural_key, print_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context

    Image = Mapping[str, Any]


def _aliases(image: Image) -> list[str]:
    return [alias["name"] for alias in image["aliases"] or ()]


def _shortest_alias(image: Image) -> str:
    names = sorted(_aliases(image), key=lambda name: (len(name), name))
    return f"{names[0]} ({len(names) - 1} more)" if len(names) > 1 else "".join(names)


_COLUMNS: dict[str, tuple[str, Callable[[Image], str]]] = {
    "a": ("architecture", lambda each: each["architecture"]),
    "d": ("description", lambda each: (each["properties"] or {}).get("description", "")),
    "e": ("project", lambda each: str(each.get("project", ""))),
    "f": ("fingerprint", lambda each: each["fingerprint"][:12]),
    "F": ("fingerprint", lambda each: each["fingerprint"]),
    "l": ("alias", _shortest_alias),
    "L": ("alias", lambda each: "\n".join(_aliases(each))),
    "p": ("public", lambda each: yes_no(each["public"])),
    # LXD calls 1024² bytes MB; the figure is the same, the unit is right.
    "s": ("size", lambda each: f"{each['size'] / 1024**2:.2f}MiB"),
    "t": ("type", lambda each: each["type"].upper()),
    "u": ("upload date", lambda each: long_time(each["uploaded_at"])),
}
_DEFAULT_COLUMNS = "lfpdatsu"


def _run(context: Context, args: Arguments) -> None:
    letters = args.columns.replace(",", "")
    unknown = set(letters) - set(_COLUMNS)
    if unknown:
        raise UsageError(f'Unknown column shorthand char "{min(unknown)}" in "{args.columns}"')
    filters = list(args.filter)
    remote = ""
    if filters and ":" in filters[0] and "=" not in filters[0]:
        remote, first = context.split(filters.pop(0))
        filters = [first, *filters] if first else filters
    images = images_of(context, remote or context.default_remote, all_projects=args.all_projects)
    if args.all_projects and letters == _DEFAULT_COLUMNS:
        letters = "e" + letters
    wanted = [image for image in images if all(_fits(image, text) for text in filters)]
    columns = [_COLUMNS[letter] for letter in letters]
    rows = sorted(([value(image) for _, value in columns] for image in wanted), key=natural_key)
    print_list(args.format, [title for title, _ in columns], rows, wanted)


def _fits(image: Image, text: str) -> bool:
    """`key=value` fits a property (a beginning of its value is enough), other words an alias or the fingerprint."""
    key, equals, value = text.partition("=")
    if equals:
        if key in ("type", "architecture"):
            return str(image[key]) == value
        return str((image["properties"] or {}).get(key, "")).lower().startswith(value.lower())
    return text in image["fingerprint"] or any(text in name for name in _aliases(image))


LIST = Command(
    "list",
    "List images",
    _run,
    "[<remote>:] [<filter>...]",
    [Positional("filter", "*", completes="image")],
    [
        Option("-c", "--columns", default=_DEFAULT_COLUMNS, help=f'Columns (default "{_DEFAULT_COLUMNS}")'),
        ALL_PROJECTS,
        FORMAT,
    ],
    details="""
Filters: part of an alias or of the fingerprint, or a property as key=value.
Columns: a architecture, d description, e project, f, F fingerprint short and long, l shortest alias, L all aliases,
p public, s size, t type, u upload date.
""",
    examples=[
        ("flexc image list os=debian release=12", "By properties"),
        ("flexc image list images: debian", "What an image server has"),
    ],
    aliases=["ls"],
)
