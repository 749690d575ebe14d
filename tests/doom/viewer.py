# SPDX-License-Identifier: Apache-2.0
"""Somebody who watches the screen over one VNC connection, and never reconnects: a process in the watcher's network.

`python -m tests.doom.viewer ADDRESS` answers each line on its standard input (the name of a PNG file to write) with a
line of JSON: how many updates came since the last one, and the longest silence between two. Without a connection that
lasts, it ends with an error.
"""

import asyncio
import json
import struct
import sys
import time
from pathlib import Path

import asyncvnc
from PIL import Image

PORT = 5900
# "Send me this corner even if it did not change" (RFC 6143, 7.5.3): a still picture is no silence.
_ASK_FOR_A_CORNER = struct.pack(">BBHHHH", 3, 0, 0, 0, 8, 8)
# As often as the screen is asked for; Doom draws 35 pictures a second.
_FRAME_S = 0.04
# The screen's server starts a little after the container.
_PATIENCE_S = 60.0


class Viewer:
    def __init__(self, client: asyncvnc.Client) -> None:
        self._client = client
        self._last = time.monotonic()
        self.updates, self.silence = 0, 0.0

    async def watch(self) -> None:
        """For ever; ends only if the connection does."""
        while True:
            self._client.video.refresh()
            self._client.writer.write(_ASK_FOR_A_CORNER)
            while await self._client.read() is not asyncvnc.UpdateType.VIDEO:
                pass
            self._note()
            await asyncio.sleep(_FRAME_S)

    def _note(self) -> None:
        now = time.monotonic()
        self.silence, self._last = max(self.silence, now - self._last), now
        self.updates += 1

    def answer(self, file: Path) -> dict[str, float]:
        """A picture as it is now, and what came since the last one was taken."""
        silence = max(self.silence, time.monotonic() - self._last)
        Image.fromarray(self._client.video.as_rgba()).convert("RGB").save(file)
        found = {"updates": self.updates, "silence_s": silence}
        self.updates, self.silence = 0, 0.0
        return found


async def _connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return await asyncio.open_connection(address, PORT)
        except OSError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


async def _obey(viewer: Viewer) -> None:
    lines = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(lines)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    while line := (await lines.readline()).decode().strip():
        print(json.dumps(viewer.answer(Path(line))), flush=True)


async def main(address: str) -> None:
    async with asyncvnc.connect(address, PORT, opener=lambda *_: _connect(address)) as client:
        viewer = Viewer(client)
        watching, obeying = asyncio.create_task(viewer.watch()), asyncio.create_task(_obey(viewer))
        done, _ = await asyncio.wait({watching, obeying}, return_when=asyncio.FIRST_COMPLETED)
        watching.cancel()
        if watching in done:
            raise watching.exception() or ConnectionError("the connection ended")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
