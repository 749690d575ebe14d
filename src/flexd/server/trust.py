# SPDX-License-Identifier: Apache-2.0
"""Which client certificates are trusted, and with what: documents `/certificates/FINGERPRINT`.

`judge` is pure and is asked for every request, so that what changes here counts for connections that are open.
"""

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Literal, cast

from msgspec import Struct, field, structs

from flexd.api.certificate import Certificate, CertificatePut
from flexd.api.errors import BadRequest, Conflict, Forbidden, NotFound
from flexd.api.times import now
from flexd.operations.events import Events
from flexd.projects.projects import Projects
from flexd.server.certificate import PeerCertificate, fingerprint_of, read_certificate
from flexd.store.contract import If, Put, RevisionConflict
from flexd.store.documents import Document, Documents, Mirror

if TYPE_CHECKING:
    from flexd.server.pki import Authority

Kind = Literal["client", "metrics"]
KINDS = ("client", "metrics")
URL = "/1.0/certificates"


class CertificateRecord(Struct):
    """The document `/certificates/FINGERPRINT`."""

    certificate: str
    name: str = ""
    type: Kind = "client"
    restricted: bool = False
    projects: list[str] = field(default_factory=list)


class Verdict(Struct, frozen=True):
    """What a certificate is worth. `reason`: why it is not trusted. `kind` metrics: trusted with metrics only."""

    trusted: bool
    reason: str = ""
    kind: Kind = "client"
    restricted: bool = False
    projects: tuple[str, ...] = ()


UNKNOWN = Verdict(False)


def judge(
    peer: PeerCertificate | None,
    record: CertificateRecord | None,
    authority: "Authority | None",
    *,
    signature_suffices: bool,
    current: datetime,
) -> Verdict:
    """In LXD's order: dates, then the authority if there is one, then our own list.

    `signature_suffices` (core.trust_ca_certificates): what the authority signed need not be in the list."""
    if peer is None:
        return UNKNOWN
    if peer.validity is None:
        return Verdict(False, "the certificate cannot be read")
    begin, end = peer.validity
    if current < begin:
        return Verdict(False, f"the certificate is not valid before {begin:%Y-%m-%d %H:%M:%S} UTC")
    if current > end:
        return Verdict(False, f"the certificate expired on {end:%Y-%m-%d %H:%M:%S} UTC")
    if authority is not None:
        if not authority.has_signed(peer):
            return Verdict(False, "the certificate is not signed by this server's authority")
        if authority.has_revoked(peer):
            return Verdict(False, "the certificate was revoked")
        if signature_suffices and record is None:
            return Verdict(True)
    if record is None:
        return UNKNOWN
    return Verdict(
        True,
        kind=record.type,
        restricted=record.restricted,
        projects=tuple(record.projects) if record.restricted else (),
    )


class Certificates:
    """`authority` and `signature_suffices` are asked anew for every decision."""

    def __init__(
        self,
        mirror: Mirror,
        events: Events,
        *,
        projects: Projects,
        authority: "Callable[[], Authority | None]",
        signature_suffices: Callable[[], bool],
    ) -> None:
        self._documents = Documents(mirror, "certificates", CertificateRecord)
        self._events = events
        self._projects = projects
        self._authority = authority
        self._signature_suffices = signature_suffices
        self._drop: Callable[[str], None] = lambda _fingerprint: None

    def on_loss(self, drop: Callable[[str], None]) -> None:
        """Called with the fingerprint of a certificate that may less than before."""
        self._drop = drop

    def judge(self, peer: PeerCertificate | None) -> Verdict:
        found = None if peer is None else self._documents.get(peer.fingerprint)
        return judge(
            peer,
            None if found is None else found.value,
            self._authority(),
            signature_suffices=self._signature_suffices(),
            current=now(),
        )

    def is_trusted(self, peer: PeerCertificate | None) -> bool:
        return self.judge(peer).trusted

    def fingerprints(self) -> list[str]:
        return [found.path[0] for found in self._documents.list()]

    def show_all(self) -> list[Certificate]:
        return [_show(found) for found in self._documents.list()]

    def show(self, prefix: str) -> Certificate:
        return _show(self._find(prefix))

    def check_projects(self, projects: Iterable[str]) -> None:
        for name in projects:
            self._projects.find(name)

    async def add(self, der: bytes, record: CertificateRecord) -> str:
        """Trust it; its fingerprint. The certificate was checked (`read_certificate`)."""
        peer = PeerCertificate(der)
        fingerprint = peer.fingerprint
        authority = self._authority()
        if authority is not None and not authority.has_signed(peer):
            raise Forbidden("The certificate is not signed by this server's authority (server.ca)")
        self.check_projects(record.projects)
        try:
            await self._documents.create((fingerprint,), record)
        except RevisionConflict as error:
            raise Conflict("Certificate already in trust store") from error
        self._events.lifecycle("certificate-created", f"{URL}/{fingerprint}", "")
        return fingerprint

    async def update(self, prefix: str, put: CertificatePut) -> str:
        """Replace what may change; its fingerprint, which is another one if the certificate itself was replaced."""
        found = self._find(prefix)
        record = found.value
        if put.type and put.type != record.type:
            raise Forbidden("The certificate type cannot be changed")
        self.check_projects(put.projects)
        certificate = await read_certificate(put.certificate.encode()) if put.certificate else None
        changed = CertificateRecord(
            certificate=record.certificate if certificate is None else certificate.pem,
            name=put.name,
            type=record.type,
            restricted=put.restricted,
            projects=list(put.projects),
        )
        old = found.path[0]
        new = old if certificate is None else fingerprint_of(certificate.der)
        await self._replace(found, new, changed)
        self._events.lifecycle("certificate-updated", f"{URL}/{new}", "")
        if new != old or (changed.restricted, changed.projects) != (record.restricted, record.projects):
            self._drop(old)
        return new

    async def delete(self, prefix: str) -> None:
        fingerprint = self._find(prefix).path[0]
        await self._documents.delete((fingerprint,))
        self._drop(fingerprint)
        self._events.lifecycle("certificate-deleted", f"{URL}/{fingerprint}", "")

    def replace_project(self, old: str, new: str | None) -> tuple[list[Put], list[If]]:
        """For the transaction that renames or removes (None) a project: the certificates that are restricted to it. One
        whose last project goes sees none any more."""
        ops, conditions = [], []
        for found in self._documents.list():
            if old in found.value.projects:
                others = [name for name in found.value.projects if name != old]
                changed = structs.replace(found.value, projects=others if new is None else [*others, new])
                ops.append(self._documents.put(found.path, changed))
                conditions.append(self._documents.unchanged(found.path, found.revision))
        return ops, conditions

    async def _replace(self, found: Document[CertificateRecord], new: str, record: CertificateRecord) -> None:
        documents, old = self._documents, found.path
        operations = [documents.put((new,), record)]
        conditions = [documents.unchanged(old, found.revision)]
        try:
            if (new,) == old:
                await documents.txn(operations, conditions)
            else:
                absent = documents.unchanged((new,), 0)
                await documents.txn([*operations, documents.delete_op(old)], [*conditions, absent])
        except RevisionConflict as error:
            raise Conflict("Failed updating the certificate: it was changed meanwhile, or is in the store") from error

    def _find(self, prefix: str) -> Document[CertificateRecord]:
        """By its fingerprint, or by so much of its beginning that no other one has it."""
        exact = self._documents.get(prefix)
        if exact is not None:
            return exact
        found = [each for each in self._documents.list() if prefix and each.path[0].startswith(prefix)]
        if len(found) > 1:
            raise BadRequest("More than one certificate matches")
        if not found:
            raise NotFound("Certificate not found")
        return found[0]


def check_kind(kind: str) -> Kind:
    """The type of a certificate; LXD's `server` belongs to members of a cluster."""
    if (kind or "client") not in KINDS:
        raise BadRequest("Invalid certificate type")
    return cast(Kind, kind or "client")


def _show(found: Document[CertificateRecord]) -> Certificate:
    record = found.value
    return Certificate(
        certificate=record.certificate,
        fingerprint=found.path[0],
        name=record.name,
        projects=list(record.projects),
        restricted=record.restricted,
        type=record.type,
    )
