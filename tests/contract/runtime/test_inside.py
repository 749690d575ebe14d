# SPDX-License-Identifier: Apache-2.0
"""Commands in a container, and its console."""

import asyncio
import os
import signal

import pytest

from flexd.api.errors import BadRequest
from flexd.runtime.contract import ConsoleInUse, ExecSpec
from tests.contract.runtime.places import Pipes, Place, run


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("true",), 0),
        (("false",), 1),
        (("sh", "-c", "exit 42"), 42),
        (("sh", "-c", "kill -9 $$"), 137),
        (("no-such-program",), 127),
        (("/etc/data",), 126),
    ],
)
async def test_the_status_is_that_of_a_shell(place: Place, command: tuple[str, ...], status: int) -> None:
    container = await place.runtime.start(place.spec())
    assert (await run(place.runtime, container, *command))[0] == status


async def test_an_empty_command_is_refused(place: Place) -> None:
    container = await place.runtime.start(place.spec())
    with pytest.raises(BadRequest):
        await run(place.runtime, container)


async def test_output_and_errors_are_apart(place: Place) -> None:
    container = await place.runtime.start(place.spec())
    assert await run(place.runtime, container, "sh", "-c", "echo out; echo err >&2") == (0, b"out\n", b"err\n")


async def test_input_reaches_the_command_and_ends(place: Place) -> None:
    container = await place.runtime.start(place.spec())
    data = b"x" * 300_000  # more than a pipe holds
    pipes = Pipes()
    process = await pipes.start(place.runtime, container, ExecSpec(("wc", "-c")))
    output, _ = await pipes.finish(data)
    assert (await process.wait(), int(output)) == (0, len(data))


async def test_the_environment_is_what_was_asked_and_the_defaults(place: Place) -> None:
    container = await place.runtime.start(place.spec())
    environment = {"A": "b c", "EMPTY": "", "HOME": "/tmp"}
    _, output, _ = await run(place.runtime, container, "env", environment=environment)
    lines = set(output.decode().splitlines())
    assert {"A=b c", "EMPTY=", "HOME=/tmp", "USER=root", "LANG=C.UTF-8"} <= lines
    assert not [line for line in lines if line.startswith(("PYTEST", "VIRTUAL_ENV"))]


async def test_the_working_directory(place: Place) -> None:
    container = await place.runtime.start(place.spec())
    _, output, _ = await run(place.runtime, container, "pwd", cwd="/etc")
    assert output.decode().strip().endswith("/etc")


async def test_no_signal_is_ignored_or_blocked(place: Place) -> None:
    container = await place.runtime.start(place.spec())
    _, output, _ = await run(place.runtime, container, "cat", "/proc/self/status")
    lines = dict(line.split(":", 1) for line in output.decode().splitlines())
    assert (int(lines["SigIgn"], 16), int(lines["SigBlk"], 16)) == (0, 0)


async def test_a_large_command_passes(place: Place) -> None:
    container = await place.runtime.start(place.spec())
    # One argument may be 128 KiB (MAX_ARG_STRLEN); together they exceed what a socket buffer takes at once.
    words = ["y" * 100_000] * 5
    _, output, _ = await run(place.runtime, container, "sh", "-c", 'echo "$#"', "sh", *words)
    assert output == b"5\n"


async def test_a_signal_ends_the_command(place: Place) -> None:
    container = await place.runtime.start(place.spec())
    pipes = Pipes()
    process = await pipes.start(place.runtime, container, ExecSpec(("sleep", "3600")))
    assert process.pid > 0
    await process.signal(signal.SIGTERM)
    assert await process.wait() == 128 + signal.SIGTERM
    await process.signal(signal.SIGTERM)
    await pipes.finish()


async def test_commands_end_with_their_container(place: Place) -> None:
    container = await place.runtime.start(place.spec())
    pipes = Pipes()
    process = await pipes.start(place.runtime, container, ExecSpec(("sleep", "3600")))
    await place.runtime.kill(container)
    assert await process.wait() == 128 + signal.SIGKILL
    await pipes.finish()


async def test_many_commands_at_once(place: Place) -> None:
    container = await place.runtime.start(place.spec())
    results = await asyncio.gather(*(run(place.runtime, container, "echo", str(n)) for n in range(8)))
    assert results == [(0, f"{n}\n".encode(), b"") for n in range(8)]


async def test_a_terminal_controls_the_command(place: Place) -> None:
    container = await place.runtime.start(place.spec())
    master, slave = os.openpty()
    process = await place.runtime.exec(
        container,
        ExecSpec(("sh", "-c", "test -t 0 && echo terminal; exec sleep 3600")),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        terminal=True,
    )
    os.close(slave)
    assert b"terminal" in await asyncio.to_thread(os.read, master, 1000)
    await asyncio.to_thread(os.write, master, b"\x03")  # ^C
    assert await process.wait() == 128 + signal.SIGINT
    os.close(master)


async def test_closing_a_terminal_hangs_up(place: Place) -> None:
    container = await place.runtime.start(place.spec())
    master, slave = os.openpty()
    command = ExecSpec(("sh", "-c", "echo ready; exec sleep 3600"))
    process = await place.runtime.exec(container, command, stdin=slave, stdout=slave, stderr=slave, terminal=True)
    os.close(slave)
    assert b"ready" in await asyncio.to_thread(os.read, master, 1000)
    os.close(master)
    assert await process.wait() == 128 + signal.SIGHUP


async def test_the_console_has_one_holder_at_a_time(place: Place) -> None:
    container = await place.runtime.start(place.spec())
    master = await place.runtime.console(container)
    with pytest.raises(ConsoleInUse):
        await place.runtime.console(container)
    os.close(master)
    async with asyncio.timeout(10):
        while True:
            try:
                os.close(await place.runtime.console(container))
            except ConsoleInUse:  # the other side has not seen the end yet
                await asyncio.sleep(0.01)
            else:
                return


async def test_the_console_ends_with_the_container(place: Place) -> None:
    container = await place.runtime.start(place.spec())
    master = await place.runtime.console(container)
    await place.runtime.kill(container)
    assert await asyncio.to_thread(_ends, master)
    os.close(master)


def _ends(master: int) -> bool:
    try:
        while os.read(master, 1000):
            continue
    except OSError:
        return True  # EIO: the last slave is closed
    return True
