# SPDX-License-Identifier: Apache-2.0
"""Distributions that images are built of: one file each, found by scanning this folder."""

import importlib
import pkgutil

from flexd.images.builders.recipe import Builder


def find_builders() -> dict[str, Builder]:
    """Name of a distribution to its builder; a module of this folder is one if it has `BUILDER`."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        builder: Builder | None = getattr(importlib.import_module(f"{__name__}.{module.name}"), "BUILDER", None)
        if builder is not None:
            found[builder.name] = builder
    return found
