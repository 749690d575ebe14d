# SPDX-License-Identifier: Apache-2.0
"""Wire types of LXD's `/1.0` API: certificate."""

from datetime import datetime

from msgspec import Struct, field

from flexd.api.times import ZERO_TIME


class Certificate(Struct):
    certificate: str = ""
    fingerprint: str = ""
    name: str = ""
    projects: list[str] = field(default_factory=list)
    restricted: bool = False
    type: str = ""


class CertificateAddToken(Struct):
    addresses: list[str] = field(default_factory=list)
    client_name: str = ""
    expires_at: datetime = ZERO_TIME
    fingerprint: str = ""
    secret: str = ""


class CertificatePut(Struct):
    certificate: str = ""
    name: str = ""
    projects: list[str] = field(default_factory=list)
    restricted: bool = False
    type: str = ""


class CertificatesPost(Struct):
    certificate: str = ""
    name: str = ""
    password: str = ""
    projects: list[str] = field(default_factory=list)
    restricted: bool = False
    token: bool = False
    type: str = ""
