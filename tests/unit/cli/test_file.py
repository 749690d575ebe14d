# SPDX-License-Identifier: Apache-2.0
"""file push, pull, delete, edit, create, against a small tree on the fake server."""

import json
import os
from pathlib import Path

import pytest
from aiohttp import web

from tests.unit.cli.conftest import Run
from tests.unit.client.fake_server import FakeServer, envelope, failure

FILES = "/1.0/instances/c1/files"


class Tree:
    """`/files` over a dict: path -> (type, headers, content)."""

    def __init__(self, server: FakeServer) -> None:
        self.nodes: dict[str, tuple[str, dict[str, str], bytes]] = {"/": ("directory", {}, b"")}
        for method in ("GET", "POST", "DELETE"):
            server.on(method, FILES, getattr(self, method.lower()))

    def put(self, path: str, content: bytes = b"", kind: str = "file", mode: str = "0640") -> None:
        self.nodes[path] = (kind, {"X-LXD-uid": "7", "X-LXD-gid": "8", "X-LXD-mode": mode}, content)

    async def get(self, request: web.Request) -> web.Response:
        path = os.path.normpath(request.query["path"])
        if path not in self.nodes:
            return failure(404, "Not Found")
        kind, headers, content = self.nodes[path]
        if kind == "directory":
            names = [os.path.basename(each) for each in self.nodes if os.path.dirname(each) == path and each != "/"]
            answer = envelope(names)
        else:
            answer = web.Response(body=content)
        answer.headers.update({**headers, "X-LXD-type": kind})
        return answer

    async def post(self, request: web.Request) -> web.Response:
        headers = {name: value for name, value in request.headers.items() if name.startswith("X-LXD")}
        path = os.path.normpath(request.query["path"])
        self.nodes[path] = (headers.get("X-LXD-type", "file"), headers, await request.read())
        return envelope({})

    async def delete(self, request: web.Request) -> web.Response:
        if any(os.path.dirname(each) == request.query["path"] for each in self.nodes if each != "/"):
            return failure(400, "Directory not empty")
        del self.nodes[request.query["path"]]
        return envelope({})


@pytest.fixture
def tree(server: FakeServer) -> Tree:
    made = Tree(server)
    made.put("/etc", kind="directory", mode="0755")
    made.put("/etc/hosts", b"127.0.0.1 localhost\n")
    made.put("/etc/alias", b"hosts", kind="symlink", mode="0777")
    return made


def test_push_keeps_mode_and_owner(run: Run, tree: Tree, tmp_path: Path) -> None:
    source = tmp_path / "f"
    source.write_bytes(b"content")
    source.chmod(0o600)
    assert run("file", "push", str(source), "c1/etc/f").status == 0
    kind, headers, content = tree.nodes["/etc/f"]
    assert (kind, content) == ("file", b"content")
    assert headers["X-LXD-mode"] == "0600"
    assert headers["X-LXD-uid"] == str(os.getuid())
    assert headers["X-LXD-write"] == "overwrite"


def test_push_as_somebody_else(run: Run, tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    assert run("file", "push", str(tmp_path / "f"), "c1/f", "--uid=33", "--gid", "34", "--mode=0755").status == 0
    headers = tree.nodes["/f"][1]
    assert (headers["X-LXD-uid"], headers["X-LXD-gid"], headers["X-LXD-mode"]) == ("33", "34", "0755")


def test_push_into_a_directory(run: Run, tree: Tree, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    assert run("file", "push", str(tmp_path / "a"), str(tmp_path / "b"), "c1/etc").status == 0
    assert tree.nodes["/etc/a"][2] == b"a"
    assert tree.nodes["/etc/b"][2] == b"b"
    assert "is no directory" in run("file", "push", str(tmp_path / "a"), str(tmp_path / "b"), "c1/x").err


def test_push_from_standard_input(run: Run, tree: Tree) -> None:
    assert run("file", "push", "-", "c1/etc/motd", stdin="hello").status == 0
    assert tree.nodes["/etc/motd"][2] == b"hello"


def test_push_makes_directories(run: Run, tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    assert run("file", "push", "-p", str(tmp_path / "f"), "c1/srv/a/b/f").status == 0
    assert [tree.nodes[path][0] for path in ("/srv", "/srv/a", "/srv/a/b", "/srv/a/b/f")] == [
        "directory",
        "directory",
        "directory",
        "file",
    ]


def test_push_of_a_tree(run: Run, tree: Tree, tmp_path: Path) -> None:
    top = tmp_path / "site"
    (top / "css").mkdir(parents=True)
    (top / "css" / "x.css").write_text("x")
    (top / "link").symlink_to("css/x.css")
    assert "say --recursive" in run("file", "push", str(top), "c1/etc").err
    assert run("file", "push", "-r", str(top), "c1/new").status == 0
    assert tree.nodes["/new/site/css/x.css"][2] == b"x"
    assert run("file", "push", "-r", str(top), "c1/etc").status == 0
    assert tree.nodes["/etc/site/css/x.css"][2] == b"x"
    assert tree.nodes["/etc/site/link"][0::2] == ("symlink", b"css/x.css")


def test_push_of_what_is_no_file(run: Run, tree: Tree, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "neither file, directory nor symbolic link" in run("file", "push", "-r", str(tmp_path), "c1/x").err
    assert "Failed opening" in run("file", "push", str(tmp_path / "none"), "c1/x").err


def test_pull(run: Run, tree: Tree, tmp_path: Path) -> None:
    assert run("file", "pull", "c1/etc/hosts", str(tmp_path)).status == 0
    assert (tmp_path / "hosts").read_bytes() == b"127.0.0.1 localhost\n"
    assert (tmp_path / "hosts").stat().st_mode & 0o777 == 0o640
    assert run("file", "pull", "c1/etc/hosts", "-").out == "127.0.0.1 localhost\n"


def test_pull_follows_a_link(run: Run, tree: Tree, tmp_path: Path) -> None:
    assert run("file", "pull", "c1/etc/alias", str(tmp_path / "got")).status == 0
    assert (tmp_path / "got").read_bytes() == b"127.0.0.1 localhost\n"


def test_pull_of_a_tree(run: Run, tree: Tree, tmp_path: Path) -> None:
    assert "say --recursive" in run("file", "pull", "c1/etc", str(tmp_path)).err
    assert run("file", "pull", "-r", "c1/etc", str(tmp_path)).status == 0
    assert (tmp_path / "etc" / "hosts").read_bytes() == b"127.0.0.1 localhost\n"
    assert os.readlink(tmp_path / "etc" / "alias") == "hosts"
    assert run("file", "pull", "-r", "c1/etc", str(tmp_path / "new")).status == 0
    assert (tmp_path / "new" / "etc" / "hosts").exists()


def test_a_link_in_a_circle_is_no_endless_pull(run: Run, tree: Tree, tmp_path: Path) -> None:
    tree.put("/etc/a", b"b", kind="symlink")
    tree.put("/etc/b", b"a", kind="symlink")
    assert "too many symbolic links" in run("file", "pull", "c1/etc/a", str(tmp_path)).err


def test_a_tree_that_leads_out_is_refused(run: Run, server: FakeServer, tmp_path: Path) -> None:
    async def evil(request: web.Request) -> web.Response:
        answer = envelope(["../../evil"])
        answer.headers["X-LXD-type"] = "directory"
        return answer

    server.on("GET", FILES, evil)
    result = run("file", "pull", "-r", "c1/etc", str(tmp_path))
    assert "it would lead out" in result.err
    assert not list(tmp_path.rglob("evil"))


def test_pull_of_nothing(run: Run, tree: Tree, tmp_path: Path) -> None:
    assert (
        run("file", "pull", "c1/nope", str(tmp_path)).err == "Error: Failed reading /nope of the instance: Not Found\n"
    )
    assert "Invalid number of arguments" in run("file", "pull", "c1/nope").err
    assert "is not [<remote>:]<instance>/<path>" in run("file", "pull", "c1", ".").err


def test_delete(run: Run, tree: Tree) -> None:
    assert "Directory not empty" in run("file", "delete", "c1/etc").err
    assert run("file", "delete", "c1/etc/hosts").status == 0
    assert run("file", "delete", "-r", "c1/etc").status == 0
    assert list(tree.nodes) == ["/"]


def test_edit(run: Run, tree: Tree) -> None:
    assert run("file", "edit", "c1/etc/hosts", stdin="new").status == 0
    kind, headers, content = tree.nodes["/etc/hosts"]
    assert (kind, content, headers["X-LXD-mode"], headers["X-LXD-uid"]) == ("file", b"new", "0640", "7")
    assert "it is a directory" in run("file", "edit", "c1/etc").err


@pytest.mark.parametrize(
    ("words", "node"),
    [
        (["c1/etc/new"], ("file", "0644", b"")),
        (["c1/etc/new", "--type=directory"], ("directory", "0755", b"")),
        (["c1/etc/new", "target", "--type=symlink"], ("symlink", None, b"target")),
    ],
)
def test_create(run: Run, tree: Tree, words: list[str], node: tuple[str, str | None, bytes]) -> None:
    assert run("file", "create", *words).status == 0
    kind, headers, content = tree.nodes["/etc/new"]
    assert (kind, headers.get("X-LXD-mode"), content) == node


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["c1/etc/hosts"], "already exists"),
        (["c1/etc/new", "--type=symlink"], "A symlink needs a target"),
        (["c1/etc/new", "target"], "Only symlinks have a target"),
        (["c1/etc/new", "--mode=rwx"], 'Invalid mode "rwx"'),
    ],
)
def test_create_refuses(run: Run, tree: Tree, words: list[str], message: str) -> None:
    before = json.dumps(sorted(tree.nodes))
    assert message in run("file", "create", *words).err
    assert json.dumps(sorted(tree.nodes)) == before


def test_mount_says_what_is_missing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "Give a directory to mount on, or --listen" in run("file", "mount", "c1").err
    assert "sshfs not found" in run("file", "mount", "c1", str(tmp_path)).err
    assert "expected ADDRESS:PORT" in run("file", "mount", "c1", "--listen", "here").err
