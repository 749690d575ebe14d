# SPDX-License-Identifier: Apache-2.0
"""What somebody may who is not wholly trusted: a stranger, a metrics certificate, a certificate restricted to projects.

One table for all paths: what it does not name, a restricted certificate may not. A test compares it with the routes.
"""

from collections.abc import Mapping

from flexd.api.errors import Forbidden, NotFound
from flexd.projects.projects import Feature
from flexd.server.call import Caller

METRICS = "/1.0/metrics"
# What the metrics address serves (core.metrics_address); everything else is not there.
METRICS_ADDRESS_PATHS = frozenset({"/", "/1.0", METRICS})

# In these the project decides (`Call.check_project`): within its projects a restricted certificate may do everything.
BY_PROJECT = (
    "/1.0/instances",
    "/1.0/containers",
    "/1.0/virtual-machines",
    "/1.0/images",
    "/1.0/profiles",
    "/1.0/operations",
    "/1.0/storage-pools/{pool}/volumes",
)
# Of those below the project also decides what is seen.
SEEN_BY_PROJECT = ("/1.0/events", "/1.0/networks")
# An operation's identifier names its project, too, and its routes look at that. Clients don't name it again:
# Debian's `lxc` opens websockets without.
NAMED_BY_IDENTIFIER = "/1.0/operations/{id}"
_VOLUMES = "/1.0/storage-pools/{pool}/volumes"
_FEATURES: Mapping[str, Feature] = {"/1.0/images": "images", "/1.0/profiles": "profiles"}
_READ = frozenset({"GET", "HEAD"})
# Besides: what belongs to the server and is only looked at. LXD 5.0 would let a restricted certificate make networks;
# they are the host's, so here it may not.
BY_METHOD: Mapping[str, frozenset[str]] = {
    "/": _READ,
    "/1.0": _READ,
    "/1.0/events": _READ,
    "/1.0/metadata/configuration": _READ,
    METRICS: _READ,
    "/1.0/networks": _READ,
    "/1.0/projects": _READ,
    "/1.0/resources": _READ,
    "/1.0/storage-pools": _READ,
    # Its own only: the route looks at that.
    "/1.0/certificates": _READ | {"POST"},
    "/1.0/certificates/{fingerprint}": _READ | {"PUT", "PATCH"},
}
# Named so that nobody wonders whether they were forgotten.
ADMINISTRATORS_ONLY = ("/1.0/handovers/{token}", "/1.0/warnings")
# Lists of several projects (`all-projects=true`): they show the caller's.
ACROSS_PROJECTS = frozenset(
    {
        "/1.0/instances",
        "/1.0/containers",
        "/1.0/virtual-machines",
        "/1.0/images",
        "/1.0/networks",
        "/1.0/operations",
        "/1.0/profiles",
        "/1.0/storage-pools/{pool}/volumes",
        "/1.0/storage-pools/{pool}/volumes/{type}",
    }
)


def check(caller: Caller, path: str, method: str, *, for_strangers: bool, metrics_for_all: bool) -> None:
    """`path` as the endpoint writes it, `{name}` included."""
    if caller.metrics_only and path not in METRICS_ADDRESS_PATHS:
        raise NotFound("not found")
    if path == METRICS and (caller.kind == "metrics" or metrics_for_all):
        return
    if not caller.trusted:
        if for_strangers:
            return
        raise Forbidden(f"not authorized: {caller.reason}" if caller.reason else "not authorized")
    if caller.restricted and not _is_open(path, method):
        raise Forbidden("not authorized")


def check_project(caller: Caller, path: str, method: str, project: str, *, named: bool, all_projects: bool) -> None:
    """`project` is the one of the request, `named` there or the default one."""
    if not caller.restricted or project in caller.projects:
        return
    if not named and _is_below(path, NAMED_BY_IDENTIFIER):
        return
    if all_projects and not named and method in _READ and path in ACROSS_PROJECTS:
        return
    if named or _is_bound(path) or any(_is_below(path, prefix) for prefix in SEEN_BY_PROJECT):
        raise Forbidden(f'not authorized: the certificate is not for the project "{project}"')


def feature_of(path: str, volume_type: str) -> Feature | None:
    """What a path is about that a project may have of its own, or share with `default`. `volume_type`: in the path."""
    if _is_below(path, _VOLUMES):
        return "storage.volumes" if volume_type in ("", "custom") else None
    return next((feature for prefix, feature in _FEATURES.items() if _is_below(path, prefix)), None)


def check_owner(caller: Caller, method: str, feature: Feature, owner: str) -> None:
    """What a project shares with `default` may be used there, but not changed by whom `default` is kept from."""
    if not caller.may_use(owner) and method not in _READ:
        raise Forbidden(
            f'not authorized: what belongs to the project "{owner}" (features.{feature}) may not be changed'
        )


def _is_bound(path: str) -> bool:
    return any(_is_below(path, prefix) for prefix in BY_PROJECT)


def _is_open(path: str, method: str) -> bool:
    if _is_bound(path):
        return True
    fitting = [prefix for prefix in BY_METHOD if _is_below(path, prefix)]
    return bool(fitting) and method in BY_METHOD[max(fitting, key=len)]


def _is_below(path: str, prefix: str) -> bool:
    """`/1.0` has nothing below it: each resource has a row of its own."""
    return path == prefix or (prefix not in ("/", "/1.0") and path.startswith(prefix + "/"))
