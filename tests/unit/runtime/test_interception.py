# SPDX-License-Identifier: Apache-2.0
"""liblxc's messages about system calls, the filter's own reading of a policy, and figures for sysinfo(2)."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexd.runtime.helper import filter as policies
from flexd.runtime.helper import intercepted_sysinfo, native_calls
from flexd.runtime.helper.caller import inside, outside
from flexd.runtime.helper.filter import Rule
from flexd.runtime.helper.intercepted_bpf import refers_to_fds
from flexd.runtime.helper.intercepted_mount import huge_pages_options
from flexd.runtime.helper.supervise import decode_device
from flexd.runtime.interception.messages import PROCEED, BadMessage, Notification, Verdict, answer, parse
from flexd.runtime.seccomp import SeccompRules, render_policy

HEAD = struct.Struct("@QiiHHHxxQ")
NOTIFICATION = struct.Struct("@QIIiIQ6Q")
RESPONSE = struct.Struct("@QqiI")


def message(cookie: bytes = b"c1", *, reserved: int = 0, size: int = 80) -> bytes:
    head = HEAD.pack(reserved, 10, 11, size, 24, 64, len(cookie))
    return (
        head + NOTIFICATION.pack(7, 4711, 0, 133, 0xC000003E, 0, 1, 2, 3, 4, 5, 6) + RESPONSE.pack(7, 0, 0, 0) + cookie
    )


def test_a_message():
    found = parse(message())
    assert isinstance(found, Notification)
    assert (found.id, found.pid, found.init, found.cookie, found.number) == (7, 4711, 11, "c1", 133)
    assert found.architecture == 0xC000003E
    assert found.arguments == (1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (PROCEED, (7, 0, 0, 1)),
        (Verdict(), (7, 0, 0, 0)),
        (Verdict(errno=13), (7, 0, -13, 0)),
        (Verdict(value=5), (7, 5, 0, 0)),
    ],
)
def test_answers(verdict: Verdict, expected: tuple[int, int, int, int]):
    data = answer(parse(message()), verdict)
    assert len(data) == len(message(b""))
    assert data[:-24] == message()[: len(data) - 24]
    assert RESPONSE.unpack(data[-24:]) == expected


@pytest.mark.parametrize("data", [b"", message()[:50], message(reserved=1), message(size=72), message() + b"x"])
def test_what_is_no_message(data: bytes):
    with pytest.raises(BadMessage):
        parse(data)


@given(st.binary(max_size=300))
def test_any_bytes_are_judged(data: bytes):
    try:
        parse(data)
    except BadMessage:
        return


def test_a_policy_read_back():
    default, rules = policies.parse(render_policy(SeccompRules(intercept=frozenset({"mknod"})), "x86_64"))
    assert default == 0x7FFF0000
    assert rules[0] == Rule("umount2", 0x0005000D, ((1, 7, 1, 1),))
    assert rules[1] == Rule("kexec_load", 0x00050026)
    assert Rule("seccomp", 0x00050016, ((1, 7, 8, 8),)) in rules
    assert Rule("mknodat", 0x7FC00000, ((2, 7, 61440, 8192),)) in rules


def test_an_allowing_policy_read_back():
    policy = render_policy(SeccompRules(allow="read\n[x86]\n# no\nwrite errno 5\nclone [0,3,SCMP_CMP_GE]"), "x86_64")
    assert policies.parse(policy) == (
        0,
        [Rule("read", 0x7FFF0000), Rule("write", 0x00050005), Rule("clone", 0x7FFF0000, ((0, 5, 3, 0),))],
    )


def test_every_policy_that_asks_can_be_built():
    every = frozenset({"mknod", "setxattr", "mount", "bpf", "sched_setscheduler", "sysinfo"})
    policies.Filter(render_policy(SeccompRules(intercept=every, deny="mkdir errno 1\nnosuchcall"), "x86_64"))


@pytest.mark.parametrize(
    ("number", "expected"), [(0x0103, (1, 3)), (0x0500, (5, 0)), (0xFE00, (254, 0)), (0x100100, (1, 256))]
)
def test_device_numbers(number: int, expected: tuple[int, int]):
    assert decode_device(number) == expected


def test_ids_inside():
    id_map = [(0, 100000, 1000), (5000, 7, 1)]
    assert [inside(number, id_map) for number in (100000, 100999, 101000, 7, 0)] == [0, 999, None, 5000, None]


MEMORY = {"MemTotal": 1000, "MemAvailable": 600, "SwapTotal": 50, "SwapFree": 20}


@pytest.mark.parametrize(
    ("cgroup", "expected"),
    [
        ({"memory_limit_bytes": 100, "memory_usage_bytes": 30, "processes": 4}, (100, 70, 0, 0, 4)),
        ({"memory_limit_bytes": 100, "memory_usage_bytes": 130, "processes": 4}, (100, 0, 0, 0, 4)),
        ({"memory_limit_bytes": None, "memory_usage_bytes": 30, "processes": None}, (1000, 600, 50, 20, 0)),
        ({"memory_limit_bytes": 10**18, "processes": 10**6}, (1000, 600, 50, 20, 65535)),
    ],
)
def test_sysinfo(cgroup: dict[str, int | None], expected: tuple[int, ...]):
    data = intercepted_sysinfo.pack(cgroup, MEMORY, (1.0, 0.5, 0.0), 99)
    assert len(data) == 112
    figures = struct.unpack("@q9QH", data[:82])
    assert figures[:4] == (99, 65536, 32768, 0)
    total, free, _, _, swap, free_swap = figures[4:10]
    assert (total, free, swap, free_swap, figures[10]) == expected


MAP = [(0, 1000000, 1000), (5000, 77, 1)]


@pytest.mark.parametrize(("own", "host"), [(0, 1000000), (999, 1000999), (1000, None), (5000, 77), (77, 1000077)])
def test_host_ids(own: int, host: int | None):
    assert outside(own, MAP) == host


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (b"", b"uid=1000000,gid=1000000"),
        (b"size=4M,uid=5", b"size=4M,uid=1000005,gid=1000000"),
        (b"gid=5000,mode=700,gid=1", b"mode=700,uid=1000000,gid=1000001"),
    ],
)
def test_whose_huge_pages(options: bytes, expected: bytes):
    assert huge_pages_options(options, MAP, MAP) == expected


@pytest.mark.parametrize("options", [b"uid=1000", b"uid=-1", b"uid=", b"gid=0x0", b"uid=root"])
def test_huge_pages_of_nobody_here(options: bytes):
    with pytest.raises(OSError, match="Invalid argument"):
        huge_pages_options(options, MAP, MAP)


def instruction(opcode: int, registers: int = 0) -> bytes:
    return bytes([opcode, registers, 0, 0, 0, 0, 0, 0])


def test_programs_that_name_descriptors():
    plain, end = instruction(0xB7), instruction(0x95)
    constant, upper = instruction(0x18, 0x01), bytes(8)
    assert not refers_to_fds(plain + end)
    assert not refers_to_fds(constant + upper + plain + end)
    # The second half of a constant is data, whatever it looks like.
    assert not refers_to_fds(constant + instruction(0x18, 0x11) + end)
    for kind in range(1, 7):
        assert refers_to_fds(plain + instruction(0x18, kind << 4 | 1) + upper + end)
        assert refers_to_fds(constant + upper + instruction(0x18, kind << 4) + upper + end)


def run_filter(architecture: int, number: int) -> int:
    """What the filter of foreign calls says, by the rules of classic BPF."""
    accumulator, position = 0, 0
    while True:
        code, then, otherwise, value = native_calls._FILTER[position]
        if code == native_calls._LOAD_WORD:
            accumulator = {0: number, 4: architecture}[value]
        elif code == native_calls._RETURN:
            return value
        else:
            taken = accumulator == value if code == native_calls._JUMP_EQUAL else accumulator >= value
            position += then if taken else otherwise
        position += 1


@pytest.mark.parametrize(
    ("architecture", "number", "allowed"),
    [
        (0xC000003E, 0, True),
        (0xC000003E, 462, True),
        (0xC000003E, 0xFFFFFFFF, True),  # skipped by a tracer
        (0xC000003E, 0x40000000 | 39, False),  # x32
        (0x40000003, 20, False),  # i386
        (0x40000003, 0xFFFFFFFF, False),
    ],
)
def test_calls_of_other_tables(architecture: int, number: int, allowed: bool):
    assert run_filter(architecture, number) == (0x7FFF0000 if allowed else 0x00050000 | 38)
