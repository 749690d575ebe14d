# SPDX-License-Identifier: Apache-2.0
"""`/1.0/certificates`: who is trusted; how a client becomes so by a token or a password."""

from base64 import b64decode
from binascii import Error

import msgspec
from aiohttp import web

from flexd.api.certificate import CertificatePut, CertificatesPost
from flexd.api.errors import BadRequest, Forbidden
from flexd.api.times import now
from flexd.operations.schedule import expires_at
from flexd.server import responses
from flexd.server.call import Call
from flexd.server.certificate import SentCertificate, read_certificate
from flexd.server.decode import narrow
from flexd.server.endpoint import Endpoint
from flexd.server.network_keys import TOKEN_EXPIRY, TRUST_PASSWORD
from flexd.server.tokens import decode_token
from flexd.server.transport import tls_of
from flexd.server.trust import URL, CertificateRecord, check_kind


def _visible(call: Call, fingerprint: str) -> bool:
    """A restricted certificate sees itself only (LXD shows it all)."""
    return call.caller.is_admin or fingerprint == call.caller.fingerprint


async def list_certificates(call: Call) -> web.Response:
    found = [each for each in call.services.certificates.show_all() if _visible(call, each.fingerprint)]
    shown = found if call.recursion else [f"{URL}/{each.fingerprint}" for each in found]
    return responses.sync(shown)


async def add_certificate(call: Call) -> web.Response:
    """By somebody trusted: a certificate, or a token for one. By anybody else: their own, with a token or password."""
    post = await call.body(CertificatesPost)
    if post.token and post.certificate:
        raise BadRequest("Can't use certificate if token is requested")
    if not call.caller.is_admin:
        return await _join(call, post)
    kind = check_kind(post.type)
    call.services.certificates.check_projects(post.projects)
    if post.token:
        if kind != "client":
            raise BadRequest("Tokens can only be issued for client certificates")
        return await _issue_token(call, post)
    return await _add(call, post, await _sent(call, post))


async def _join(call: Call, post: CertificatesPost) -> web.Response:
    """Somebody who is not trusted, with a token or the password in `password`, as LXD's clients send both."""
    if call.caller.trusted and not post.token:
        raise BadRequest("Client is already trusted")
    if post.token or not post.password:
        raise Forbidden("not authorized")
    token = decode_token(post.password)
    if token is None:
        stored = call.services.config.stored().get(TRUST_PASSWORD, "")
        await call.services.guesses.check(call.caller.address, stored, post.password)
        check_kind(post.type)
        return await _add(call, post, await _sent(call, post))
    # The certificate first: a token is not to be lost to a client that shows none.
    certificate = await _shown(call)
    return await _add(call, call.services.tokens.redeem(token), certificate)


async def _sent(call: Call, post: CertificatesPost) -> SentCertificate:
    """The one in the body, DER in base64; without one, the one of the connection."""
    if not post.certificate:
        return await _shown(call)
    try:
        data = b64decode(post.certificate, validate=True)
    except Error as error:
        raise BadRequest(f"Invalid certificate: it is not base64 of DER ({error})") from error
    return await read_certificate(data)


async def _shown(call: Call) -> SentCertificate:
    connection = tls_of(call.request)
    if connection is None or connection.peer is None:
        raise BadRequest("No client certificate provided")
    if call.caller.reason:
        raise Forbidden(f"not authorized: {call.caller.reason}")
    return await read_certificate(connection.peer.der)


async def _add(call: Call, post: CertificatesPost, certificate: SentCertificate) -> web.Response:
    if call.caller.trusted and not post.certificate:
        raise BadRequest("Client is already trusted")
    record = CertificateRecord(
        certificate=certificate.pem,
        name=post.name or certificate.common_name or call.caller.address,
        type=check_kind(post.type),
        restricted=post.restricted,
        projects=post.projects,
    )
    fingerprint = await call.services.certificates.add(certificate.der, record)
    return responses.created(f"{URL}/{fingerprint}")


async def _issue_token(call: Call, post: CertificatesPost) -> web.Response:
    services = call.services
    addresses = await services.listeners.reachable()
    if not addresses:
        raise BadRequest("Can't issue token when server isn't listening on network")
    expiry = services.config.get(TOKEN_EXPIRY)
    operation = services.tokens.issue(
        msgspec.structs.replace(post, type="client"),
        project=call.project,
        addresses=addresses,
        fingerprint=services.identity.fingerprint,
        expires_at=expires_at(now(), expiry),
    )
    return responses.background(operation.render())


def _editable(call: Call) -> CertificatePut:
    return narrow(call.services.certificates.show(call.param("fingerprint")), CertificatePut)


async def show_certificate(call: Call) -> web.Response:
    found = call.services.certificates.show(call.param("fingerprint"))
    if not _visible(call, found.fingerprint):
        raise Forbidden("not authorized")
    return responses.sync(found, editable=narrow(found, CertificatePut))


async def replace_certificate(call: Call) -> web.Response:
    call.check_etag(_editable(call))
    put = await call.body(CertificatePut)
    return await _update(call, put)


async def patch_certificate(call: Call) -> web.Response:
    current = _editable(call)
    call.check_etag(current)
    return await _update(call, await call.patched(current))


async def _update(call: Call, put: CertificatePut) -> web.Response:
    current = call.services.certificates.show(call.param("fingerprint"))
    if not call.caller.is_admin:
        _check_self_renewal(call, current.fingerprint, narrow(current, CertificatePut), put)
    if put.certificate == current.certificate:
        put = msgspec.structs.replace(put, certificate="")
    _finish_own(call, current.fingerprint)
    await call.services.certificates.update(current.fingerprint, put)
    return responses.empty()


def _check_self_renewal(call: Call, fingerprint: str, current: CertificatePut, put: CertificatePut) -> None:
    """What is restricted may put a new certificate in its own place (extension: certificate_self_renewal)."""
    if fingerprint != call.caller.fingerprint:
        raise Forbidden("not authorized")
    if msgspec.structs.replace(put, certificate="") != msgspec.structs.replace(current, certificate=""):
        raise Forbidden("Only the certificate can be changed")


async def remove_certificate(call: Call) -> web.Response:
    fingerprint = call.services.certificates.show(call.param("fingerprint")).fingerprint
    _finish_own(call, fingerprint)
    await call.services.certificates.delete(fingerprint)
    return responses.empty()


def _finish_own(call: Call, fingerprint: str) -> None:
    """Who changes the certificate that they use gets an answer, and then must connect anew."""
    connection = tls_of(call.request)
    if connection is not None and fingerprint == call.caller.fingerprint:
        call.services.connections.finish(connection)


ENDPOINTS = (
    Endpoint(URL, {"GET": list_certificates, "POST": add_certificate}, allow_untrusted=frozenset({"POST"})),
    Endpoint(
        URL + "/{fingerprint}",
        {
            "GET": show_certificate,
            "PUT": replace_certificate,
            "PATCH": patch_certificate,
            "DELETE": remove_certificate,
        },
    ),
)
