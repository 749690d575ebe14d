# SPDX-License-Identifier: Apache-2.0
"""What only liblxc and the kernel can show: limits, ids, two daemons, links, accidents."""

import asyncio
import fcntl
import os
import shutil
import signal
import struct
import subprocess
import termios
from pathlib import Path

import pytest

from flexd.api.idmap import IdMap
from flexd.host.linux import LinuxHost
from flexd.runtime.contract import Ended, ExecSpec, NicSpec, StartFailed
from flexd.runtime.lxc import LxcRuntime
from flexd.runtime.seccomp import SeccompRules, render_policy
from tests.contract.runtime.places import Pipes, Place, run, settled


@pytest.fixture(autouse=True)
def only_real(place: Place) -> None:
    if not place.real:
        pytest.skip("the fake has no kernel")


def lxc(place: Place) -> LxcRuntime:
    assert isinstance(place.runtime, LxcRuntime)
    return place.runtime


async def test_two_daemons_run_a_container_of_the_same_name(place: Place, directory: Path) -> None:
    other_root = directory / "other-root"
    await asyncio.to_thread(shutil.copytree, place.root, other_root, symlinks=True)
    host = LinuxHost()
    other = LxcRuntime(host=host, directory=directory / "other", log_directory=directory / "other-logs")
    first = await place.runtime.start(place.spec())
    second = await other.start(place.spec(rootfs=other_root, idmap=IdMap()))
    try:
        assert first.cgroup != second.cgroup
        assert await place.runtime.find(place.name) == first
        await other.kill(second)
        assert await place.runtime.find(place.name) == first
    finally:
        await other.kill(second)
        await other.close()
        await host.close()


async def test_an_lxcfs_that_died(place: Place, directory: Path) -> None:
    """Its mount stays behind and answers ENOTCONN; containers then start without it."""
    if shutil.which("lxcfs") is None or not os.path.exists("/dev/fuse"):
        pytest.skip("there is no lxcfs or no /dev/fuse")
    mounted = directory / "lxcfs"
    mounted.mkdir()
    process = await asyncio.create_subprocess_exec(
        "lxcfs",
        "--foreground",
        "--pidfile",
        str(directory / "lxcfs.pid"),
        str(mounted),
        stderr=asyncio.subprocess.DEVNULL,
    )
    host = LinuxHost()
    runtime = LxcRuntime(host=host, directory=directory / "containers", log_directory=directory / "logs", lxcfs=mounted)
    try:
        await settled(lambda: os.path.exists(mounted / "proc/uptime"))
        container = await runtime.start(place.spec())
        assert b"fuse.lxcfs" in (await run(runtime, container, "cat", "/proc/mounts"))[1]
        await runtime.kill(container)
        process.kill()
        await process.wait()
        container = await runtime.start(place.spec())
        assert b"fuse.lxcfs" not in (await run(runtime, container, "cat", "/proc/mounts"))[1]
        await runtime.kill(container)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await asyncio.to_thread(subprocess.run, ["umount", "--lazy", mounted], check=True)
        await runtime.close()
        await host.close()


async def test_a_long_directory(place: Place, directory: Path) -> None:
    host = LinuxHost()
    deep = directory / ("d" * 100)
    runtime = LxcRuntime(host=host, directory=deep, log_directory=directory / "logs")
    container = await runtime.start(place.spec())
    try:
        assert await runtime.find(place.name) == container
        assert (await run(runtime, container, "true"))[0] == 0
    finally:
        await runtime.kill(container)
        await runtime.close()
        await host.close()


async def test_ids_are_mapped_and_commands_run_as_asked(place: Place) -> None:
    container = await place.runtime.start(place.spec())
    assert (await asyncio.to_thread(os.stat, f"/proc/{container.init.pid}")).st_uid == 1_000_000
    _, output, _ = await run(place.runtime, container, "id", "-u", uid=1000, gid=1000)
    assert output == b"1000\n"


async def test_a_command_is_in_every_namespace_and_cgroup_of_init(place: Place) -> None:
    container = await place.runtime.start(place.spec())
    pipes = Pipes()
    process = await pipes.start(place.runtime, container, ExecSpec(("sleep", "3600")))
    for namespace in ("user", "mnt", "pid", "net", "uts", "ipc", "cgroup"):
        links = [
            await asyncio.to_thread(os.readlink, f"/proc/{pid}/ns/{namespace}")
            for pid in (process.pid, container.init.pid)
        ]
        assert links[0] == links[1]
    groups = await asyncio.to_thread(Path(f"/proc/{process.pid}/cgroup").read_text)
    # On cgroup v2 liblxc makes a leaf of its own below the container's.
    assert all(container.cgroup in line for line in groups.splitlines())
    await process.signal(signal.SIGKILL)
    await process.wait()
    await pipes.finish()


async def test_limits_environment_and_sysctls(place: Place) -> None:
    host = LinuxHost()
    container = await place.runtime.start(
        place.spec(cgroup=(("pids.max", "321"),), sysctls={"net.ipv4.ip_forward": "1"}, environment={"A": "b c"})
    )
    assert (await host.cgroups.read(container.cgroup, "pids", "pids.max")).strip() == "321"
    assert (await run(place.runtime, container, "cat", "/proc/sys/net/ipv4/ip_forward"))[1] == b"1\n"
    environment = await asyncio.to_thread(Path(f"/proc/{container.init.pid}/environ").read_bytes)
    assert b"A=b c" in environment.split(b"\0")
    await host.close()


async def test_the_seccomp_policy_holds_for_init_and_commands(place: Place, directory: Path) -> None:
    profile = directory / "seccomp"
    await asyncio.to_thread(profile.write_text, render_policy(SeccompRules(), os.uname().machine))
    container = await place.runtime.start(place.spec(seccomp_profile=str(profile)))
    for pid in ("1", "self"):
        _, output, _ = await run(place.runtime, container, "cat", f"/proc/{pid}/status")
        assert b"Seccomp:\t2" in output
    # A forced umount is refused, a plain one is not.
    await run(place.runtime, container, "mount", "-t", "tmpfs", "none", "/tmp")
    assert (await run(place.runtime, container, "umount", "-f", "/tmp"))[0] != 0
    assert (await run(place.runtime, container, "umount", "/tmp"))[0] == 0


async def test_a_privileged_container_lacks_what_reaches_the_host(place: Place) -> None:
    container = await place.runtime.start(place.spec(idmap=IdMap()))
    _, output, _ = await run(place.runtime, container, "cat", "/proc/self/status")
    line = next(line for line in output.decode().splitlines() if line.startswith("CapBnd"))
    capabilities = int(line.split()[1], 16)
    # capability.h: CAP_SYS_MODULE 16, CAP_SYS_RAWIO 17, CAP_SYS_TIME 25, CAP_MAC_OVERRIDE 32, CAP_MAC_ADMIN 33
    assert not capabilities & sum(1 << number for number in (16, 17, 25, 32, 33))
    assert (await run(place.runtime, container, "sh", "-c", "echo 1 > /proc/sys/kernel/sysrq"))[0] != 0


async def test_a_link_is_moved_in(place: Place) -> None:
    host = LinuxHost()
    name, peer = f"flt{os.getpid() % 10**7}", f"flp{os.getpid() % 10**7}"
    await host.links.create_veth(name, peer)
    try:
        container = await place.runtime.start(place.spec(nics=(NicSpec(name, "eth0", "00:16:3e:01:02:03", 1400),)))
        _, output, _ = await run(place.runtime, container, "cat", "/sys/class/net/eth0/address")
        assert output == b"00:16:3e:01:02:03\n"
        await place.runtime.kill(container)
    finally:
        await host.links.delete(peer)
        await host.close()


async def test_the_helper_is_started_again_when_it_died(place: Place) -> None:
    runtime = lxc(place)
    container = await runtime.start(place.spec())
    assert (await run(runtime, container, "true"))[0] == 0
    first = runtime.helper_pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await settled(lambda: not os.path.exists(f"/proc/{first}"))
    assert (await run(runtime, container, "true"))[0] == 0
    assert runtime.helper_pid != first


async def test_a_monitor_that_was_killed_leaves_a_container_that_can_be_started(place: Place) -> None:
    container = await place.runtime.start(place.spec())
    os.kill(container.monitor.pid, signal.SIGKILL)
    assert await place.runtime.wait_ended(container) == Ended("stop")
    assert await place.runtime.find(place.name) is None
    await place.runtime.start(place.spec())


async def test_what_liblxc_says_is_in_the_error(place: Place) -> None:
    with pytest.raises(StartFailed, match=r"lxc\.nonsense"):
        await place.runtime.start(place.spec(raw="lxc.nonsense = 1"))


async def test_init_that_dies_says_its_last_words(place: Place) -> None:
    script = place.root / "bin/dying"
    await asyncio.to_thread(script.write_text, "#!/bin/sh\necho I cannot go on\nexit 1\n")
    await asyncio.to_thread(script.chmod, 0o755)
    with pytest.raises(StartFailed, match=r"init ended at once.*I cannot go on"):
        await place.runtime.start(place.spec(init=("/bin/dying",)))


async def test_a_cancelled_start_leaves_nothing(place: Place) -> None:
    await lxc(place).prepare()
    for delay_s in (0.0, 0.005, 0.01, 0.02, 0.04):
        starting = asyncio.create_task(place.runtime.start(place.spec()))
        await asyncio.sleep(delay_s)
        starting.cancel()
        try:
            container = await starting
        except asyncio.CancelledError:
            assert await place.runtime.find(place.name) is None
        else:
            await place.runtime.kill(container)


@pytest.fixture
def answering(place: Place) -> tuple[str, ...]:
    """An init that answers lines on its console."""
    script = place.root / "bin/answering"
    script.write_text("#!/bin/sh\nwhile read line; do echo got $line; done\nsleep 3600\n")
    script.chmod(0o755)
    return ("/bin/answering",)


async def test_the_console_takes_input_and_the_size_of_the_window(place: Place, answering: tuple[str, ...]) -> None:
    container = await place.runtime.start(place.spec(init=answering))
    master = await place.runtime.console(container)
    await asyncio.to_thread(os.write, master, b"hello\n")
    seen = b""
    while b"got hello" not in seen:
        seen += await asyncio.to_thread(os.read, master, 1000)
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 132, 0, 0))
    console = await asyncio.to_thread(os.open, f"/proc/{container.init.pid}/fd/0", os.O_RDWR | os.O_NOCTTY)
    await settled(lambda: fcntl.ioctl(console, termios.TIOCGWINSZ, bytes(8))[:4] == struct.pack("HH", 44, 132))
    os.close(console)
    os.close(master)
