# SPDX-License-Identifier: Apache-2.0
"""index.yaml: LXD 5.0.2's own is read, and ours has its shape."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from flexd.api.errors import BadRequest
from flexd.api.profile import Profile
from flexd.api.storage_pool import StoragePool
from flexd.api.times import ZERO_TIME
from flexd.backups.shelf import check_backup_name
from flexd.instances.backup_format import BackupIndex, Source, parse_config, parse_index, render_backup, render_index

RECORDED = (Path(__file__).parent / "recorded" / "lxd-5.0.2-index.yaml").read_bytes()


def _source(index: BackupIndex) -> Source:
    assert index.config is not None
    instance = index.config.described()
    assert instance is not None
    pool = StoragePool(name="default", driver="dir", config={"source": "/var/lib/lxd/storage-pools/default"})
    root = {"path": "/", "pool": "default", "type": "disk"}
    profile = Profile(name="default", description="Default LXD profile", devices={"root": root})
    return Source(instance, index.config.snapshots, pool, [profile])


def test_lxds_index_is_read():
    index = parse_index(RECORDED, "file")
    assert (index.name, index.backend, index.pool, index.snapshots) == ("c1", "dir", "default", ["s0", "s1", "s2"])
    assert index.config is not None
    instance = index.config.described()
    assert instance is not None
    assert instance.config["user.y"] == "1"
    assert instance.profiles == ["default"]
    assert instance.created_at == datetime(2026, 11, 23, 7, 9, 3, 540782, tzinfo=UTC)
    s0, _, s2 = index.config.snapshots
    assert (s0.expires_at, s2.expires_at.day) == (ZERO_TIME, 26)


def _shape(value: Any) -> Any:
    """Names and types; what may be in a configuration does not matter."""
    if isinstance(value, dict):
        return {k: "texts" if k in ("config", "expanded_config") and "container" not in v else _shape(v)
                for k, v in value.items()}  # fmt: skip
    return [_shape(item) for item in value] if isinstance(value, list) else type(value).__name__


def test_ours_has_the_same_shape():
    source = _source(parse_index(RECORDED, "file"))
    lxds, ours = yaml.safe_load(RECORDED), yaml.safe_load(render_index(source, "dir"))
    assert _shape(ours) == _shape(lxds)
    assert yaml.safe_load(render_backup(source)) == ours["config"]
    for key in ("name", "backend", "pool", "snapshots", "optimized", "type"):
        assert ours[key] == lxds[key]


def test_ours_is_read_as_it_was():
    first = parse_index(RECORDED, "file")
    again = parse_index(render_index(_source(first), "dir"), "file")
    assert first.config is not None
    assert again.config is not None
    for old, new in zip(first.config.snapshots, again.config.snapshots, strict=True):
        assert (old.name, old.created_at, old.expires_at, old.devices) == (
            new.name, new.created_at, new.expires_at, new.devices,
        )  # fmt: skip
    # Its files are unshifted in ours, whatever they were on the host.
    instance = again.config.described()
    assert instance is not None
    assert instance.config["volatile.last_state.idmap"] == "[]"
    assert not any(key.startswith("volatile.idmap.") for key in instance.config)


def test_texts_survive():
    """What YAML might take for something else, and user data of many lines."""
    source = _source(parse_index(RECORDED, "file"))
    config = {"user.a": "null", "user.b": "yes", "user.c": "0x10", "user.d": "line\n  more: [\n", "user.e": "é\t\u2028"}
    source.instance.config = {**source.instance.config, **config}
    again = parse_index(render_index(source, "overlay"), "file")
    assert again.config is not None
    instance = again.config.described()
    assert instance is not None
    assert {key: instance.config[key] for key in config} == config


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"[", "index.yaml"),
        (b"- a\n", "index.yaml"),
        (b"name: v1\ntype: virtual-machine\n", '"virtual-machine" are not supported'),
        (b"pool: p\n", "name is missing"),
        (b"name: c1\nsnapshots: 5\n", "snapshots"),
        (b"a: &a [x]\nb: *a\n", "anchors"),
        (b"[" * 50 + b"]" * 50, "nested too deeply"),
        (b"name: \xff\xfe\n", "index.yaml"),
    ],
)
def test_bad_indexes(text: bytes, fault: str):
    with pytest.raises(BadRequest) as caught:
        parse_index(text, "file")
    assert fault in str(caught.value)


def test_newer_lxd_calls_it_instance():
    config = parse_config(b"instance: {name: c1, config: {user.a: '1'}}\nsnapshots: null\n", "file")
    described = config.described()
    assert described is not None
    assert (described.name, config.snapshots) == ("c1", [])


@pytest.mark.parametrize("name", ["", "a/b", ".", "..", "a b", "x" * 65, "a\n"])
def test_bad_backup_names(name: str):
    with pytest.raises(BadRequest, match=r"[Bb]ackup name"):
        check_backup_name(name)
