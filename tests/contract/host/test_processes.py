# SPDX-License-Identifier: Apache-2.0
"""Running programs, and telling processes from one another."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from flexd.host.contract import CommandFailed, Host, ProcessRef


async def test_output_and_status(host: Host) -> None:
    done = await host.processes.run(["sh", "-c", "echo out; echo err >&2; exit 3"], check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")


async def test_a_failure_tells_the_end_of_stderr(host: Host) -> None:
    with pytest.raises(CommandFailed, match="sh exited with status 3: it broke") as caught:
        await host.processes.run(["sh", "-c", "echo it broke >&2; exit 3"])
    assert caught.value.returncode == 3


async def test_a_program_that_is_not_there(host: Host) -> None:
    with pytest.raises(CommandFailed, match="No such file or directory") as caught:
        await host.processes.run(["flexd-has-no-such-program"])
    assert caught.value.returncode == 127


async def test_large_input_and_output(host: Host) -> None:
    data = os.urandom(1 << 20)
    assert (await host.processes.run(["cat"], stdin=data)).stdout == data


async def test_input_that_nobody_reads(host: Host) -> None:
    assert (await host.processes.run(["true"], stdin=bytes(1 << 20))).returncode == 0


async def test_environment_and_directory(host: Host, place: Path) -> None:
    os.environ["FLEXD_TEST_LEAK"] = "leaks"
    done = await host.processes.run(
        ["sh", "-c", "pwd; echo $MORE$FLEXD_TEST_LEAK$LC_ALL"], env={"MORE": "x"}, cwd=place
    )
    del os.environ["FLEXD_TEST_LEAK"]
    assert done.stdout.decode().splitlines() == [str(place), "xC.UTF-8"]


async def test_a_timeout_kills_the_whole_group(host: Host, place: Path) -> None:
    script = "sh -c 'echo $$ > child; exec sleep 1000' & echo $$ > parent; wait"
    with pytest.raises(CommandFailed, match=r"0\.5 s"):
        await host.processes.run(["sh", "-c", script], cwd=place, timeout_s=0.5)
    for name in ("parent", "child"):
        process = await host.processes.identify(int((place / name).read_text()))
        if process is not None:  # init has yet to reap it
            await host.processes.wait_exit(process)


async def test_cancelling_kills(host: Host, place: Path) -> None:
    running = asyncio.ensure_future(host.processes.run(["sh", "-c", "echo $$ > pid; exec sleep 1000"], cwd=place))
    while not (place / "pid").exists() or not (place / "pid").read_text():
        await asyncio.sleep(0.005)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await host.processes.identify(int((place / "pid").read_text())) is None


async def test_file_descriptors_are_passed(host: Host) -> None:
    reading, writing = os.pipe()
    await host.processes.run(["sh", "-c", f"echo hello >/proc/self/fd/{writing}"], pass_fds=[writing])
    os.close(writing)
    assert await asyncio.to_thread(os.read, reading, 100) == b"hello\n"
    os.close(reading)


async def test_a_spawned_program_is_wired_up(host: Host) -> None:
    reading, writing = os.pipe()
    child = await host.processes.spawn(["cat"], stdin=reading)
    os.close(reading)
    status_while_running = child.returncode
    assert status_while_running is None
    os.close(writing)
    assert await child.wait() == 0
    assert child.returncode == 0
    assert await host.processes.identify(child.pid) is None


async def test_ends_are_seen_by_all_who_wait(host: Host) -> None:
    child = await host.processes.spawn(["sleep", "1000"])
    process = await host.processes.identify(child.pid)
    assert process is not None
    assert process.pid == child.pid
    assert await host.processes.command_line(child.pid) == ["sleep", "1000"]
    waiting = [asyncio.ensure_future(host.processes.wait_exit(process)) for _ in range(2)]
    assert await host.processes.is_alive(process)
    assert await host.processes.signal(process, signal.SIGTERM)
    await asyncio.gather(*waiting)
    assert await child.wait() == -signal.SIGTERM
    assert not await host.processes.is_alive(process)
    assert not await host.processes.signal(process, signal.SIGTERM)
    await host.processes.wait_exit(process)
    assert await host.processes.command_line(child.pid) == []


async def test_a_child_is_killed(host: Host) -> None:
    child = await host.processes.spawn(["sleep", "1000"])
    child.kill()
    assert await child.wait() == -signal.SIGKILL
    child.kill()  # no matter


async def test_a_later_process_of_the_same_pid_is_a_stranger(host: Host) -> None:
    ourselves = await host.processes.identify(os.getpid())
    assert ourselves is not None
    stranger = ProcessRef(ourselves.pid, ourselves.start_time + 1)
    assert not await host.processes.is_alive(stranger)
    assert not await host.processes.signal(stranger, signal.SIGKILL)
    await host.processes.wait_exit(stranger)
    async with host.processes.network_held(stranger) as held:
        assert not held


async def test_a_network_namespace_is_held(host: Host) -> None:
    child = await host.processes.spawn(["sleep", "1000"])
    process = await host.processes.identify(child.pid)
    assert process is not None
    async with host.processes.network_held(process) as held:
        assert held
        child.kill()
        await child.wait()
    async with host.processes.network_held(process) as held:
        assert not held


async def test_children(host: Host) -> None:
    reading, writing = os.pipe()
    child = await host.processes.spawn(["cat"], stdin=reading)
    os.close(reading)
    assert child.pid in await host.processes.children(os.getpid())
    os.close(writing)
    await child.wait()
