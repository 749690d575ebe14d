# SPDX-License-Identifier: Apache-2.0
"""Where images and aliases are found in the API (in operations and lifecycle events), and where servers are."""

import ipaddress
from urllib.parse import quote


def image_url(project: str, fingerprint: str) -> str:
    return f"/1.0/images/{fingerprint}" + _project(project)


def alias_url(project: str, name: str) -> str:
    """Slashes in a name are escaped: `/1.0/images/aliases/debian%2F12`."""
    return f"/1.0/images/aliases/{quote(name, safe='')}" + _project(project)


def _project(project: str) -> str:
    return "" if project == "default" else f"?project={quote(project, safe='')}"


def is_loopback(host: str) -> bool:
    """Whether a URL's host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
