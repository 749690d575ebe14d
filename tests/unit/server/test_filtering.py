# SPDX-License-Identifier: Apache-2.0
"""LXD 5.0's filter language; the first table was asked of a real lxd 5.0.2 with c1 running and c2 stopped."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexd.api.errors import BadRequest
from flexd.api.instance import Instance
from flexd.server.filtering import parse_filter

C1 = Instance(
    name="c1",
    status="Running",
    status_code=103,
    config={"image.os": "tiny", "user.x": "1"},
    expanded_devices={"root": {"type": "disk"}},
    profiles=["default"],
)
C2 = Instance(name="c2", status="Stopped", config={"image.os": "tiny"}, expanded_devices={"root": {"type": "disk"}})


def names(text: str) -> list[str]:
    return [instance.name for instance in parse_filter(text).apply([C1, C2])]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["c1", "c2"]),
        ("status eq Running", ["c1"]),
        ("status eq running", ["c1"]),
        ("name eq c1 and status eq Stopped", []),
        ("name eq c1 or name eq c2", ["c1", "c2"]),
        ("not name eq c1", ["c2"]),
        ("NOT name eq c1", ["c2"]),
        ("name EQ c1", ["c1"]),
        ("name  eq  c1", ["c1"]),
        ("(name eq c1)", []),
        ("name ne c1", ["c2"]),
        ("config.user.x eq 1", ["c1"]),
        ("config.user.x ne 1", ["c2"]),
        ("config.image.os eq tiny", ["c1", "c2"]),
        ("expanded_devices.root.type eq disk", ["c1", "c2"]),
        ("expanded_devices.root eq x", []),
        ("expanded_devices.root.type.x eq x", []),
        ("nope eq 1", []),
        ("nope ne 1", ["c1", "c2"]),
        ("Name eq c1", []),
        ("name eq c", []),
        ("name eq c.*", ["c1", "c2"]),
        ("name eq c[12]", ["c1", "c2"]),
        ("name eq [", []),
        ("name eq (^c1$|^c1.*)", ["c1"]),
        ("name eq c1 or name eq c2 and status eq Stopped", ["c2"]),
        ("profiles eq default", []),
        ("config eq x", []),
    ],
)
def test_as_lxd_answers(text: str, expected: list[str]) -> None:
    assert names(text) == expected


def test_numbers_and_booleans_are_compared_as_text() -> None:
    """LXD 5.0.2 never matches them."""
    assert names("status_code eq 103") == ["c1"]
    assert names("ephemeral eq false and stateful ne true") == ["c1", "c2"]


def test_a_quoted_value_may_contain_spaces() -> None:
    spaced = Instance(name="c3", description="a b")
    assert parse_filter('description eq "a b"').apply([spaced, C1]) == [spaced]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name eq", "clause has no value"),
        ("name", "clause has no operator"),
        ("and", "clause has no operator"),
        ("name eq c1 xor name eq c2", "invalid clause composition"),
        ("name eq c1 not", "invalid clause composition"),
        ("name foo c1", "invalid clause composition"),
        ("name eq c1 and", "unterminated compound clause"),
        ('name eq "c1', "unterminated quote"),
        ("not", "incomplete not clause"),
        ("not not name eq c1", "invalid clause composition"),
    ],
)
def test_what_is_no_filter_is_refused_in_lxds_words(text: str, words: str) -> None:
    with pytest.raises(BadRequest, match=f"Invalid filter: .*{words}"):
        parse_filter(text)


@pytest.mark.parametrize("pattern", ["(a+)+", "(a|aa)*b", "(.*){9}", ".*.*.*.*x", "(a){2,}"])
def test_patterns_that_could_run_for_ever_are_refused(pattern: str) -> None:
    with pytest.raises(BadRequest, match="repeats too often"):
        parse_filter(f"name eq {pattern}")


@given(st.text(alphabet='abc.*+?()[]{}|^$\\" eqnotrand', max_size=40))
def test_any_text_is_a_filter_or_a_bad_request(text: str) -> None:
    with contextlib.suppress(BadRequest):
        parse_filter(text).apply([C1, C2])
