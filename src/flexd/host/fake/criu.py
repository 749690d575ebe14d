# SPDX-License-Identifier: Apache-2.0
"""A CRIU that works, unless a test says otherwise."""

from pathlib import Path

from flexd.host.criu_contract import CriuFacts
from flexd.host.fake.recorder import Recorder


class FakeCriu:
    def __init__(self, recorder: Recorder) -> None:
        self.value = CriuFacts(Path("/usr/sbin/criu"), "4.2.1", usable=True, memory_tracking=True)
        self._recorder = recorder

    async def facts(self) -> CriuFacts:
        self._recorder.note_reading("criu.facts")
        return self.value
