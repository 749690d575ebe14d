# SPDX-License-Identifier: Apache-2.0
"""What a daemon carries in memory: libraries that only some daemons need are imported by those that need them."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from cryptography.x509 import load_pem_x509_certificate

from flexd.host.processes import LinuxProcesses
from flexd.host.threads import Threads
from flexd.server.identity import make_apart
from flexd.server.tls import make_context
from flexd.server.x509 import make_server_certificate
from tests.unit.server.network_house import free_address

# Runs by itself: the tests' own process has imported everything already.
_DAEMON = """
import asyncio, json, socket, sys
from pathlib import Path
from tests.unit.instances.house import house

async def main(directory, address):
    async with house(directory) as home:
        await home.daemon.serve(directory / "unix.socket", "nobody")
        async with asyncio.timeout(20):
            reader, writer = await asyncio.open_unix_connection(str(directory / "unix.socket"))
            body = json.dumps({"config": {"core.https_address": address}} if address else {}).encode()
            head = f"PATCH /1.0 HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\nContent-Length: {len(body)}"
            writer.write(head.encode() + b"\\r\\n\\r\\n" + body)
            status = (await reader.readline()).split()[1]
            writer.close()
        assert status == b"200", status
        print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""
# OpenSSL and X.509: 16 MB. Prometheus' library: 1 MB. The others belong to the command and to tests.
HEAVY = {"OpenSSL", "cryptography", "prometheus_client"}
NEVER = {"paramiko", "pyroute2", "rich", "websockets"}


def modules_of(directory: Path, address: str = "") -> set[str]:
    """Those of a daemon that has started and answered, by their packages."""
    # With a certificate from an earlier start: the first one makes it in another process (`make_apart`).
    (directory / "state").mkdir(parents=True)
    certificate, key = make_server_certificate("host")
    (directory / "state/server.crt").write_bytes(certificate)
    (directory / "state/server.key").write_bytes(key)
    argv = [sys.executable, "-c", _DAEMON, str(directory), address]
    done = subprocess.run(argv, capture_output=True, text=True, env={"PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_a_daemon_on_its_unix_socket_alone(tmp_path: Path) -> None:
    found = modules_of(tmp_path)
    assert "flexd" in found
    assert found & (HEAVY | NEVER) == set()


def test_one_that_listens_on_the_network(tmp_path: Path) -> None:
    found = modules_of(tmp_path, free_address())
    assert {"OpenSSL", "cryptography"} <= found
    assert found & NEVER == set()


async def test_the_first_certificate_is_made_by_another_process() -> None:
    threads = Threads()
    certificate, key = await make_apart(LinuxProcesses(threads), "machine")
    # It is accepted as one, with its key.
    await asyncio.to_thread(make_context, certificate, key)
    assert load_pem_x509_certificate(certificate).subject.rfc4514_string() == "CN=root@machine,O=flexd"
