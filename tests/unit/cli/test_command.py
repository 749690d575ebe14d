# SPDX-License-Identifier: Apache-2.0
"""Reading a line: options and positionals in any order, as lxc reads them."""

import pytest

from flexd.cli.command import Arguments, Command, Option, Positional, parse
from flexd.cli.errors import UsageError

OPTIONS = (
    Option("-f", "--force", action="store_true", help=""),
    Option("-r", "--recursive", action="store_true", help=""),
    Option("-c", "--config", action="append", default=[], help=""),
    Option("--timeout", type=int, default=-1, help=""),
    Option("--format", choices=("csv", "json"), default="csv", help=""),
    Option("--console", bare="console", help=""),
)


def read(*argv: str, positionals: str = "a b? c*") -> Arguments:
    """`a` is needed, `b?` may be missing, `c*` takes any number, `c+` at least one."""
    dealt = [
        Positional(text.rstrip("?*+"), text[-1] if text[-1] in "?*+" else "1") for text in positionals.split() if text
    ]
    return parse(Command("x", "", lambda *_: None, "", dealt, OPTIONS), argv)


def test_options_stand_anywhere() -> None:
    args = read("one", "-f", "two", "--timeout", "5", "three")
    assert (args.a, args.b, args.c) == ("one", "two", ["three"])
    assert (args.force, args.timeout) == (True, 5)


@pytest.mark.parametrize("words", [["--config", "k=v"], ["--config=k=v"], ["-c", "k=v"], ["-ck=v"], ["-c=k=v"]])
def test_five_ways_to_give_a_value(words: list[str]) -> None:
    assert read("one", *words).config == ["k=v"]


def test_short_switches_can_be_joined() -> None:
    args = read("-rfc", "k=v", "one")
    assert (args.recursive, args.force, args.config, args.a) == (True, True, ["k=v"], "one")


def test_an_option_with_a_bare_meaning_takes_no_word() -> None:
    args = read("--console", "one")
    assert (args.console, args.a) == ("console", "one")
    assert read("--console=vga", "one").console == "vga"
    assert read("one").console == ""


def test_what_repeats_starts_empty_each_time() -> None:
    assert read("one", "-c", "a=b").config == ["a=b"]
    assert read("one").config == []


def test_after_two_dashes_all_is_positional() -> None:
    args = read("one", "--", "-f", "--", "x", positionals="a command+")
    assert args.command == ["-f", "--", "x"]
    assert args.force is False


def test_a_dash_alone_is_a_word() -> None:
    assert read("-").a == "-"


@pytest.mark.parametrize(
    ("positionals", "words", "expected"),
    [
        ("a b?", ["1"], ("1", "")),
        ("a b?", ["1", "2"], ("1", "2")),
        ("a+ b", ["1", "2", "3"], (["1", "2"], "3")),
        ("a b*", ["1"], ("1", [])),
        ("a? b*", [], ("", [])),
    ],
)
def test_words_are_dealt_out(positionals: str, words: list[str], expected: tuple[object, object]) -> None:
    args = read(*words, positionals=positionals)
    assert (args.a, args.b) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "<a> missing"),
        (["one", "--nope"], "unknown flag: --nope"),
        (["one", "-x"], "unknown flag: -x"),
        (["one", "--timeout"], "flag needs an argument: --timeout"),
        (["one", "--timeout", "soon"], 'invalid argument "soon" for --timeout: expected a number'),
        (["one", "--format", "xml"], "expected one of csv, json"),
        (["one", "--force=perhaps"], "it takes none"),
    ],
)
def test_misunderstandings(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(*words)
    assert message in str(caught.value)


def test_too_many_words() -> None:
    with pytest.raises(UsageError, match="two not expected"):
        read("one", "two", positionals="a")


def test_a_flag_before_the_command_hints_at_the_dashes() -> None:
    with pytest.raises(UsageError, match='put "--" before the command'):
        read("one", "ls", "-la", positionals="a command+")
