# SPDX-License-Identifier: Apache-2.0
"""docs/compatibility.md from the daemon's own list: `python -m tests.wire.compatibility > docs/compatibility.md`."""

from pathlib import Path

from flexd.api.extensions import API_EXTENSIONS, PARTIAL

NAMES = Path(__file__).with_name("lxd-5.0.2-extensions.txt")


def page() -> str:
    """The page, in Markdown."""
    lxd = NAMES.read_text().split()
    rows = [f"| `{name}` | {_state(name)} |" for name in lxd]
    own = [name for name in API_EXTENSIONS if name not in lxd]
    yes = sum(name in API_EXTENSIONS for name in lxd)
    return (
        "# LXD's API extensions\n\n"
        f"Of the {len(lxd)} that LXD 5.0.2 names, flexd has {yes} whole. A name is in `api_extensions` only when all "
        "of it works; clients\nrefuse by themselves what is missing. Made by `python -m tests.wire.compatibility`; do "
        "not edit by hand.\n\n"
        f"Later ones and flexd's own: {', '.join(f'`{name}`' for name in own) or 'none'}.\n\n"
        "| extension | here |\n|---|---|\n" + "\n".join(rows) + "\n"
    )


def _state(name: str) -> str:
    if name in API_EXTENSIONS:
        return "yes"
    return f"partly: {PARTIAL[name]}" if name in PARTIAL else "no"


if __name__ == "__main__":
    print(page(), end="")
