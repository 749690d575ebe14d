# SPDX-License-Identifier: Apache-2.0
"""The table of configuration keys and its page."""

from pathlib import Path

from flexd.configuration import configuration, reference

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "configuration.md"


def test_the_page_is_fresh():
    assert PAGE.read_text() == reference(configuration()), (
        "run: python -m flexd.configuration > docs/reference/configuration.md"
    )


def test_every_key_is_described():
    missing = [
        f"{entity} {key.name}" for entity, keys in configuration().items() for key in keys if not key.description
    ]
    assert missing == []


def test_no_key_is_there_twice():
    for entity, keys in configuration().items():
        names = [key.name for key in keys]
        assert len(names) == len(set(names)), entity
