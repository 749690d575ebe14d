# SPDX-License-Identifier: Apache-2.0
"""Lists: URLs without `recursion`, whole objects with it, and `filter=` on both."""

from collections.abc import Callable, Iterable
from typing import TypeVar
from urllib.parse import quote

from aiohttp import web
from msgspec import Struct

from flexd.projects.projects import Feature
from flexd.projects.record import DEFAULT_PROJECT, project_query
from flexd.server import responses
from flexd.server.call import Call

T = TypeVar("T", bound=Struct)


def object_url(collection: str, name: str, project: str = "default") -> str:
    """`/1.0/images/aliases/t%2F2`, with `?project=` outside the default one."""
    return f"{collection}/{quote(name, safe='')}{project_query(project)}"


def list_response(
    call: Call,
    collection: str,
    names: Callable[[str], Iterable[str]],
    show_all: Callable[[str], list[T]],
    *,
    key: str = "name",
    feature: Feature | None = None,
    of_server: bool = False,
) -> web.Response:
    """The answer to GET of a collection. `names` is enough, and cheap, where neither objects nor a filter are asked
    for; `key` is the member that holds an object's name; with `feature` they are of the projects that own such things
    for those of the request, with `of_server` of no project."""
    projects = call.projects if feature is None else call.owners(feature)
    if of_server:
        projects = (DEFAULT_PROJECT,)
    if not call.recursion and not call.filter.clauses:
        return responses.sync([object_url(collection, n, p) for p in projects for n in names(p)])
    found = [(project, value) for project in projects for value in call.filter.apply(show_all(project))]
    if call.recursion:
        return responses.sync([call.shown(value) for _, value in found])
    return responses.sync([object_url(collection, getattr(value, key), project) for project, value in found])
