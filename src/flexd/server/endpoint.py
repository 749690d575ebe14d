# SPDX-License-Identifier: Apache-2.0
"""An endpoint is data: a path, who handles each method, and which methods an untrusted client may use."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from aiohttp import web

from flexd.server.call import Call

Handler = Callable[[Call], Awaitable[web.StreamResponse]]

# `/1.0/containers` and `/1.0/virtual-machines` show the instances of one type (lxd-benchmark 5.0.2 still uses them).
INSTANCE_ALIASES = {"containers": "container", "virtual-machines": "virtual-machine"}


@dataclass(frozen=True)
class Endpoint:
    """`{name}` in the path is one segment (percent-encoded slashes included), `{name:.+}` the rest of the path."""

    path: str
    handlers: Mapping[str, Handler]
    allow_untrusted: frozenset[str] = frozenset()

    def paths(self) -> list[str]:
        """The path, and its aliases if it is about instances."""
        prefix, instances = "/1.0/", "instances"
        if not self.path.startswith(prefix + instances):
            return [self.path]
        rest = self.path[len(prefix + instances) :]
        return [self.path, *(prefix + alias + rest for alias in INSTANCE_ALIASES)]
