# SPDX-License-Identifier: Apache-2.0
"""`limits.*`: from configuration to cgroup files; pure.

Rules are LXD's; file names are the kernel's (Documentation/admin-guide/cgroup-v1/*, cgroup-v2.rst). What is unset is
written with the kernel's own default, so that a live edit takes a limit back.
"""

import re
from collections.abc import Callable, Mapping

from msgspec import Struct

from flexd.api.errors import BadRequest
from flexd.api.keys import Key
from flexd.api.units import is_true, parse_size
from flexd.host.contract import CgroupLayout

Config = Mapping[str, str]

_V1_NO_MEMORY_LIMIT = "-1"
# cgroup v1 shares are 1024 for a full allowance; LXD takes one off for each step of priority below 10.
_FULL_SHARES, _TOP_PRIORITY = 1024, 10
_PERIOD = re.compile(r"([0-9]+)ms/([0-9]+)ms")
_PERCENT = re.compile(r"([0-9]+)%")
_CPU_SET = re.compile(r"[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*")
_HUGE_SIZES = ("64KB", "1MB", "2MB", "1GB")
# getrlimit(2), in the kernel's words and without RLIMIT_.
_RLIMITS = (
    *("as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue"),
    *("nice", "nofile", "nproc", "rtprio", "sigpending", "stack", "rttime"),
)


class Setting(Struct, frozen=True):
    """One file of the container's cgroup and what is written to it."""

    controller: str
    file: str
    value: str


def _memory_fault(value: str) -> str | None:
    match = _PERCENT.fullmatch(value)
    if match is not None:
        return None if 0 < int(match[1]) <= 100 else f'invalid value "{value}" (1% to 100%)'
    try:
        return None if parse_size(value) > 0 else f'invalid value "{value}" (a limit of nothing)'
    except BadRequest as error:
        return f"{error}, or a percentage"


def _allowance_fault(value: str) -> str | None:
    percent, period = _PERCENT.fullmatch(value), _PERIOD.fullmatch(value)
    if percent is not None and 0 < int(percent[1]) <= 100:
        return None
    # sched-bwc.rst: a quota is at least 1 ms, a period at most 1 s.
    if period is not None and int(period[1]) >= 1 and 1 <= int(period[2]) <= 1000:
        return None
    return f'invalid value "{value}" (a percentage such as "50%", or time in a period such as "25ms/100ms")'


def _cpu_fault(value: str) -> str | None:
    if value.isdecimal() and int(value) > 0:
        return None
    if _CPU_SET.fullmatch(value) and not value.isdecimal():
        return None
    return f'invalid value "{value}" (a number of CPUs, or a set such as "0-3,7")'


def _between(low: int, high: int) -> Callable[[str], str | None]:
    def fault(value: str) -> str | None:
        if value.isdecimal() and low <= int(value) <= high:
            return None
        return f'invalid value "{value}" ({low} to {high})'

    return fault


def _rlimit_fault(value: str) -> str | None:
    parts = value.split(":")
    if len(parts) <= 2 and all(part == "unlimited" or part.isdecimal() for part in parts):
        return None
    return f'invalid value "{value}" (a number or "unlimited", or soft:hard)'


KEYS = (
    Key("limits.cpu", check=_cpu_fault, description="Number of CPUs, or the set to be pinned to"),
    Key(
        "limits.cpu.allowance", default="100%", check=_allowance_fault, description="Share (50%) or quota (25ms/100ms)"
    ),
    Key("limits.cpu.priority", default="10", check=_between(0, 10), description="Share among equals, 10 is most"),
    Key("limits.disk.priority", default="5", check=_between(0, 10), description="Share of disk time, 10 is most"),
    *(Key(f"limits.hugepages.{size}", kind="size", description=f"Limit for pages of {size}") for size in _HUGE_SIZES),
    *(Key(f"limits.kernel.{name}", check=_rlimit_fault, live=False, description=f"RLIMIT_{name}") for name in _RLIMITS),
    Key("limits.memory", check=_memory_fault, description="Size, or percentage of the host's memory"),
    Key("limits.memory.enforce", default="hard", choices=("hard", "soft"), description="Whether it is a ceiling"),
    Key("limits.memory.swap", kind="bool", default="true", description="Whether it may swap"),
    Key("limits.memory.swap.priority", default="10", check=_between(0, 10), description="10: swapped out last"),
    Key("limits.processes", check=_between(1, 4_194_304), description="Number of tasks"),
)


def memory_bytes(value: str, total_bytes: int) -> int:
    """`limits.memory` in bytes."""
    match = _PERCENT.fullmatch(value)
    return total_bytes * int(match[1]) // 100 if match is not None else parse_size(value)


def settings(config: Config, layout: CgroupLayout, *, total_memory_bytes: int) -> list[Setting]:
    """Every file that the limits of a configuration touch; BadRequest names a limit that this kernel cannot hold."""
    found: list[Setting] = []
    is_v2 = layout.mode == "v2"
    found += _memory_v2(config, total_memory_bytes) if is_v2 else _memory_v1(config, total_memory_bytes)
    found += _cpu_v2(config) if is_v2 else _cpu_v1(config)
    found += _others(config, is_v2)
    return _supported(found, layout)


def _supported(found: list[Setting], layout: CgroupLayout) -> list[Setting]:
    """A default that cannot be written needs not be; a limit that cannot is an error."""
    missing = sorted({setting.controller for setting in found if setting.controller not in layout.controllers})
    if missing:
        raise BadRequest(f"Failed setting limits: this host's kernel has no cgroup controller {', '.join(missing)}")
    return found


def _memory_v1(config: Config, total_bytes: int) -> list[Setting]:
    limit = config.get("limits.memory", "")
    found = []
    if limit:
        size = str(memory_bytes(limit, total_bytes))
        if config.get("limits.memory.enforce") == "soft":
            found.append(Setting("memory", "memory.soft_limit_in_bytes", size))
        else:
            found.append(Setting("memory", "memory.limit_in_bytes", size))
            # Reclaim begins before the ceiling is hit, as in LXD.
            found.append(Setting("memory", "memory.soft_limit_in_bytes", str(int(size) * 9 // 10)))
    swappiness = _swappiness(config)
    if swappiness is not None:
        found.append(Setting("memory", "memory.swappiness", str(swappiness)))
    return found


def _swappiness(config: Config) -> int | None:
    """vm.swappiness' default is 60; LXD spreads priorities 0-10 around it, and 0 is "do not swap"."""
    if config.get("limits.memory.swap") and not is_true(config["limits.memory.swap"]):
        return 0
    if config.get("limits.memory.swap.priority"):
        return 60 - int(config["limits.memory.swap.priority"]) + _TOP_PRIORITY
    return None


def _memory_v2(config: Config, total_bytes: int) -> list[Setting]:
    limit = config.get("limits.memory", "")
    found = []
    if limit:
        soft = config.get("limits.memory.enforce") == "soft"
        found.append(Setting("memory", "memory.high" if soft else "memory.max", str(memory_bytes(limit, total_bytes))))
    if config.get("limits.memory.swap") and not is_true(config["limits.memory.swap"]):
        found.append(Setting("memory", "memory.swap.max", "0"))
    return found


def cpu_shares(config: Config) -> int | None:
    """cgroup v1 shares of a soft allowance and a priority; None if neither is set."""
    percent = _PERCENT.fullmatch(config.get("limits.cpu.allowance", ""))
    if percent is None and not config.get("limits.cpu.priority"):
        return None
    shares = _FULL_SHARES * int(percent[1]) // 100 if percent is not None else _FULL_SHARES
    return max(shares - (_TOP_PRIORITY - int(config.get("limits.cpu.priority") or _TOP_PRIORITY)), 2)


def cpu_quota_us(config: Config) -> tuple[int, int] | None:
    """(quota, period) in microseconds of a hard allowance."""
    period = _PERIOD.fullmatch(config.get("limits.cpu.allowance", ""))
    return (int(period[1]) * 1000, int(period[2]) * 1000) if period is not None else None


def _cpu_v1(config: Config) -> list[Setting]:
    found = []
    shares, quota = cpu_shares(config), cpu_quota_us(config)
    if shares is not None:
        found.append(Setting("cpu", "cpu.shares", str(shares)))
    if quota is not None:
        found.append(Setting("cpu", "cpu.cfs_period_us", str(quota[1])))
        found.append(Setting("cpu", "cpu.cfs_quota_us", str(quota[0])))
    return found


def _cpu_v2(config: Config) -> list[Setting]:
    found = []
    shares, quota = cpu_shares(config), cpu_quota_us(config)
    if shares is not None:
        # cgroup-v2.rst: weight 1-10000, 100 is the default; runc and systemd map shares 2-262144 the same way.
        found.append(Setting("cpu", "cpu.weight", str(max(1, shares * 100 // _FULL_SHARES))))
    if quota is not None:
        found.append(Setting("cpu", "cpu.max", f"{quota[0]} {quota[1]}"))
    return found


def _others(config: Config, is_v2: bool) -> list[Setting]:
    found = []
    if config.get("limits.processes"):
        found.append(Setting("pids", "pids.max", config["limits.processes"]))
    if config.get("limits.disk.priority"):
        weight = max(10, int(config["limits.disk.priority"]) * 100)
        found.append(
            Setting("io", "io.weight", str(weight)) if is_v2 else Setting("blkio", "blkio.bfq.weight", str(weight))
        )
    for size in _HUGE_SIZES:
        value = config.get(f"limits.hugepages.{size}")
        if value:
            file = f"hugetlb.{size}.max" if is_v2 else f"hugetlb.{size}.limit_in_bytes"
            found.append(Setting("hugetlb", file, str(parse_size(value))))
    return found


# What each file holds when nothing was set: written when a live edit takes a limit away.
_DEFAULTS = {
    "memory.limit_in_bytes": _V1_NO_MEMORY_LIMIT,
    "memory.soft_limit_in_bytes": _V1_NO_MEMORY_LIMIT,
    "memory.swappiness": "60",
    "memory.max": "max",
    "memory.high": "max",
    "memory.swap.max": "max",
    "cpu.shares": "1024",
    "cpu.cfs_period_us": "100000",
    "cpu.cfs_quota_us": "-1",
    "cpu.weight": "100",
    "cpu.max": "max 100000",
    "pids.max": "max",
    "io.weight": "100",
    "blkio.bfq.weight": "100",
    **{f"hugetlb.{size}.max": "max" for size in _HUGE_SIZES},
    **{f"hugetlb.{size}.limit_in_bytes": str(2**63 - 4096) for size in _HUGE_SIZES},
}


def changes(old: list[Setting], new: list[Setting]) -> list[Setting]:
    """What to write on a running container to get from old limits to new ones, in an order the kernel takes."""
    known = {setting.file: setting for setting in old}
    wanted = {setting.file: setting for setting in new}
    lifted = [
        Setting(setting.controller, file, _DEFAULTS[file]) for file, setting in known.items() if file not in wanted
    ]
    changed = [setting for file, setting in wanted.items() if known.get(file) != setting]
    return lifted + changed


def rlimits(config: Config) -> dict[str, str]:
    """`limits.kernel.*` without that prefix, as liblxc's `lxc.prlimit.*` takes them."""
    prefix = "limits.kernel."
    return {key[len(prefix) :]: value for key, value in config.items() if key.startswith(prefix) and value}
