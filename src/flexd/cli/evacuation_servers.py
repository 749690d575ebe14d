# SPDX-License-Identifier: Apache-2.0
"""The servers of an evacuation, and what each says of itself."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from flexd.cli.errors import CliError
from flexd.cli.evacuation_plan import ORIGIN, Room, cpu_count, is_running, setting
from flexd.client.errors import ClientError, NotFoundError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from flexd.cli.context import Context
    from flexd.client.client import Client


@dataclass
class Server:
    """A remote and what it said. `identity`: what `volatile.evacuate.origin` calls it."""

    remote: str
    identity: str
    instances: list[Any]
    room: Room


def key_of(instance: Any) -> tuple[str, str]:
    """Project and name."""
    return instance.get("project") or "default", instance["name"]


def read_server(context: Context, remote: str, projects: Sequence[str]) -> Server:
    """Ask a remote for all that decisions depend on; `projects` are those whose profiles matter."""
    client = context.client(remote)
    environment = client.server().get("environment") or {}
    instances = client.get("/1.0/instances", {"recursion": "2", "all-projects": "true"})
    resources = client.get("/1.0/resources")
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    room = Room(
        remote,
        memory_total=int(memory.get("total", 0)),
        memory_used=int(memory.get("used", 0)),
        cpus=int(cpu.get("total", 0)) or 1,
        cpus_taken=sum(cpu_count(setting(each, "limits.cpu")) for each in instances if is_running(each)),
        architectures=frozenset(environment.get("architectures") or ()),
        pools=frozenset(_names(client, "/1.0/storage-pools")),
        networks=frozenset(_names(client, "/1.0/networks")),
        profiles=frozenset((project, name) for project in projects for name in _profiles(client, project)),
        instances={key_of(each) for each in instances},
        left_behind={key_of(each): setting(each, ORIGIN) for each in instances if not is_running(each)},
        criu_problem=str(environment.get("criu_problem", "it is no flexd")),
    )
    # A member's name means something to its cluster only.
    identity = environment.get("server_name" if environment.get("server_clustered") else "certificate_fingerprint")
    return Server(remote, str(identity or remote), instances, room)


def other_servers(context: Context, here: Server, named: Sequence[str]) -> list[Server]:
    """Where to go to, or to come from: the servers named, or every remote that answers and is not this one."""
    projects = sorted({project for project, _ in here.room.instances} | {"default"})
    found = []
    for remote in named or _remotes(context):
        try:
            server = read_server(context, remote, projects)
        except ClientError as error:
            if named:
                raise
            print(f"{remote}: left out: {error}", file=sys.stderr)
            continue
        if server.identity != here.identity:
            found.append(server)
        elif named:
            raise CliError(f'"{remote}:" is the same server as "{here.remote}:"')
    return found


def _remotes(context: Context) -> list[str]:
    """Those that are no image servers."""
    known = context.config.remotes
    return sorted(
        name for name, each in known.items() if not each.get("public") and each.get("protocol") in (None, "", "lxd")
    )


def _names(client: Client, path: str, query: dict[str, str] | None = None) -> list[str]:
    return [each.partition("?")[0].rpartition("/")[2] for each in client.get(path, query)]


def _profiles(client: Client, project: str) -> list[str]:
    try:
        return _names(client, "/1.0/profiles", {"project": project})
    except NotFoundError:  # it has no such project
        return []
