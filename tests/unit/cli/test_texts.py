# SPDX-License-Identifier: Apache-2.0
"""YAML, sizes, times, pairs, progress: small pure things."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexd.cli.errors import CliError, UsageError
from flexd.cli.keyvalue import apply_changes, parse_devices, parse_pairs, parse_settings, remove_key
from flexd.cli.progress import OperationProgress, progress_text
from flexd.cli.show import long_time, size_iec, size_si, utc_time
from flexd.cli.sizes import parse_size
from flexd.cli.yamltext import dump, load


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (
            {"a": "true", "b": "1", "c": "", "d": "x: y", "e": "null"},
            'a: "true"\nb: "1"\nc: ""\nd: \'x: y\'\ne: "null"\n',
        ),
        ({"created_at": "2026-11-23T06:10:02.749760587Z"}, "created_at: 2026-11-23T06:10:02.749760587Z\n"),
        ({"config": {"b": "1.5", "a": "2026-01-01"}}, 'config:\n  a: "2026-01-01"\n  b: "1.5"\n'),
        ({"user-data": "#cloud-config\nx: 1\n"}, "user-data: |\n  #cloud-config\n  x: 1\n"),
        (
            {"devices": {"z": {"type": "nic", "name": "n"}, "a": {}}},
            "devices:\n  a: {}\n  z:\n    name: n\n    type: nic\n",
        ),
        ({"z": 1, "a": None, "f": False, "l": ["x"]}, "z: 1\na: null\nf: false\nl:\n- x\n"),
        ("word", "word\n"),
    ],
)
def test_yaml_looks_as_lxcs(document: object, text: str) -> None:
    assert dump(document) == text


@given(st.dictionaries(st.text(st.characters(codec="ascii", categories=("L", "N"))), st.text()))
def test_configuration_survives_yaml(config: dict[str, str]) -> None:
    assert load(dump({"config": config})) == {"config": dict(sorted(config.items()))}


def test_yaml_as_people_type_it() -> None:
    text = "config:\n  limits.cpu: 2\n  user.ephemeral: yes\nephemeral: yes\ndevices:\nprofiles: null\npublic: maybe\n"
    assert load(text) == {
        "config": {"limits.cpu": "2", "user.ephemeral": "yes"},
        "ephemeral": True,
        "devices": {},
        "profiles": [],
        "public": "maybe",
    }


@pytest.mark.parametrize(
    ("count", "iec", "si"),
    [
        (0, "0B", "0B"),
        (999, "999B", "999B"),
        (1024, "1.00KiB", "1.02kB"),
        (1536 * 1024, "1.50MiB", "1.57MB"),
        (10**12, "931.32GiB", "1.00TB"),
    ],
)
def test_sizes(count: int, iec: str, si: str) -> None:
    assert (size_iec(count), size_si(count)) == (iec, si)


@pytest.mark.parametrize(
    ("text", "count"), [("512MiB", 512 * 1024**2), ("1GB", 10**9), ("7", 7), ("1 KiB", 1024), ("x", 0), ("5parsec", 0)]
)
def test_sizes_of_configuration(text: str, count: int) -> None:
    assert parse_size(text) == count


def test_times() -> None:
    assert utc_time("2026-11-23T06:10:02.7Z") == "2026/11/23 06:10 UTC"
    assert utc_time("2026-11-23T06:10:02+02:00") == "2026/11/23 04:10 UTC"
    assert utc_time("0001-01-01T00:00:00Z") == utc_time("1970-01-01T00:00:00Z") == utc_time("") == ""
    assert long_time("2026-01-03T00:05:00Z") == "Jan 3, 2026 at 12:05am (UTC)"
    assert long_time("0001-01-01T00:00:00Z") == ""


def test_pairs() -> None:
    assert parse_pairs(["a=b", "c=d=e", "f="]) == {"a": "b", "c": "d=e", "f": ""}
    assert parse_settings(["a", "b"]) == {"a": "b"}
    assert parse_settings(["a=b", "c=d"]) == {"a": "b", "c": "d"}
    assert parse_devices(["root,size=1GiB,pool=x", "root,a=b"]) == {"root": {"size": "1GiB", "pool": "x", "a": "b"}}
    for wrong in ("a", "=b"):
        with pytest.raises(UsageError):
            parse_pairs([wrong])
    with pytest.raises(UsageError):
        parse_devices(["root"])


def test_changes() -> None:
    config = {"a": "1", "b": "2"}
    apply_changes(config, {"a": "", "c": "3", "d": ""})
    assert config == {"b": "2", "c": "3"}
    with pytest.raises(CliError):
        remove_key(config, "a", "c1")


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({"download_progress": "rootfs: 45% (3.10MB/s)"}, "rootfs: 45% (3.10MB/s)"),
        ({"fingerprint": "x", "progress": {"percent": "1"}}, ""),
        ({}, ""),
    ],
)
def test_progress_of_operations(metadata: dict[str, object], text: str) -> None:
    assert progress_text(metadata) == text


def test_a_bar_is_drawn_on_the_terminal_only_when_there_is_news(capfd: pytest.CaptureFixture[str]) -> None:
    with OperationProgress("Building") as progress:
        progress.show({"metadata": None})
        assert capfd.readouterr().err == ""
        progress.show({"metadata": {"build_progress": "Packing (88%)"}})
        progress.show({"metadata": {"build_progress": "Cleaning"}})
    assert capfd.readouterr().out == ""
