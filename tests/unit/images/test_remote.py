# SPDX-License-Identifier: Apache-2.0
"""What is checked of an image that another server sent."""

import pytest

from flexd.api.errors import BadRequest
from flexd.api.image import ImageSource
from flexd.images.remote import check_copy
from flexd.images.sources import Offer


def test_files_that_the_fingerprint_names() -> None:
    check_copy(Offer("a" * 64, ImageSource()), "a" * 64)
    check_copy(Offer("a" * 64, ImageSource(), {"type": "oci"}), "a" * 64)  # published: of its files again


def test_other_files() -> None:
    with pytest.raises(BadRequest, match=rf"fingerprints don't match, got {'b' * 64} expected {'a' * 64}"):
        check_copy(Offer("a" * 64, ImageSource()), "b" * 64)


def test_an_image_of_a_registry_says_where_it_is() -> None:
    offer = Offer("a" * 64, ImageSource(), {"type": "oci", "id": "nginx:latest"})
    with pytest.raises(BadRequest, match=r'of the OCI image "nginx:latest".*fetch it from its registry'):
        check_copy(offer, "b" * 64)
