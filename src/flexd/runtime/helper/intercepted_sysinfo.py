# SPDX-License-Identifier: Apache-2.0
"""sysinfo(2) with a container's own figures: its memory limit and use, its processes, the time since its init began."""

import os
import struct

from flexd.runtime.helper import wire
from flexd.runtime.helper.caller import Caller

# struct sysinfo of 64-bit machines: uptime, loads[3], totalram, freeram, sharedram, bufferram, totalswap, freeswap,
# procs (16 bits), totalhigh, freehigh, mem_unit; padded to whole words.
_SYSINFO = struct.Struct("@q9QHxxxxxxQQIxxxx")
_LOAD_SHIFT = 1 << 16  # linux/sysinfo.h SI_LOAD_SHIFT


def sysinfo(caller: Caller, request: wire.Message) -> wire.Message:
    caller.write(request["arguments"][0], pack(request["cgroup"], _host_memory(), _loads(), _uptime(request["init"])))
    return {"value": 0}


def pack(
    cgroup: dict[str, int | None], memory: dict[str, int], loads: tuple[float, float, float], uptime_s: int
) -> bytes:
    """`cgroup` may lack figures where the host has no such controller: the host's are the container's then."""
    limit, usage = cgroup.get("memory_limit_bytes"), cgroup.get("memory_usage_bytes")
    total, free = memory["MemTotal"], memory["MemAvailable"]
    swap, free_swap = memory.get("SwapTotal", 0), memory.get("SwapFree", 0)
    if limit is not None and limit < total:
        total, free = limit, max(limit - (usage or 0), 0)
        swap, free_swap = 0, 0
    figures = [total, min(free, total), 0, 0, swap, free_swap]
    loads_fixed = [int(load * _LOAD_SHIFT) for load in loads]
    return _SYSINFO.pack(uptime_s, *loads_fixed, *figures, min(cgroup.get("processes") or 0, 65535), 0, 0, 1)


def _host_memory() -> dict[str, int]:
    found = {}
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            name, _, rest = line.partition(":")
            words = rest.split()
            if words[-1] == "kB":
                found[name] = int(words[0]) * 1024
    return found


def _loads() -> tuple[float, float, float]:
    return os.getloadavg()


def _uptime(init: int) -> int:
    with open(f"/proc/{init}/stat", encoding="utf-8", errors="replace") as file:
        start_ticks = int(file.read().rpartition(")")[2].split()[19])
    with open("/proc/uptime", encoding="ascii") as file:
        return int(float(file.read().split()[0]) - start_ticks / os.sysconf("SC_CLK_TCK"))
