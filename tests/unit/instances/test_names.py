# SPDX-License-Identifier: Apache-2.0
"""Names of instances and profiles."""

import pytest

from flexd.api.errors import BadRequest
from flexd.instances.names import check_instance_name, check_profile_name, make_name


@pytest.mark.parametrize("name", ["c1", "a", "A-b-9", "x" * 63])
def test_good_instance_names(name):
    check_instance_name(name)


@pytest.mark.parametrize("name", ["", "1c", "-a", "a-", "a_b", "a.b", "a/b", "../x", "x" * 64, "ä", "a b", "a\n"])
def test_bad_instance_names(name):
    with pytest.raises(BadRequest, match="Invalid instance name"):
        check_instance_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "x" * 65, "a\n"])
def test_bad_profile_names(name):
    with pytest.raises(BadRequest, match="Invalid profile name"):
        check_profile_name(name)


def test_made_up_names_are_valid_and_free():
    taken = {make_name(set()) for _ in range(20)}
    name = make_name(taken)
    assert name not in taken
    check_instance_name(name)
