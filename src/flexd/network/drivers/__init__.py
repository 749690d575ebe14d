# SPDX-License-Identifier: Apache-2.0
"""Network drivers: one module per type, each naming its class as `DRIVER`; the folder is scanned."""

import importlib
import pkgutil

from flexd.network.contract import Driver


def load_drivers() -> dict[str, type[Driver]]:
    """Type -> driver class."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return {module.DRIVER.type: module.DRIVER for module in modules}
