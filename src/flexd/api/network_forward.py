# SPDX-License-Identifier: Apache-2.0
"""Wire types of LXD's `/1.0` API: network forward."""

from msgspec import Struct, field


class NetworkForwardPort(Struct):
    description: str = ""
    listen_port: str = ""
    protocol: str = ""
    target_address: str = ""
    target_port: str = ""


class NetworkForward(Struct):
    config: dict[str, str] = field(default_factory=dict)
    description: str = ""
    listen_address: str = ""
    location: str = ""
    ports: list[NetworkForwardPort] = field(default_factory=list)


class NetworkForwardPut(Struct):
    config: dict[str, str] = field(default_factory=dict)
    description: str = ""
    ports: list[NetworkForwardPort] = field(default_factory=list)


class NetworkForwardsPost(Struct):
    config: dict[str, str] = field(default_factory=dict)
    description: str = ""
    listen_address: str = ""
    ports: list[NetworkForwardPort] = field(default_factory=list)
