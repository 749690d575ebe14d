# SPDX-License-Identifier: Apache-2.0
"""Requests recorded against a real lxd 5.0.2, replayed against ours: same status, envelope and, where given, words."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.server.conftest import Client

EXCHANGES = json.loads((Path(__file__).parent / "golden" / "exchanges.json").read_text())
ENVELOPE = ["type", "status", "status_code", "operation", "error_code", "error", "metadata"]


def body_of(exchange: dict[str, Any]) -> Any:
    body = exchange.get("body")
    return body.encode() if isinstance(body, str) else body


async def test_all(busy: Client) -> None:
    await busy.create("c2")
    wrong = []
    for exchange in EXCHANGES:
        headers = {name.replace("-", "_"): value for name, value in exchange.get("headers", {}).items()}
        answer = await busy.call(exchange["method"], exchange["path"], body_of(exchange), **headers)
        wrong += [f"{exchange['method']} {exchange['path']}: {fault}" for fault in faults(exchange, answer)]
    assert wrong == []


def faults(exchange: dict[str, Any], answer: Any) -> list[str]:
    found = []
    if answer.status != exchange["status"]:
        found.append(f"status {answer.status}, not {exchange['status']} ({answer.body!r})")
    missing = [name for name in exchange["header_names"] if name not in answer.headers]
    if missing:
        found.append(f"no header {missing}")
    if "type" not in exchange:
        return found
    if answer.envelope is None:
        return [*found, f"no envelope but {answer.body!r}"]
    if list(answer.envelope) != ENVELOPE:
        found.append(f"envelope {list(answer.envelope)}")
    expected = {"type": "type", "status": "envelope_status", "status_code": "status_code"}
    expected |= {name: name for name in ("error", "metadata") if name in exchange}
    found += [
        f"{name} {answer.envelope[name]!r}, not {exchange[recorded]!r}"
        for name, recorded in expected.items()
        if answer.envelope[name] != exchange[recorded]
    ]
    return found


def test_there_is_something_to_replay() -> None:
    assert len(EXCHANGES) > 80


@pytest.mark.parametrize("path", ["/1.0/instances/c1", "/1.0/profiles/default", "/1.0"])
async def test_single_objects_have_an_etag_of_64_hex_digits_in_quotes(busy: Client, path: str) -> None:
    etag = (await busy.call("GET", path)).headers["ETag"]
    assert (len(etag), etag[0], etag[-1]) == (66, '"', '"')
    assert int(etag.strip('"'), 16) >= 0
