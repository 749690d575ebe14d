# SPDX-License-Identifier: Apache-2.0
"""A client that says a line every 10 ms over one TCP connection and expects each back; in a process of its own.

`python -m tests.bench.silence ADDRESS PORT` answers each line on its standard input with one of JSON: how many lines
came back since the last answer, and the longest silence. A line lost, doubled or out of order ends it with an error.
"""

import asyncio
import json
import sys
import time

_INTERVAL_S = 0.01
_PATIENCE_S = 60.0


class Echoes:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._last = time.monotonic()
        self._count, self._silence = 0, 0.0

    async def say(self) -> None:
        number = 0
        while True:
            self._writer.write(b"%d\n" % number)
            await self._writer.drain()
            number += 1
            await asyncio.sleep(_INTERVAL_S)

    async def listen(self) -> None:
        number = 0
        while line := await self._reader.readline():
            if line != b"%d\n" % number:
                raise ConnectionError(f"expected line {number}, got {line!r}")
            number += 1
            now = time.monotonic()
            self._silence, self._last = max(self._silence, now - self._last), now
            self._count += 1
        raise ConnectionError("the connection ended")

    def answer(self) -> dict[str, float]:
        silence = max(self._silence, time.monotonic() - self._last)
        found = {"lines": self._count, "silence_s": silence}
        self._count, self._silence = 0, 0.0
        return found


async def _connect(address: str, port: int) -> Echoes:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return Echoes(*await asyncio.open_connection(address, port))
        except OSError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


async def _obey(echoes: Echoes) -> None:
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while await lines.readline():
        print(json.dumps(echoes.answer()), flush=True)


async def main(address: str, port: int) -> None:
    echoes = await _connect(address, port)
    tasks = [asyncio.create_task(each) for each in (_obey(echoes), echoes.say(), echoes.listen())]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    for task in done:
        task.result()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
