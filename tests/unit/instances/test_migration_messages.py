# SPDX-License-Identifier: Apache-2.0
"""The migration protocol's messages: the bytes that LXD's field numbers make, and what is no message."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexd.instances.migration.messages import (
    BadMessage,
    Control,
    Header,
    IdmapRow,
    Snapshot,
    decode_control,
    decode_header,
    decode_sync,
    encode_control,
    encode_header,
    encode_sync,
)

# Written out by hand from LXD's `migrate.proto`: tag (number << 3 | wire type), then the value.
_RSYNC_ALL = bytes.fromhex("420808011001180120" + "01")


def test_the_bytes_of_a_header() -> None:
    header = Header(
        idmap=[IdmapRow(True, False, 1000000, 0, 65536)],
        snapshot_names=["t0"],
        predump=False,
        rsync=["xattrs", "delete", "compress", "bidirectional"],
    )
    wanted = (
        bytes.fromhex("0800")  # fs: RSYNC
        + bytes.fromhex("1a0e08011000" + "18c0843d" + "2000" + "28808004")  # isuid, isgid, hostid, nsid, maprange
        + bytes.fromhex("22027430")  # snapshotNames
        + bytes.fromhex("3800")  # predump
        + _RSYNC_ALL
    )
    assert encode_header(header) == wanted
    assert decode_header(wanted) == header


def test_the_bytes_of_control_messages() -> None:
    assert encode_control(Control(True)) == bytes.fromhex("08011200")
    assert decode_control(bytes.fromhex("080012026e6f")) == Control(False, "no")
    assert decode_sync(encode_sync(True))


def test_ours_is_a_field_that_others_skip() -> None:
    """1000 << 3 | 2, as a varint."""
    assert encode_header(Header(flexd=b"{}")).endswith(bytes.fromhex("c23e027b7d"))
    assert decode_header(encode_header(Header(flexd=b"{}"))).flexd == b"{}"
    unknown = bytes.fromhex("0800" + "ba7d0178")  # field 2007, of somebody else
    assert decode_header(unknown) == Header()


def test_a_failure_reads_as_an_empty_header() -> None:
    """What `Peer.receive_header` relies on."""
    assert decode_header(encode_control(Control(False, "no"))) == Header()


@pytest.mark.parametrize("data", [b"", b"\x10\x01", b"\x08", b"\xff" * 20, b"\x08\x00\x22\xff\x01"])
def test_what_is_no_header(data: bytes) -> None:
    with pytest.raises(BadMessage):
        decode_header(data)


_texts = st.text(max_size=20).filter(lambda text: "\x00" not in text)
_snapshots = st.builds(
    Snapshot,
    name=_texts,
    config=st.dictionaries(_texts, _texts, max_size=3),
    profiles=st.lists(_texts, max_size=3),
    ephemeral=st.booleans(),
    devices=st.dictionaries(_texts, st.dictionaries(_texts, _texts, max_size=2), max_size=2),
    architecture=st.integers(0, 20),
    stateful=st.booleans(),
    created_at=st.integers(-62135596800, 1 << 40),
    last_used_at=st.integers(-62135596800, 1 << 40),
    expires_at=st.integers(-62135596800, 1 << 40),
)


@given(st.lists(_snapshots, max_size=3), st.booleans(), st.sampled_from([None, 0, 2]))
def test_headers_survive_the_way(snapshots: list[Snapshot], refresh: bool, criu: int | None) -> None:
    header = Header(snapshots=snapshots, refresh=refresh, criu=criu, btrfs=["migration_header"], index_version=1)
    assert decode_header(encode_header(header)) == header


@given(st.binary(max_size=200))
def test_anything_is_a_message_or_none(data: bytes) -> None:
    for decode in (decode_header, decode_control):
        try:
            decode(data)
        except BadMessage:
            continue
