# SPDX-License-Identifier: Apache-2.0
"""Wire types of LXD's `/1.0` API: server."""

from typing import Any

from msgspec import Struct, field


class ServerStorageDriverInfo(Struct):
    Name: str = ""
    Remote: bool = False
    Version: str = ""


class ServerEnvironment(Struct):
    addresses: list[str] = field(default_factory=list)
    architectures: list[str] = field(default_factory=list)
    certificate: str = ""
    certificate_fingerprint: str = ""
    criu_memory_tracking: bool = False  # ours, as the other two of criu: LXD's clients ignore what they do not know
    criu_problem: str = ""
    criu_version: str = ""
    driver: str = ""
    driver_version: str = ""
    firewall: str = ""
    kernel: str = ""
    kernel_architecture: str = ""
    kernel_features: dict[str, str] = field(default_factory=dict)
    kernel_version: str = ""
    lxc_features: dict[str, str] = field(default_factory=dict)
    os_name: str = ""
    os_version: str = ""
    project: str = ""
    server: str = ""
    server_clustered: bool = False
    server_event_mode: str = ""
    server_name: str = ""
    server_pid: int = 0
    server_version: str = ""
    storage: str = ""
    storage_supported_drivers: list[ServerStorageDriverInfo] = field(default_factory=list)
    storage_version: str = ""


class Server(Struct):
    api_extensions: list[str] = field(default_factory=list)
    api_status: str = ""
    api_version: str = ""
    auth: str = ""
    auth_methods: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    environment: ServerEnvironment = field(default_factory=ServerEnvironment)
    public: bool = False


class ServerPut(Struct):
    config: dict[str, Any] = field(default_factory=dict)


class ServerUntrusted(Struct):
    api_extensions: list[str] = field(default_factory=list)
    api_status: str = ""
    api_version: str = ""
    auth: str = ""
    auth_methods: list[str] = field(default_factory=list)
    public: bool = False
