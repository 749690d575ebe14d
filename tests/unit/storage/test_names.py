# SPDX-License-Identifier: Apache-2.0
"""Names and URLs of pools and volumes."""

import pytest

from flexd.api.errors import BadRequest
from flexd.storage.contract import VolumeKind, VolumeRecord, VolumeRef
from flexd.storage.names import check_pool_name, check_volume_name, owner_url, volume_ref, volume_url


@pytest.mark.parametrize("name", ["default", "a", "fast.disk_2-x", "0"])
def test_good_names(name: str) -> None:
    check_pool_name(name)
    check_volume_name(name)


@pytest.mark.parametrize("name", ["", "..", ".x", "a/b", "-x", "a b", "x" * 64, "ü", "a\n"])
def test_bad_names(name: str) -> None:
    with pytest.raises(BadRequest):
        check_pool_name(name)
    with pytest.raises(BadRequest):
        check_volume_name(name)


def test_the_projects_name_is_in_front_outside_the_default_one() -> None:
    assert volume_ref(VolumeRecord("c1", "p", "container")) == VolumeRef("p", "container", "c1")
    assert volume_ref(VolumeRecord("c1", "p", "container", "web")) == VolumeRef("p", "container", "web_c1")


@pytest.mark.parametrize(
    ("kind", "project", "owner"),
    [
        ("container", "default", "/1.0/instances/n"),
        ("virtual-machine", "web", "/1.0/instances/n?project=web"),
        ("image", "default", "/1.0/images/n"),
        ("custom", "web", "/1.0/storage-pools/p/volumes/custom/n?project=web"),
    ],
)
def test_who_owns_a_volume(kind: VolumeKind, project: str, owner: str) -> None:
    record = VolumeRecord("n", "p", kind, project)
    assert owner_url(record) == owner
    assert volume_url(record).startswith(f"/1.0/storage-pools/p/volumes/{kind}/n")
