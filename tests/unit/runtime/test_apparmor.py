# SPDX-License-Identifier: Apache-2.0
"""Profiles as apparmor_parser(8) reads them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexd.runtime.apparmor import Confinement, all_but, elsewhere, label, render_profile

VARIANTS = {
    "unprivileged": Confinement("flexd-1_c1"),
    "privileged": Confinement("flexd-1_c1", unprivileged=False),
    "nesting": Confinement("flexd-1_c1", nesting=True),
    "stacked": Confinement("flexd-1_c1", namespace="flexd-1_c1", nesting=True),
    "newer": Confinement("flexd-1_c1", newer=("userns,", "mqueue,")),
    "raw": Confinement("flexd-1_c1", raw="deny /etc/shadow rw,\n/srv/** r,"),
}


def test_denials_of_all_but_two_names():
    assert list(all_but("/s/", ["ab", "c/**"], "w")) == [
        "deny /s/[^ac/]*{,/**} w,",
        "deny /s/a[^b/]*{,/**} w,",
        "deny /s/a{,/**} w,",
        "deny /s/ab[^/]*{,/**} w,",
        "deny /s/c[^/]*{,/**} w,",
    ]


def matches(pattern: str, path: str) -> bool:
    """A pattern of apparmor.d(5), as far as ours go."""
    text = re.escape(pattern).replace(r"\{,/\*\*\}", "(/.*)?").replace(r"\*\*", ".*").replace(r"\*", "[^/]*")
    text = re.sub(r"\\\[\\\^(.*?)\\\]", lambda found: "[^" + found[1] + "]", text)
    return re.fullmatch(text, path) is not None


NAMES = ("ab", "abc/d", "net/**", "sh*", "sh*/**")
LETTERS = st.text("abcdnetsh/", min_size=1, max_size=8)


@given(st.lists(LETTERS, min_size=1, max_size=4))
def test_what_is_not_allowed_is_denied_and_the_other_way_round(parts: list[str]):
    path = "/s/" + re.sub("/+", "/", "/".join(parts)).strip("/")
    name = path.removeprefix("/s/")
    if not name:
        return
    denied = any(matches(rule.split()[1], path) for rule in all_but("/s/", NAMES, "w"))
    allowed = any(matches("/s/" + pattern, path) for pattern in NAMES)
    leads_there = any(pattern.startswith(name + "/") for pattern in NAMES)
    if allowed:
        assert not denied
    elif not leads_there and not name.startswith("ab/"):
        assert denied


@pytest.mark.parametrize(
    ("path", "is_elsewhere"),
    [
        ("/proc", False),
        ("/proc/sys", False),
        ("/procx", True),
        ("/home", True),
        ("/dev/.lxc/proc", False),
        ("/p", True),
    ],
)
def test_elsewhere(path: str, is_elsewhere: bool):
    assert any(matches(pattern, path) for pattern in elsewhere(["/proc", "/dev/.lxc"])) is is_elsewhere


@pytest.mark.parametrize("name", VARIANTS)
def test_profiles(name: str, request: pytest.FixtureRequest):
    golden = Path(__file__).with_name("apparmor") / f"{name}.profile"
    assert render_profile(VARIANTS[name]) == golden.read_text()


@pytest.mark.parametrize("name", VARIANTS)
def test_the_parser_takes_them(name: str, tmp_path: Path):
    if VARIANTS[name].newer:
        pytest.skip("not every parser does")
    parser, features = shutil.which("apparmor_parser"), Path("/usr/share/apparmor-features/features")
    if parser is None or not features.exists():
        pytest.skip("no apparmor_parser")
    path = tmp_path / "profile"
    path.write_text(render_profile(VARIANTS[name]))
    argv = [
        parser,
        "--skip-kernel-load",
        "--skip-cache",
        "--stdout",
        "--policy-features",
        features,
        "-M",
        features,
        path,
    ]
    done = subprocess.run(argv, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert len(done.stdout) > 1000


def test_labels():
    assert label(VARIANTS["nesting"]) == "flexd-1_c1"
    assert label(VARIANTS["stacked"]) == "flexd-1_c1//&:flexd-1_c1:"
