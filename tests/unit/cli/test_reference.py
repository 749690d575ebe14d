# SPDX-License-Identifier: Apache-2.0
"""The reference is made from the tables, and is not stale."""

from pathlib import Path

from flexd.cli.reference import render_reference

REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "flexc.md"


def test_the_reference_is_up_to_date() -> None:
    assert REFERENCE.read_text() == render_reference(), "Run: python -m flexd.cli.reference > docs/reference/flexc.md"


def test_every_command_is_in_it() -> None:
    text = render_reference()
    assert "\n#### flexc storage volume attach\n" in text
    assert "flexc launch [<remote>:]<image> [<remote>:][<name>] [flags]" in text
