# SPDX-License-Identifier: Apache-2.0
"""Bodies: every fault at once with its path, Go's null, PATCH."""

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexd.api.errors import BadRequest, InvalidInput
from flexd.api.image import ImagePut
from flexd.api.instance import InstancePut, InstancesPost
from flexd.api.profile import Profile, ProfilePut
from flexd.server.decode import decode, merged, narrow, parse_json


def test_every_fault_is_reported_with_its_path() -> None:
    body = b'{"name": 3, "config": {"a": 1, "b": "x"}, "devices": {"eth0": {"type": 7}}, "source": {"type": []}}'
    with pytest.raises(InvalidInput) as raised:
        decode(body, InstancesPost)
    assert [str(fault) for fault in raised.value.faults] == [
        "config.a: expected str, got int",
        "devices.eth0.type: expected str, got int",
        "name: expected str, got int",
        "source.type: expected str, got array",
    ]


def test_null_is_as_if_absent() -> None:
    body = b'{"name": "c1", "config": null, "profiles": null, "source": {"type": "none", "alias": null}, "devices": {}}'
    post = decode(body, InstancesPost)
    assert (post.config, post.profiles, post.source.type, post.source.alias) == ({}, None, "none", "")


def test_a_null_value_or_an_empty_one_unsets_a_configuration_key() -> None:
    assert decode(b'{"config": {"a": null, "b": "", "c": "1"}}', InstancePut).config == {"c": "1"}


def test_names_on_the_wire_differ_from_attributes() -> None:
    post = decode(b'{"source": {"type": "image", "base-image": "abc"}}', InstancesPost)
    assert post.source.base_image == "abc"


def test_unknown_members_are_ignored() -> None:
    assert decode(b'{"description": "x", "start": true}', InstancePut).description == "x"


def test_nanoseconds_of_go_are_read() -> None:
    put = decode(b'{"expires_at": "2026-11-23T06:10:06.773957075Z"}', ImagePut)
    assert put.expires_at.microsecond == 773957


@pytest.mark.parametrize(
    ("body", "words"),
    [(b"", "empty"), (b" ", "empty"), (b"{", "Invalid JSON"), (b"[]", "not an array"), (b'"x"', "not a string")],
)
def test_bodies_that_are_no_object(body: bytes, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        decode(body, InstancePut)


def test_null_alone_is_an_empty_object() -> None:
    assert decode(b"null", InstancePut) == InstancePut()


def test_patch_merges_maps_and_replaces_the_rest() -> None:
    current = InstancePut(config={"a": "1", "b": "2"}, profiles=["default"], description="old")
    patched = merged(b'{"config": {"b": "", "c": "3"}, "profiles": [], "devices": {"x": {"type": "none"}}}', current)
    assert patched.config == {"a": "1", "c": "3"}
    assert (patched.profiles, patched.description) == ([], "old")
    assert patched.devices == {"x": {"type": "none"}}


def test_patch_reports_faults_too() -> None:
    with pytest.raises(InvalidInput, match=r"config\.a: expected str, got int"):
        merged(b'{"config": {"a": 1}}', InstancePut())


def test_narrow_keeps_what_can_be_put() -> None:
    profile = Profile(config={"a": "1"}, description="d", name="p", used_by=["/1.0/instances/c1"])
    assert narrow(profile, ProfilePut) == ProfilePut(config={"a": "1"}, description="d")


@given(st.binary(max_size=200))
def test_any_bytes_give_an_object_or_a_bad_request(body: bytes) -> None:
    with contextlib.suppress(BadRequest):
        assert isinstance(parse_json(body), dict)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["config", "devices", "profiles", "ephemeral", "description"]), _json))
def test_any_json_gives_a_value_or_faults_below_its_members(value: dict[str, object]) -> None:
    faults = []
    with contextlib.suppress(BadRequest):  # besides faults: integers beyond 64 bits are no JSON to msgspec
        try:
            decode(msgspec.json.encode(value), InstancePut)
        except InvalidInput as error:
            faults = error.faults
    assert {fault.path.split(".")[0] for fault in faults} <= set(value)
