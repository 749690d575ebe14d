# SPDX-License-Identifier: Apache-2.0
"""If-Match."""

import pytest

from flexd.api.errors import PreconditionFailed
from flexd.api.profile import ProfilePut
from flexd.server.etag import check_etag, etag_of

ONE = ProfilePut(config={"a": "1", "b": "2"})


def test_the_order_of_keys_does_not_matter() -> None:
    assert etag_of(ONE) == etag_of(ProfilePut(config={"b": "2", "a": "1"}))
    assert len(etag_of(ONE)) == 64


@pytest.mark.parametrize("sent", [None, "", "*", etag_of(ONE), f'"{etag_of(ONE)}"', f'W/"{etag_of(ONE)}"'])
def test_what_lets_an_edit_through(sent: str | None) -> None:
    check_etag(sent, ONE)


def test_another_tag_does_not() -> None:
    with pytest.raises(PreconditionFailed, match=f"ETag doesn't match: {etag_of(ONE)} vs abc"):
        check_etag('"abc"', ONE)
