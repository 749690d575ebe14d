# SPDX-License-Identifier: Apache-2.0
"""Completion: candidates from the command tables and from the server, and the scripts of the shells."""

import shutil
import subprocess
from pathlib import Path

import pytest

from flexd.cli.complete import split_line
from tests.unit.cli.conftest import Run
from tests.unit.cli.documents import instance
from tests.unit.client.fake_server import FakeServer


@pytest.fixture(autouse=True)
def things(server: FakeServer) -> None:
    server.say("/1.0/instances", ["/1.0/instances/web", "/1.0/instances/db"])
    server.say("/1.0/instances/web", instance("web"))
    server.say("/1.0/networks", ["/1.0/networks/flexbr0"])
    server.say("/1.0/profiles", ["/1.0/profiles/default"])
    server.say("/1.0/storage-pools", ["/1.0/storage-pools/fast?project=default"])
    server.say("/1.0/storage-pools/fast/volumes/custom", ["/1.0/storage-pools/fast/volumes/custom/data"])
    server.say("/1.0/images/aliases", [{"name": "debian/12"}])
    server.say("/1.0/operations", {"running": ["/1.0/operations/abc"]})


@pytest.mark.parametrize(
    ("line", "candidates"),
    [
        ("flexc sta", "start"),
        ("flexc storage v", "volume"),
        ("flexc storage volume at", "attach attach-profile"),
        ("flexc start ", "db web"),
        ("flexc --project x start w", "web"),
        ("flexc start web ", "db web"),
        ("flexc info web ", ""),
        ("flexc launch ", "debian/12 debian: docker: images: local: ubuntu-daily: ubuntu:"),
        ("flexc launch ubuntu:", ""),
        ("flexc launch deb", "debian/12 debian:"),
        ("flexc launch debian/12 x -n ", "flexbr0"),
        ("flexc launch debian/12 x --profile d", "default"),
        ("flexc launch -p default ubu", "ubuntu-daily: ubuntu:"),
        ("flexc list --format ", "compact csv json table yaml"),
        ("flexc image b", "build"),
        ("flexc list --f", "--fast --force-local --format"),
        ("flexc config device remove web ", "eth0 root"),
        ("flexc config device add web d ni", "nic"),
        ("flexc network attach flexbr0 ", "db web"),
        ("flexc storage volume show ", "fast"),
        ("flexc storage volume show fast ", "data"),
        ("flexc operation show ", "abc"),
        ("flexc file pull ", "db/ web/"),
        ("flexc file push ", ":files:"),
        ("flexc list local:", "local:db local:web"),
        ("flexc remote switch ", "local:"),
        ("flexc nonsense ", ""),
        ("flexc image nonsense ", ""),
        ("flexc exec web -- ", ""),
        ("flexc exec web 'open ", ""),
    ],
)
def test_candidates(run: Run, line: str, candidates: str) -> None:
    assert run("_complete", "--", line).out.split() == candidates.split()


def test_without_a_server_words_are_completed_all_the_same(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXD_SOCKET", "/nowhere")
    result = run("_complete", "--", "flexc start ")
    assert (result.status, result.out, result.err) == (0, "", "")
    assert run("_complete", "--", "flexc sto").out == "stop\nstorage\n"


def test_lines_are_split_as_the_shell_does() -> None:
    assert split_line("flexc config set web user.a='x y' ") == (["flexc", "config", "set", "web", "user.a=x y"], "")
    assert split_line("flexc li") == (["flexc"], "li")
    assert split_line("") == ([], "")
    assert split_line("flexc exec c1 -- sh -c 'ls") == (["flexc", "exec", "c1", "--", "sh", "-c"], "'ls")


def script(run: Run, tmp_path: Path, shell: str) -> Path:
    path = tmp_path / f"flexc.{shell}"
    path.write_text(run("completion", shell).out)
    return path


@pytest.mark.parametrize(
    ("line", "said", "reply"),
    [
        ("flexc start ", "db web", "db web"),
        ("flexc start local:w", "local:web", "web"),
        ("flexc file push ", ":files:", ""),
    ],
)
def test_bash(run: Run, tmp_path: Path, line: str, said: str, reply: str) -> None:
    program = f"""
        source {script(run, tmp_path, "bash")}
        flexc() {{ printf '%s\\n' {said}; }}
        compopt() {{ :; }}
        COMP_LINE={line!r} COMP_POINT={len(line)}
        _flexc
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-uc", program], capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (reply.split(), "")


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_can_read_its_script(run: Run, tmp_path: Path) -> None:
    subprocess.run(["zsh", "-n", script(run, tmp_path, "zsh")], check=True)
