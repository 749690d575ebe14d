# SPDX-License-Identifier: Apache-2.0
"""`environment` of `GET /1.0`: what this host and this daemon are, most of it probed once at start."""

import os
import socket
from collections.abc import Iterable

import msgspec

from flexd.api.server import ServerEnvironment, ServerStorageDriverInfo
from flexd.api.storage_pool import StoragePool
from flexd.host.contract import CriuFacts, Features, Host
from flexd.runtime.contract import Runtime
from flexd.storage.pools import Pools

SERVER = "flexd"
# The LXD release whose API this is: clients compare it (Juju and Terraform want 5.0 or later). Our own version is in
# the `Server` header.
API_LEVEL = "5.0.2"


class Environment:
    def __init__(
        self,
        features: Features,
        *,
        driver_version: str,
        lxc_features: dict[str, str],
        firewall: str,
        storage_drivers: list[ServerStorageDriverInfo],
    ) -> None:
        self._storage_drivers = storage_drivers
        self._fixed = ServerEnvironment(
            architectures=features.architectures,
            driver="lxc",
            driver_version=driver_version,
            firewall=firewall,
            kernel=features.kernel,
            kernel_architecture=features.kernel_architecture,
            kernel_features=_kernel_features(features),
            kernel_version=features.kernel_version,
            lxc_features=lxc_features,
            os_name=features.os_name,
            os_version=features.os_version,
            server=SERVER,
            server_event_mode="full-mesh",
            server_name=socket.gethostname(),
            server_pid=os.getpid(),
            server_version=API_LEVEL,
            storage_supported_drivers=storage_drivers,
        )

    @classmethod
    async def probe(cls, host: Host, runtime: Runtime, pools: Pools) -> "Environment":
        return cls(
            await host.machine.features(),
            driver_version=await runtime.version(),
            lxc_features=dict(await runtime.features()),
            firewall="nftables" if await host.firewall.available() is None else "none",
            storage_drivers=await pools.drivers(),
        )

    def show(
        self,
        project: str,
        pools: Iterable[StoragePool],
        *,
        addresses: list[str],
        certificate: str,
        certificate_fingerprint: str,
        criu: CriuFacts,
    ) -> ServerEnvironment:
        """`storage` names the drivers in use, as LXD does: `dir | overlay`. `addresses`: where clients get in."""
        used = sorted({pool.driver for pool in pools})
        versions = {driver.Name: driver.Version for driver in self._storage_drivers}
        shown = msgspec.structs.replace(
            self._fixed,
            project=project,
            addresses=addresses,
            certificate=certificate,
            certificate_fingerprint=certificate_fingerprint,
            criu_memory_tracking=criu.memory_tracking,
            criu_problem=criu.reason,
            criu_version=criu.version,
        )
        shown.storage = " | ".join(used)
        shown.storage_version = " | ".join(versions.get(name, "") for name in used)
        return shown


def _kernel_features(features: Features) -> dict[str, str]:
    """LXD's names, for what is probed here."""
    known = {
        "idmapped_mounts": features.idmapped_mounts,
        "netnsid_getifaddrs": features.network_namespace_id,
        "seccomp_listener": features.seccomp_listener,
    }
    return {name: "true" if works else "false" for name, works in known.items()}
