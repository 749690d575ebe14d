# SPDX-License-Identifier: Apache-2.0
"""Whether the kernel still lets anybody change networks, and which tests need that.

A kernel that crashed while it held its rtnl lock (docs/hosts.md) holds it until the machine is booted again: whoever
then asks for a network namespace or a list of links hangs for good, cannot be killed, or crashes it once more.
"""

import functools
from pathlib import Path

_TAINTED = Path("/proc/sys/kernel/tainted")
_DIED = 1 << 7  # tainted-kernels.rst: there was an oops
_HERE = Path(__file__).parent
_ALWAYS = ("system", "bench", "doom")
# A card's carrier in sysfs and getaddrinfo(3) of "any address" come under the same lock.
_ALSO = (
    "unit/host/test_resources.py::test_this_machine",
    "unit/server/test_listeners.py::",
    "unit/server/test_https.py::test_openssl_is_asked_for_a_certificate_and_names_no_authority",
)
_REAL = (
    "contract/runtime",
    "contract/devices",
    "contract/network",
    "contract/host/test_criu.py",  # `criu check` makes tunnels
    "contract/host/test_links.py",
    "contract/host/test_machine.py",  # cards in sysfs
)


@functools.cache
def crashed() -> str:
    """Why no test that needs a network is run here; "" if they can be. Trying one might never end."""
    try:
        tainted = int(_TAINTED.read_text())
    except (OSError, ValueError):
        return ""
    return (
        "this kernel has crashed (tainted: D), and may hold its network locks; boot it again" if tainted & _DIED else ""
    )


def needs_network(path: Path, test: str) -> bool:
    """Whether a test (`test_it[real-1]`) asks the kernel about this machine's networks, or changes them."""
    place = path.relative_to(_HERE).as_posix()
    if place.partition("/")[0] in _ALWAYS or f"{place}::{test}".startswith(_ALSO):
        return True
    return place.startswith(_REAL) and "real" in test.partition("[")[2].rstrip("]").split("-")
