# SPDX-License-Identifier: Apache-2.0
"""Dumping a container: CRIU freezes it and writes the images, then waits for our word whether it is to end.

The word is the commit point of whoever dumps: until `finish` the container goes on as if nothing had been, whatever
becomes of the daemon."""

import asyncio
import os
from pathlib import Path

from flexd.host.contract import CgroupLayout, Host, Spawned
from flexd.runtime.contract import CheckpointFailed, RunningContainer
from flexd.runtime.criu import images as image_files
from flexd.runtime.criu import options, outside, watches
from flexd.runtime.criu.obstacles import explain
from flexd.runtime.criu.talk import Silent, Talk

# Memory goes to the images at some hundred MB a second; a dump that takes longer than this hangs.
_TIMEOUT_S = 900.0
_END_TIMEOUT_S = 60.0
# What passes by itself: a message that was on its way in the moment of the freeze.
_PASSING = ("The socket has data to read", "Control messages in queue", "Packet socket has data")
_TRIES, _PAUSE_S = 6, 0.15


class HeldDump:
    """`contract.Dump`."""

    def __init__(self, name: str, images: Path, talk: Talk, process: Spawned) -> None:
        self._name, self._images, self._talk, self._process = name, images, talk, process

    async def finish(self) -> None:
        answer = await self._decide(True)
        if not answer.success:
            raise await _failed(self._name, self._images, answer.message)

    async def resume(self) -> None:
        await self._decide(False)

    async def _decide(self, end: bool) -> options.Answer:
        """To the end, also if whoever asks is cancelled meanwhile: half an answer would leave it frozen."""
        return await asyncio.shield(asyncio.create_task(self._end(end)))

    async def _end(self, end: bool) -> options.Answer:
        try:
            async with asyncio.timeout(_END_TIMEOUT_S):
                answer = await self._talk.result(decide=end)
                self._talk.close()
                await self._process.wait()
        except Silent:
            return options.Answer(message="CRIU ended without an answer")
        except TimeoutError:
            return options.Answer(message=f"CRIU did not end within {_END_TIMEOUT_S:g} s")
        finally:
            self._talk.close()
            self._process.kill_group()
        return answer


async def take(
    host: Host, criu: Path, container: RunningContainer, binds: list[outside.Bind], images: Path
) -> HeldDump:
    """Dump into a directory, which is made anew. Returns with every process frozen and the images complete."""
    layout = await host.cgroups.layout()
    version = (await host.criu.facts()).version
    for attempt in range(1, _TRIES + 1):
        external = await asyncio.to_thread(_prepare, container, binds, images, layout, version)
        try:
            return await _dump(host, criu, container, layout, external, images)
        except CheckpointFailed as error:
            if attempt == _TRIES or not any(word in str(error) for word in _PASSING):
                raise
        await asyncio.sleep(_PAUSE_S * attempt)
    raise AssertionError("unreachable")


def _prepare(
    container: RunningContainer, binds: list[outside.Bind], images: Path, layout: CgroupLayout, version: str
) -> list[str]:
    """While everything runs: what would cost time with it frozen. Returns the names of what is outside."""
    files = image_files.make_directory(images)
    init = container.init.pid
    if layout.unified is not None:
        watches.drop_dead(init, layout.unified / container.cgroup)
    image_files.write_watch_cache(files, *watches.watched_paths(init))
    console = outside.console_of(init)
    points = outside.mounted_from_outside(outside.read_mountinfo(init), binds)
    notes = image_files.Notes(console, tuple(points), criu_version=version, cgroup_mode=layout.mode)
    image_files.write_notes(images, notes)
    external = [f"mnt[/{point}]:{point}" for point in points]
    return external + ([console, f"mnt[/{outside.CONSOLE}]:{outside.CONSOLE}"] if console else [])


async def _dump(
    host: Host, criu: Path, container: RunningContainer, layout: CgroupLayout, external: list[str], images: Path
) -> HeldDump:
    groups = options.Cgroups(await asyncio.to_thread(_controllers, container.init.pid), container.cgroup)
    request = options.dump(
        container.init.pid, images / image_files.FILES, groups, _freezer(layout, container.cgroup), external
    )
    talk = Talk()
    process = None
    try:
        argv = [str(criu), "swrk", str(talk.theirs.fileno())]
        process = await host.processes.spawn(argv, pass_fds=[talk.theirs.fileno()])
        talk.theirs.close()
        async with asyncio.timeout(_TIMEOUT_S):
            await talk.send(request)
            answer = await talk.until("post-dump")
    except BaseException as error:
        # Whatever is frozen by now goes on once CRIU sees that nobody listens; killed, it could not do that.
        talk.close()
        if process is not None:
            await _wait_or_kill(process)
        if isinstance(error, TimeoutError):
            raise await _failed(container.name, images, f"not finished after {_TIMEOUT_S:g} s") from error
        if isinstance(error, Silent):
            raise await _failed(container.name, images, "CRIU ended without an answer") from error
        raise
    if not answer.stage:
        talk.close()
        await process.wait()
        raise await _failed(container.name, images, answer.message)
    return HeldDump(container.name, images, talk, process)


async def _wait_or_kill(process: Spawned) -> None:
    try:
        await asyncio.shield(asyncio.wait_for(process.wait(), _END_TIMEOUT_S))
    except TimeoutError:
        process.kill_group()


def _controllers(pid: int) -> list[str]:
    return [line.split(":", 2)[1] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]


def _freezer(layout: CgroupLayout, group: str) -> Path:
    mount = layout.controllers.get("freezer") or layout.unified
    return Path(os.devnull) if mount is None else mount / group


async def _failed(name: str, images: Path, message: str) -> CheckpointFailed:
    errors = await asyncio.to_thread(image_files.errors_of, images / image_files.FILES / "dump.log")
    reason = explain(errors) or (errors[0] if errors else message.strip() or "CRIU does not say why")
    return CheckpointFailed(f'Failed saving the state of container "{name}": {reason}')
