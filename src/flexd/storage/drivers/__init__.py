# SPDX-License-Identifier: Apache-2.0
"""Storage drivers, one module each, named as LXD's `driver` field; the folder is scanned when this is imported.

A module defines `DRIVER`, a class that fits `flexd.storage.contract.Driver`.
"""

import importlib
import pkgutil

from flexd.api.errors import BadRequest
from flexd.storage.contract import DriverClass

_FOUND: dict[str, DriverClass] = {
    module.name: importlib.import_module(f"{__name__}.{module.name}").DRIVER
    for module in pkgutil.iter_modules(__path__)
}


def names() -> list[str]:
    return sorted(_FOUND)


def load(name: str) -> DriverClass:
    """The driver of this name; `BadRequest` if there is none."""
    if name not in _FOUND:
        raise BadRequest(f'Unsupported storage pool driver "{name}": expected one of {", ".join(names())}')
    return _FOUND[name]
