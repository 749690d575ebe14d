# SPDX-License-Identifier: Apache-2.0
"""Join tokens: once, for a while, by who has the secret."""

import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexd.api.certificate import CertificateAddToken, CertificatesPost
from flexd.api.errors import Forbidden
from flexd.api.times import ZERO_TIME, now
from flexd.operations.events import Events
from flexd.operations.operations import Operation, Operations
from flexd.server.tokens import Tokens, decode_token


@pytest.fixture
async def operations() -> AsyncIterator[Operations]:
    found = Operations(Events(), finished_kept_s=0)
    yield found
    await found.close()


@pytest.fixture
async def tokens(operations: Operations) -> AsyncIterator[Tokens]:
    found = Tokens(operations)
    yield found
    found.close()


def issue(tokens: Tokens, name: str = "laptop", expires_at: datetime = ZERO_TIME) -> Operation:
    post = CertificatesPost(name=name, type="client", restricted=True, projects=["p"], token=True)
    return tokens.issue(
        post, project="default", addresses=["192.0.2.1:8443"], fingerprint="f" * 64, expires_at=expires_at
    )


def token_of(operation: Operation) -> CertificateAddToken:
    metadata = operation.metadata
    return CertificateAddToken(client_name=metadata["request"]["name"], secret=metadata["secret"])


async def test_a_token_is_an_operation_as_lxds_clients_read_it(tokens: Tokens) -> None:
    operation = issue(tokens)
    rendered = operation.render()
    assert (rendered.class_, rendered.status, rendered.may_cancel) == ("token", "Running", True)
    metadata = rendered.metadata
    assert (metadata["addresses"], metadata["fingerprint"]) == (["192.0.2.1:8443"], "f" * 64)
    assert (metadata["request"]["name"], metadata["request"]["projects"]) == ("laptop", ["p"])
    assert len(metadata["secret"]) == 64
    assert "expiresAt" not in metadata


async def test_it_works_once_and_says_what_its_maker_allowed(tokens: Tokens) -> None:
    operation = issue(tokens)
    allowed = tokens.redeem(token_of(operation))
    assert (allowed.name, allowed.restricted, allowed.projects) == ("laptop", True, ["p"])
    assert operation.finished
    with pytest.raises(Forbidden, match="No matching certificate add operation found"):
        tokens.redeem(token_of(operation))


async def test_a_wrong_secret_or_name(tokens: Tokens) -> None:
    token = token_of(issue(tokens))
    for wrong in (
        CertificateAddToken(client_name="laptop", secret="0" * 64),
        CertificateAddToken(client_name="other", secret=token.secret),
    ):
        with pytest.raises(Forbidden, match="No matching certificate add operation found"):
            tokens.redeem(wrong)
    tokens.redeem(token)


async def test_a_cancelled_one(tokens: Tokens) -> None:
    operation = issue(tokens)
    await operation.cancel()
    with pytest.raises(Forbidden, match="No matching certificate add operation found"):
        tokens.redeem(token_of(operation))


async def test_an_expired_one(tokens: Tokens) -> None:
    operation = issue(tokens, expires_at=now() - timedelta(seconds=1))
    assert operation.metadata["expiresAt"].endswith("Z")
    with pytest.raises(Forbidden, match="The token has expired"):
        tokens.redeem(token_of(operation))
    assert operation.finished


async def test_an_expired_one_goes_away_by_itself(tokens: Tokens) -> None:
    operation = issue(tokens, expires_at=now() + timedelta(milliseconds=1))
    assert await operation.wait(10)
    assert operation.status == "Cancelled"


def test_lxds_own_tokens_are_read() -> None:
    """Recorded from lxd 5.0.2; later clients add fields."""
    known = {
        "client_name": "tok1",
        "fingerprint": "41de",
        "addresses": ["198.18.40.1:8443"],
        "secret": "bff7",
        "expires_at": "2026-11-23T07:12:32.094546874Z",
        "type": "Client certificate",
    }
    found = decode_token(base64.b64encode(json.dumps(known).encode()).decode())
    assert found is not None
    assert (found.client_name, found.secret, found.expires_at.tzinfo) == ("tok1", "bff7", UTC)


@pytest.mark.parametrize("text", ["", "hunter2", "eyJ4IjoxfQ==", "bnVsbA==", "W10=", "ü", "A" * 20000])
def test_what_is_no_token(text: str) -> None:
    assert decode_token(text) is None


def test_a_deep_one_is_none() -> None:
    assert decode_token(base64.b64encode(b'{"secret":' + b"[" * 9000).decode()) is None


@given(st.text(max_size=200))
def test_any_text_is_a_token_or_none(text: str) -> None:
    assert decode_token(text) is None


@given(st.binary(max_size=200))
def test_any_bytes_are_a_token_or_none(data: bytes) -> None:
    decode_token(base64.b64encode(data).decode())
