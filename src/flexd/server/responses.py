# SPDX-License-Identifier: Apache-2.0
"""LXD's response envelope, and the one place where an exception becomes an answer."""

import logging
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web
from msgspec import Struct

from flexd.api.errors import FlexdError
from flexd.api.operation import Operation
from flexd.server.etag import etag_of

log = logging.getLogger(__name__)

_JSON = "application/json"
# LXD's operation status codes that the envelope itself uses (doc/rest-api.md, "status codes").
_CREATED, _SUCCESS = 100, 200


class Envelope(Struct):
    """Member order as LXD writes it."""

    type: str
    status: str = ""
    status_code: int = 0
    operation: str = ""
    error_code: int = 0
    error: str = ""
    metadata: Any = None


_encoder = msgspec.json.Encoder()


def sync(metadata: Any, *, editable: Struct | None = None) -> web.Response:
    """A finished answer. `editable`: what PUT may change of it, for the ETag of a single object."""
    response = _json(Envelope("sync", "Success", _SUCCESS, metadata=metadata))
    if editable is not None:
        response.headers["ETag"] = f'"{etag_of(editable)}"'
    return response


def empty() -> web.Response:
    """Done, nothing to show; LXD sends an empty object."""
    return sync({})


def created(location: str) -> web.Response:
    """201: something new is at `location`."""
    response = _json(Envelope("sync", "Success", _SUCCESS), HTTPStatus.CREATED)
    response.headers["Location"] = location
    return response


def background(operation: Operation) -> web.Response:
    """202: the work goes on in an operation."""
    url = f"/1.0/operations/{operation.id}"
    envelope = Envelope("async", "Operation created", _CREATED, operation=url, metadata=operation)
    response = _json(envelope, HTTPStatus.ACCEPTED)
    response.headers["Location"] = url
    return response


def error(status: int, message: str) -> web.Response:
    return _json(Envelope("error", error_code=status, error=message), status)


def error_from(failure: Exception, request_id: str) -> web.Response:
    """The answer to an exception. Only flexd's own errors say why; anything else is a bug of ours, told to the log."""
    if isinstance(failure, FlexdError):
        return error(failure.status, str(failure) or HTTPStatus(failure.status).phrase)
    if isinstance(failure, web.HTTPMethodNotAllowed):
        response = error(HTTPStatus.NOT_IMPLEMENTED, "not implemented")
        response.headers["Allow"] = ", ".join(sorted(failure.allowed_methods))
        return response
    if isinstance(failure, web.HTTPNotFound):
        return error(HTTPStatus.NOT_FOUND, "not found")
    if isinstance(failure, web.HTTPException):
        return error(failure.status, failure.text or failure.reason)
    log.error("request %s failed: %s", request_id, failure, exc_info=failure)
    return error(HTTPStatus.INTERNAL_SERVER_ERROR, f"Internal error (the log has it as request {request_id})")


def _json(envelope: Envelope, status: int = HTTPStatus.OK) -> web.Response:
    return web.Response(body=_encoder.encode(envelope) + b"\n", status=status, content_type=_JSON)
