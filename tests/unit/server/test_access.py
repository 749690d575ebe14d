# SPDX-License-Identifier: Apache-2.0
"""What those may who are not wholly trusted."""

import pytest

from flexd.api.errors import FlexdError, Forbidden, NotFound
from flexd.server import access
from flexd.server.app import endpoints
from flexd.server.call import Caller

STRANGER = Caller("", "tls", "192.0.2.1", trusted=False)
EXPIRED = Caller("f", "tls", "192.0.2.1", trusted=False, reason="the certificate expired")
METRICS = Caller("f", "tls", "192.0.2.1", trusted=False, kind="metrics")
RESTRICTED = Caller("f", "tls", "192.0.2.1", trusted=True, restricted=True, projects=("p",))
ADMIN = Caller("root", "unix", "@", trusted=True)
PATHS = sorted({path for endpoint in endpoints() for path in endpoint.paths()})


def may(caller: Caller, method: str, path: str, *, for_strangers: bool = False, metrics_for_all: bool = False) -> bool:
    try:
        access.check(caller, path, method, for_strangers=for_strangers, metrics_for_all=metrics_for_all)
    except FlexdError:
        return False
    return True


@pytest.mark.parametrize("path", PATHS)
def test_every_path_has_a_row(path: str) -> None:
    """Whoever adds a path decides here what a restricted certificate may do with it."""
    rows = (*access.BY_PROJECT, *access.BY_METHOD, *access.ADMINISTRATORS_ONLY)
    fitting = [row for row in rows if path == row or (row not in ("/", "/1.0") and path.startswith(row + "/"))]
    assert fitting, f"{path} is missing in flexd.server.access"


@pytest.mark.parametrize("path", PATHS)
def test_administrators_may_everything(path: str) -> None:
    assert all(may(ADMIN, method, path) for method in ("GET", "POST", "PUT", "PATCH", "DELETE"))


@pytest.mark.parametrize("path", PATHS)
def test_strangers_may_what_is_for_strangers(path: str) -> None:
    for caller in (STRANGER, EXPIRED):
        assert may(caller, "GET", path, for_strangers=True)
        assert not may(caller, "GET", path)


def test_the_reason_is_told() -> None:
    with pytest.raises(Forbidden, match=r"^not authorized: the certificate expired$"):
        access.check(EXPIRED, "/1.0/instances", "GET", for_strangers=False, metrics_for_all=False)
    with pytest.raises(Forbidden, match=r"^not authorized$"):
        access.check(STRANGER, "/1.0/instances", "GET", for_strangers=False, metrics_for_all=False)


def test_metrics() -> None:
    assert may(METRICS, "GET", "/1.0/metrics")
    assert not may(METRICS, "GET", "/1.0/instances")
    assert not may(STRANGER, "GET", "/1.0/metrics")
    assert may(STRANGER, "GET", "/1.0/metrics", metrics_for_all=True)


def test_on_the_metrics_address_there_is_nothing_else() -> None:
    there = Caller("f", "tls", "192.0.2.1", trusted=True, metrics_only=True)
    assert may(there, "GET", "/1.0/metrics")
    with pytest.raises(NotFound):
        access.check(there, "/1.0/instances", "GET", for_strangers=False, metrics_for_all=False)


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/1.0", "GET"),
        ("/1.0/instances", "GET PUT PATCH POST DELETE"),
        ("/1.0/containers/{name}/exec", "GET PUT PATCH POST DELETE"),
        ("/1.0/storage-pools", "GET"),
        ("/1.0/storage-pools/{pool}", "GET"),
        ("/1.0/storage-pools/{pool}/volumes/{type}/{name}", "GET PUT PATCH POST DELETE"),
        ("/1.0/networks/{name}", "GET"),
        ("/1.0/projects/{name}", "GET"),
        ("/1.0/certificates", "GET POST"),
        ("/1.0/certificates/{fingerprint}", "GET PUT PATCH"),
        ("/1.0/warnings", ""),
        ("/1.0/something-new", ""),
    ],
)
def test_a_restricted_certificate(path: str, methods: str) -> None:
    found = [method for method in ("GET", "PUT", "PATCH", "POST", "DELETE") if may(RESTRICTED, method, path)]
    assert sorted(found) == sorted(methods.split())


def project_may(path: str, project: str, *, named: bool, method: str = "GET", all_projects: bool = False) -> bool:
    try:
        access.check_project(RESTRICTED, path, method, project, named=named, all_projects=all_projects)
    except Forbidden:
        return False
    return True


def test_projects_of_a_restricted_certificate() -> None:
    assert project_may("/1.0/instances", "p", named=True)
    assert not project_may("/1.0/instances", "q", named=True)
    assert not project_may("/1.0/instances", "default", named=False)
    # What is the server's is shown without naming a project; naming a wrong one is refused.
    assert project_may("/1.0", "default", named=False)
    assert not project_may("/1.0/storage-pools", "q", named=True)
    # What a project decides about is that of the project that is asked about, which is `default` if none is named.
    for path in ("/1.0/events", "/1.0/networks", "/1.0/networks/{name}/leases"):
        assert project_may(path, "p", named=True)
        assert not project_may(path, "default", named=False)
    # An identifier names the project; the routes look at that. One that is named must fit all the same.
    for path in ("/1.0/operations/{id}", "/1.0/operations/{id}/wait", "/1.0/operations/{id}/websocket"):
        assert project_may(path, "default", named=False)
        assert not project_may(path, "q", named=True)
    assert not project_may("/1.0/operations", "default", named=False)


def test_all_projects_is_for_lists_only() -> None:
    assert project_may("/1.0/instances", "default", named=False, all_projects=True)
    assert not project_may("/1.0/instances", "default", named=False, all_projects=True, method="PUT")
    assert not project_may("/1.0/instances/{name}", "default", named=False, all_projects=True)
    assert not project_may("/1.0/instances", "q", named=True, all_projects=True)
