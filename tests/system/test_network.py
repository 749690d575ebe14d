# SPDX-License-Identifier: Apache-2.0
"""Real networks. The tests proper are in `network_inside.py` and run in a network namespace of their own, so that
neither bridges, sysctls nor nftables of the host are touched."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_NEEDED = ("dnsmasq", "nft", "ip", "unshare", "nsenter")
_MISSING = [program for program in _NEEDED if shutil.which(program) is None]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.skipif(bool(_MISSING), reason=f"needs {', '.join(_MISSING)}")
def test_networks_in_a_namespace_of_their_own() -> None:
    here = Path(__file__).parent
    tests = [here / "network_inside.py", here.parent / "contract" / "network" / "test_driver.py"]
    # A pid namespace, too: whatever a failing test leaves running ends with it.
    own = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
    done = subprocess.run(
        [*own, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, tests)],
        cwd=here.parents[1],
        env={**os.environ, "FLEXD_TEST_OWN_NETWORK": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
