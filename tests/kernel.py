# SPDX-License-Identifier: Apache-2.0
"""Whether the kernel still lets anybody change networks, and which tests need that.

A kernel that crashed while it held its rtnl lock (docs/hosts.md) holds it until the machine is booted again: whoever
then asks for a network namespace or a list of links hangs for good, and cannot be killed. Such a test never ends.
"""

import functools
import os
import subprocess
from pathlib import Path

_PATIENCE_S = 20.0  # what takes a millisecond, on a machine with too much to do
_HERE = Path(__file__).parent
_ALWAYS = ("system", "bench", "doom")
# A card's carrier in sysfs and getaddrinfo(3) of "any address" come under the same lock.
_ALSO = (
    "unit/host/test_resources.py::test_this_machine",
    "unit/server/test_listeners.py::",
    "unit/server/test_https.py::test_openssl_is_asked_for_a_certificate_and_names_no_authority",
)
_REAL = ("contract/runtime", "contract/devices", "contract/network", "contract/host/test_links.py")


@functools.cache
def stuck() -> str:
    """Why no test that needs a network can run here; "" if they can."""
    if os.geteuid() != 0:
        return ""
    quiet = subprocess.DEVNULL  # what hangs must not hold the output of this run
    argv = ["unshare", "--net", "true"]
    probe = subprocess.Popen(argv, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        probe.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        probe.returncode = -1  # it will not end, and nobody must wait for it
        return "this kernel's rtnl lock is stuck: unshare(CLONE_NEWNET) hangs (boot the machine again)"
    return ""


def needs_network(path: Path, test: str) -> bool:
    """Whether a test (`test_it[real-1]`) asks the kernel about this machine's networks, or changes them."""
    place = path.relative_to(_HERE).as_posix()
    if place.partition("/")[0] in _ALWAYS or f"{place}::{test}".startswith(_ALSO):
        return True
    return place.startswith(_REAL) and "real" in test.partition("[")[2].rstrip("]").split("-")
