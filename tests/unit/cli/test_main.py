# SPDX-License-Identifier: Apache-2.0
"""Words, help, aliases, errors and exit statuses."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexd.cli.command import Command, Group
from flexd.cli.commands import all_words, load
from flexd.cli.main import take_word
from tests.unit.cli.conftest import Run
from tests.unit.cli.documents import instance
from tests.unit.client.fake_server import FakeServer

SOURCE = Path(__file__).parents[3] / "src"


def leaves(words: list[str], command: Command | Group) -> Iterator[list[str]]:
    if isinstance(command, Group):
        for each in command.commands:
            yield from leaves([*words, each.name], each)
    else:
        yield words


def every_command() -> list[list[str]]:
    found = []
    for word in all_words():
        command = load(word)
        assert command is not None
        found += list(leaves([word], command))
    return found


def test_no_word_is_missing() -> None:
    issue = (
        "launch init list info start stop restart pause exec shell console file config profile image network storage "
        "operation monitor query delete rename move copy version remote alias warning admin completion"
    )
    assert set(issue.split()) <= set(all_words())


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_every_command_explains_itself(run: Run, words: list[str]) -> None:
    result = run(*words, "--help")
    assert (result.status, result.err) == (0, "")
    assert f"Usage:\n  flexc {' '.join(words)}" in result.out
    assert "  -h, --help" in result.out


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_usage_names_every_positional(words: list[str]) -> None:
    command: Command | Group | None = load(words[0])
    for word in words[1:]:
        assert isinstance(command, Group)
        command = command.find(word)
    assert isinstance(command, Command)
    needed = [each for each in command.positionals if each.count in "1+"]
    assert command.usage.replace("[<remote>:]", "").count("<") >= len(needed)


def test_without_words_help_teaches(run: Run) -> None:
    result = run()
    assert result.status == 0
    assert "flexc launch debian/12 first" in result.out
    assert "  launch " in result.out


def test_a_group_alone_shows_its_commands(run: Run) -> None:
    result = run("image")
    assert result.status == 1
    assert "  alias " in result.out


@pytest.mark.parametrize("words", [["--version"], ["list", "--version", "--help"]])
def test_version_and_help_are_found_anywhere(run: Run, words: list[str]) -> None:
    assert run(*words).status == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frob"], 'unknown command "frob" for "flexc"'),
        (["image", "frob"], 'unknown command "frob" for "flexc image"'),
        (["__init__"], "unknown command"),
        (["../list"], "unknown command"),
        (["list", "--bogus"], "unknown flag: --bogus"),
    ],
)
def test_misunderstandings_point_to_help(run: Run, words: list[str], message: str) -> None:
    result = run(*words)
    assert result.status == 1
    assert message in result.err
    assert "Try: flexc" in result.err


def test_the_servers_errors_are_printed(run: Run, server: FakeServer) -> None:
    server.fail("/1.0/instances/nope", 404, "Instance not found")
    result = run("config", "show", "nope")
    assert (result.status, result.out, result.err) == (1, "", "Error: Instance not found\n")


def test_without_a_daemon_the_error_says_what_to_do(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXD_SOCKET", "/nowhere/unix.socket")
    assert run("list").err == (
        "Error: Failed connecting to flexd at /nowhere/unix.socket: no such file or directory. "
        "Is the daemon running? Try: sudo ./run up\n"
    )


def test_global_options_come_before_the_word_too(run: Run, server: FakeServer) -> None:
    server.say("/1.0/instances", [])
    assert run("--project", "blue", "list").status == 0
    assert server.asked[0].query["project"] == "blue"


def test_debug_shows_requests(run: Run, server: FakeServer) -> None:
    server.say("/1.0/instances", [])
    assert "DEBUG GET /1.0/instances?recursion=2" in run("list", "--debug").err


def test_second_names(run: Run, server: FakeServer) -> None:
    server.say("/1.0/instances", [])
    assert run("ls").status == 0


def test_aliases_of_ones_own(run: Run, server: FakeServer) -> None:
    server.say("/1.0/instances", [instance("c1"), instance("web", "Stopped")])
    assert run("alias", "add", "up", "list status=running").status == 0
    assert run("up", "-f", "csv", "-c", "n").out == "c1\n"
    assert run("alias", "add", "show", "list @ARGS@ -f csv").status == 0
    assert run("show", "web", "-c", "n").out == "web\n"
    assert run("alias", "list", "-f", "csv").out == "show,list @ARGS@ -f csv\nup,list status=running\n"
    assert run("alias", "rename", "up", "on").status == 0
    assert run("alias", "remove", "show").status == 0
    assert run("alias", "list", "-f", "csv").out == "on,list status=running\n"
    assert "is a command of flexc" in run("alias", "add", "list", "image list").err
    assert "doesn't exist" in run("alias", "remove", "nope").err


def test_a_reader_that_leaves_is_no_error(server: FakeServer, settings: Path) -> None:
    server.say("/1.0/instances", [instance(f"c{number}") for number in range(200)])
    line = f"{sys.executable} -m flexd.cli.main list -f yaml | head -n 1"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(SOURCE), "FLEXD_SOCKET": str(server.socket_path)}
    done = subprocess.run(line, shell=True, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("- name: c0\n", "")


def test_a_list_imports_nothing_dear(server: FakeServer) -> None:
    """The start is the budget: none of these may come with it (see style 7.3 for what each costs)."""
    server.say("/1.0/instances", [instance()])
    dear = "argparse asyncio aiohttp rich yaml http.client email ssl socket urllib typing dataclasses msgspec logging"
    program = (
        "import sys; from flexd.cli.main import main; main(['list']);"
        f"print([name for name in {dear.split()!r} if name in sys.modules], file=sys.stderr)"
    )
    environment = {"FLEXD_SOCKET": str(server.socket_path), "HOME": "/nonexistent"}
    argv = [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(SOURCE)!r}); {program}"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert done.stderr == "[]\n"
    assert "| c1 " in done.stdout


def test_take_word_skips_values_of_global_options() -> None:
    assert take_word(["--project", "x", "list", "a"]) == ("list", ["--project", "x", "a"])
    assert take_word(["--project=x", "list"]) == ("list", ["--project=x"])
    assert take_word(["--help"]) == (None, ["--help"])
    assert take_word(["--", "list"]) == (None, ["--", "list"])
