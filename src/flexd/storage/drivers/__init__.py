# SPDX-License-Identifier: Apache-2.0
"""Storage drivers, one module each, named as LXD's `driver` field; the folder is scanned.

A module defines `DRIVER`, a class that fits `flexd.storage.contract.Driver`.
"""

import importlib
import pkgutil
from typing import cast

from flexd.api.errors import BadRequest
from flexd.storage.contract import DriverClass


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> DriverClass:
    """The driver of this name; `BadRequest` if there is none."""
    if name not in names():
        raise BadRequest(f'Unsupported storage pool driver "{name}": expected one of {", ".join(names())}')
    return cast(DriverClass, importlib.import_module(f"{__name__}.{name}").DRIVER)
