# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of a container, the same way for every peer: when PID 1 ran, addresses, memory, CPU time."""

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path

_SIOCGIFADDR = 0x8915
_CLONE_NEWNET = 0x40000000
# linux/cn_proc.h
_NETLINK_CONNECTOR, _CN_IDX_PROC, _CN_VAL_PROC, _LISTEN, _EVENT_EXEC = 11, 1, 1, 1, 2
_MESSAGE = struct.Struct("=IHHII")
_CONNECTOR = struct.Struct("=IIIIHH")
_EVENT = struct.Struct("=IIQII")  # what, cpu, nanoseconds (CLOCK_MONOTONIC), thread, process


class ExecTimes:
    """When each process first ran a program, told by the kernel's process connector: PID 1's first is its init."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_CONNECTOR)
        self._socket.bind((0, _CN_IDX_PROC))
        # Starting 20 Debians is thousands of events.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        order = struct.pack("=I", _LISTEN)
        body = _CONNECTOR.pack(_CN_IDX_PROC, _CN_VAL_PROC, 0, 0, len(order), 0) + order
        self._socket.send(_MESSAGE.pack(_MESSAGE.size + len(body), 3, 0, 0, 0) + body)
        self._times: dict[int, float] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                data = self._socket.recv(65536)
            except OSError as error:
                if error.errno == 105:  # ENOBUFS: events were lost
                    continue
                return
            what, _, nanoseconds, _, process = _EVENT.unpack_from(data, _MESSAGE.size + _CONNECTOR.size)
            if what == _EVENT_EXEC:
                self._times.setdefault(process, nanoseconds / 1e9)

    def forget(self) -> None:
        """Before something is started: pids come again."""
        self._times.clear()

    def first(self, pid: int, timeout_s: float = 5.0) -> float | None:
        """The moment on the monotonic clock."""
        deadline = time.monotonic() + timeout_s
        while pid not in self._times and time.monotonic() < deadline:
            time.sleep(0.001)
        return self._times.get(pid)


def wait_ipv4(pid: int, interface: str = "eth0", timeout_s: float = 30.0) -> float:
    """The moment when an interface of a container has an IPv4 address; asked every 2 ms in its network namespace."""
    with _socket_inside(pid) as inside:
        request = struct.pack("16s16x", interface.encode())
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                fcntl.ioctl(inside, _SIOCGIFADDR, request)
            except OSError:
                time.sleep(0.002)
                continue
            return time.monotonic()
    raise TimeoutError(f"no IPv4 address on {interface} of process {pid} after {timeout_s} s")


def _socket_inside(pid: int) -> socket.socket:
    """A socket keeps the namespace it was made in; the thread that made it ends."""
    made: list[socket.socket] = []

    def make() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/proc/{pid}/ns/net") as namespace:
            if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                return
        made.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if not made:
        raise RuntimeError(f"cannot enter the network namespace of process {pid}")
    return made[0]


def wait_booted(pid: int, timeout_s: float = 60.0) -> tuple[float, str]:
    """The moment when a container's systemd has finished starting, and what it then says of itself."""
    deadline = time.monotonic() + timeout_s
    while not os.path.exists(f"/proc/{pid}/root/run/systemd/private"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no systemd in process {pid} after {timeout_s} s")
        time.sleep(0.002)
    enter = ["nsenter", f"--target={pid}", "--user", "--mount", "--setuid=0", "--setgid=0", "--"]
    while True:
        asked = subprocess.run(
            [*enter, "systemctl", "is-system-running", "--wait"], capture_output=True, text=True, check=False,
            env={"PATH": "/usr/bin:/bin"}, timeout=timeout_s,
        )  # fmt: skip
        state = asked.stdout.strip()
        if state in ("running", "degraded"):
            return time.monotonic(), state
        if time.monotonic() > deadline:
            raise TimeoutError(f"systemd of process {pid}: {state} {asked.stderr}")
        time.sleep(0.002)


# --- memory and CPU ---


def pss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def cpu_s(pids: list[int]) -> float:
    """CPU time so far, to the nanosecond (the kernel's ticks of 10 ms miss what sleeps most of the time)."""
    total = 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                total += int(thread.read_text().split()[0])
            except OSError:  # ended
                continue
    return total / 1e9


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])


def with_descendants(pid: int) -> list[int]:
    """A daemon and its helpers; dnsmasq is the same program for every peer and is left out."""
    found = [pid]
    for child in _children(pid):
        if Path(f"/proc/{child}/comm").read_text().strip() != "dnsmasq":
            found += with_descendants(child)
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(word) for word in listing.read_text().split()]
        except OSError:
            continue
    return found


def load_average() -> str:
    return Path("/proc/loadavg").read_text().rsplit(maxsplit=2)[0]
