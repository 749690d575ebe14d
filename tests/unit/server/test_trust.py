# SPDX-License-Identifier: Apache-2.0
"""What a certificate is worth: pure decisions."""

from datetime import timedelta

import pytest

from flexd.api.errors import FlexdError
from flexd.server.certificate import PeerCertificate
from flexd.server.pki import Authority
from flexd.server.trust import CertificateRecord, Verdict, judge
from tests.unit.server.pki_house import NOW, Holder, make, revocations


@pytest.fixture(scope="module")
def ca() -> Holder:
    return make("ca", is_ca=True)


def decide(
    holder: Holder | None,
    record: CertificateRecord | None = None,
    authority: Authority | None = None,
    *,
    signature_suffices: bool = False,
) -> Verdict:
    peer = None if holder is None else PeerCertificate(holder.der)
    return judge(peer, record, authority, signature_suffices=signature_suffices, current=NOW)


def test_without_a_certificate_or_an_unknown_one() -> None:
    assert decide(None) == Verdict(False)
    assert decide(make()) == Verdict(False)


def test_a_known_one() -> None:
    assert decide(make(), CertificateRecord("")) == Verdict(True)


def test_what_is_restricted_and_to_what() -> None:
    record = CertificateRecord("", restricted=True, projects=["a", "b"])
    assert decide(make(), record) == Verdict(True, restricted=True, projects=("a", "b"))
    assert decide(make(), CertificateRecord("", type="metrics")) == Verdict(True, kind="metrics")


def test_dates_count_for_known_ones_too() -> None:
    record = CertificateRecord("")
    expired = decide(make(begin=NOW - timedelta(days=9), end=NOW - timedelta(days=1)), record)
    assert not expired.trusted
    assert "expired on" in expired.reason
    early = decide(make(begin=NOW + timedelta(days=1), end=NOW + timedelta(days=9)), record)
    assert not early.trusted
    assert "not valid before" in early.reason


def test_something_that_is_no_certificate() -> None:
    verdict = judge(PeerCertificate(b"junk"), CertificateRecord(""), None, signature_suffices=False, current=NOW)
    assert (verdict.trusted, verdict.reason) == (False, "the certificate cannot be read")


def test_an_authority_excludes_others(ca: Holder) -> None:
    authority = Authority(ca.pem.encode())
    verdict = decide(make(), CertificateRecord(""), authority)
    assert (verdict.trusted, verdict.reason) == (False, "the certificate is not signed by this server's authority")
    assert not decide(make(issuer=make("ca", is_ca=True)), CertificateRecord(""), authority).trusted
    assert decide(make(issuer=ca), CertificateRecord(""), authority).trusted


def test_a_signature_suffices_only_where_that_is_configured(ca: Holder) -> None:
    authority, signed = Authority(ca.pem.encode()), make(issuer=ca)
    assert not decide(signed, None, authority).trusted
    assert decide(signed, None, authority, signature_suffices=True) == Verdict(True)
    # The list may still say less of it.
    record = CertificateRecord("", restricted=True, projects=[])
    assert decide(signed, record, authority, signature_suffices=True).restricted


def test_a_revoked_one(ca: Holder) -> None:
    later = NOW + timedelta(days=2)
    revoked, other = (make(issuer=ca, end=later + timedelta(days=1)) for _ in range(2))
    authority = Authority(ca.pem.encode(), revocations(ca, revoked))
    verdict = decide(revoked, CertificateRecord(""), authority, signature_suffices=True)
    assert (verdict.trusted, verdict.reason) == (False, "the certificate was revoked")
    assert decide(other, CertificateRecord(""), authority).trusted


def test_lists_of_somebody_else_and_junk_are_refused(ca: Holder) -> None:
    stranger = make("ca", is_ca=True)
    with pytest.raises(FlexdError, match=r"ca\.crl: the authority in server\.ca has not signed it"):
        Authority(ca.pem.encode(), revocations(stranger))
    with pytest.raises(FlexdError, match=r"Failed reading ca\.crl"):
        Authority(ca.pem.encode(), b"junk")
    with pytest.raises(FlexdError, match=r"Failed reading server\.ca"):
        Authority(b"junk")


def test_an_outdated_list_still_revokes_and_refuses_nobody_else(ca: Holder) -> None:
    later = NOW + timedelta(days=2)
    revoked, other = (make(issuer=ca, end=later + timedelta(days=1)) for _ in range(2))
    authority = Authority(ca.pem.encode(), revocations(ca, revoked))
    assert authority.outdated_since(NOW) is None
    assert authority.outdated_since(later) == (NOW + timedelta(days=1)).replace(microsecond=0)
    for holder, trusted in ((revoked, False), (other, True)):
        peer = PeerCertificate(holder.der)
        verdict = judge(peer, None, authority, signature_suffices=True, current=later)
        assert verdict.trusted is trusted
