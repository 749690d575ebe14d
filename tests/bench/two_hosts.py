# SPDX-License-Identifier: Apache-2.0
"""What takes two hosts: an evacuation."""

import json
import time
from pathlib import Path

from tests.bench.report import Report
from tests.system.hosts import Host, Hosts, hosts
from tests.system.images import tiny_image

COUNT, LIVE = 20, 10


def measure(report: Report, column: str, directory: Path, rounds: int) -> None:
    """Empty a host onto another one and fill it again, in turn."""
    with hosts(directory) as segment:
        first = segment.all[0]
        first.import_image(tiny_image(), "tiny")
        for number in range(COUNT):
            stateful = "true" if number < LIVE else "false"
            first.flexc("launch", "tiny", f"c{number}", "-c", f"migration.stateful={stateful}")
        for _ in range(rounds):
            _evacuate(report, column, segment, first)


def _evacuate(report: Report, column: str, segment: Hosts, first: Host) -> None:
    for key, words in (
        ("evacuate", ("evacuate", f"{first.name}:", "--to-any", "--force")),
        ("come_home", ("restore", f"{first.name}:")),
    ):
        began = time.monotonic()
        done = segment.person.flexc(*words, "-f", "json")
        report.add(key, column, time.monotonic() - began)
        rows = json.loads(done.stdout)
        live = sum(row["action"] == "live-migrate" for row in rows)
        if (len(rows), live) != (COUNT, LIVE):
            reasons = {row["note"] for row in rows if row["note"]} or {"no reason was told"}
            note = f"{words[0]}: {live} of {len(rows)} went live, not {LIVE} of {COUNT}: {'; '.join(sorted(reasons))}."
            if note not in report.notes:
                report.notes.append(note)
