# SPDX-License-Identifier: Apache-2.0
"""What keeps a running container from being dumped, seen before it is tried, and what CRIU's errors mean. Blocking."""

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from flexd.runtime.contract import Obstacle
from flexd.runtime.criu import watches
from flexd.runtime.render import UNITS

_NAMESPACES = ("mnt", "uts", "ipc", "net", "pid", "user", "cgroup", "time")
# Open files that have no image: `anon_inode:` and the name the kernel gives them.
_OPEN = {
    "[io_uring]": ("io_uring", "have it use other I/O, or stop it; fit instances refuse io_uring from their start"),
    "bpf-prog": ("a loaded BPF program", "stop it; fit instances refuse bpf from their start"),
    "bpf-map": ("a BPF map", "stop it; fit instances refuse bpf from their start"),
    "bpf_link": ("a BPF program's link", "stop it; fit instances refuse bpf from their start"),
    "[perf_event]": ("performance counters", "stop it"),
    "kvm-vm": ("a virtual machine", "stop it"),
    "[userfaultfd]": ("a userfaultfd", "stop it"),
    "[landlock-ruleset]": ("a Landlock rule set", "stop it"),
}
_EMPTY_RAM = re.compile(r"^(?:\S+ ){4}(\S+) .* - ramfs ", re.MULTILINE)

# The line of a configuration that only one fit for migration has.
MARK = f"SYSTEMD_UNIT_PATH=/{UNITS}:"

# CRIU's words -> ours. What they say about a place in its source helps nobody.
_MEANINGS = (
    ("Can't dump nested", "a process is in a namespace of its own (see `unshare`); end it"),
    ("Can't dump that handle", "a process watches a file or directory that no longer exists; restart it"),
    ("External socket is used", "a process is connected to a unix socket outside of the instance; end that connection"),
    ("Control messages in queue", "a datagram waits in a unix socket that nobody reads (often syslog's); restart its "
     "service"),
    ("anon_inode:bpf", "a BPF program is loaded; stop who loaded it"),
    ("anon_inode:[io_uring]", "a process uses io_uring; stop it"),
    ("unsupported", "a file system is mounted inside that cannot be saved; unmount it"),
    ("Can't dump ghost file", "a file that was deleted but is open is too large to be carried; close it"),
    ("ctty inheritance detected", "an interactive shell is open on the console; leave it"),
    ("is outside of its pid namespace", "a process is in the session of a command that was run from outside; end it"),
    ("CPU", "the processor here lacks what the programs were started with"),
)  # fmt: skip


def explain(errors: Iterable[str]) -> str:
    """What CRIU's first known error means, with its own words."""
    for error in errors:
        for words, meaning in _MEANINGS:
            if words in error:
                return f"{meaning} (CRIU: {error})"
    return ""


def find(init: int, config: str) -> list[Obstacle]:
    """All at once, of the processes as they are now; `config` is what liblxc started it with."""
    found = {obstacle.what: obstacle for obstacle in (*_missing_programs(), *_unfit(config))}
    own = _namespaces(init)
    pids = watches.processes(init)
    for obstacle in _strays(pids):
        found.setdefault(obstacle.what, obstacle)
    for pid in pids:
        for obstacle in (*_nested(pid, own), *_open_files(pid)):
            found.setdefault(obstacle.what, obstacle)
    for path in _EMPTY_RAM.findall(_read(f"/proc/{init}/mountinfo")):
        what = f"a ramfs is mounted on {path}, whose content is not saved"
        remedy = "restart the instance, which as one fit for migration starts services without credentials"
        found.setdefault(what, Obstacle(what, remedy))
    return list(found.values())


def _missing_programs() -> Iterator[Obstacle]:
    """CRIU reads and writes the packet filter of a network namespace by these, also where there is none."""
    for program, package in (("iptables-save", "iptables"), ("ip", "iproute2")):
        if shutil.which(program) is None:
            yield Obstacle(f"this host has no {program}, which CRIU calls", f"install the package {package}")


def _unfit(config: str) -> Iterator[Obstacle]:
    """What was decided at its start."""
    lines = config.splitlines()
    if not any(line.startswith("lxc.idmap") for line in lines):
        yield Obstacle("it is privileged", "set security.privileged=false")
    if f"lxc.environment = {MARK}" not in lines:
        yield Obstacle("it was not started fit for migration", "set migration.stateful=true and restart it")
    if any(line.startswith("lxc.seccomp.notify.proxy") for line in lines):
        yield Obstacle("its system calls are intercepted", "unset security.syscalls.intercept.* and restart it")


def _strays(pids: list[int]) -> Iterator[Obstacle]:
    """What was left behind by a command of `exec`, in whose session it still is; that one came from outside."""
    inside = set(pids)
    for pid in pids:
        words = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        if len(words) > 3 and int(words[3]) not in inside:  # the session
            yield Obstacle(
                f"{_name(pid)} is in the session of a command that was run from outside",
                "end it; start such with setsid or systemd-run",
            )


def _nested(pid: int, own: dict[str, str]) -> Iterator[Obstacle]:
    for kind, link in _namespaces(pid).items():
        if own.get(kind) not in (None, link):
            yield Obstacle(
                f"{_name(pid)} is in a {kind} namespace of its own",
                "stop it; an instance fit for migration starts services without sandboxes",
            )


def _namespaces(pid: int) -> dict[str, str]:
    found = {}
    for kind in _NAMESPACES:
        try:
            found[kind] = os.readlink(f"/proc/{pid}/ns/{kind}")
        except OSError:
            continue
    return found


def _open_files(pid: int) -> Iterator[Obstacle]:
    for _, target in watches.descriptors(pid):
        known = _OPEN.get(target.removeprefix("anon_inode:")) if target.startswith("anon_inode:") else None
        if known is not None:
            yield Obstacle(f"{_name(pid)} uses {known[0]}", known[1])


def _name(pid: int) -> str:
    return f'the process "{_read(f"/proc/{pid}/comm").strip() or pid}"'


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
