# SPDX-License-Identifier: Apache-2.0
"""The table of extensions is the daemon's own list."""

from pathlib import Path

from flexd.api.extensions import API_EXTENSIONS, PARTIAL
from tests.wire.compatibility import page

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"


def test_the_page_is_fresh():
    assert PAGE.read_text() == page(), "run: python -m tests.wire.compatibility > docs/compatibility.md"


def test_nothing_is_whole_and_partial():
    assert not set(API_EXTENSIONS) & set(PARTIAL)
    assert len(API_EXTENSIONS) == len(set(API_EXTENSIONS))
