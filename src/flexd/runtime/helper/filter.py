# SPDX-License-Identifier: Apache-2.0
"""Loads a seccomp policy that this project has written into the process that calls, as liblxc would.

For programs that join a supervised container: liblxc 5.0's attach loses their listener now and then (see `supervised`).
Everything is looked up before, since inside the container there is no library to load."""

import ctypes
import errno
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

_NNP = 3  # SCMP_FLTATR_CTL_NNP: a program inside may be setuid
_ALLOW, _KILL, _TRAP, _ERRNO, _NOTIFY = 0x7FFF0000, 0, 0x00030000, 0x00050000, 0x7FC00000
_OPERATORS = {"NE": 1, "LT": 2, "LE": 3, "EQ": 4, "GE": 5, "GT": 6, "MASKED_EQ": 7}
_MASKED = 7
# The other architectures of which a kernel runs programs (SCMP_ARCH_X86, SCMP_ARCH_X32; SCMP_ARCH_ARM).
_COMPATIBLE = {"x86_64": (0x40000003, 0x4000003E), "aarch64": (0x40000028,)}
_ARGUMENT = re.compile(r"\[\s*(\d)\s*,\s*(\d+)\s*,\s*SCMP_CMP_([A-Z_]+)\s*(?:,\s*(\d+)\s*)?\]")


class _Comparison(ctypes.Structure):
    """struct scmp_arg_cmp"""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


class Rule(NamedTuple):
    """`comparisons` are (argument, operator, a, b) of struct scmp_arg_cmp."""

    call: str
    action: int
    comparisons: tuple[tuple[int, int, int, int], ...] = ()


def parse(policy: str) -> tuple[int, list[Rule]]:
    """The default action, and the rules."""
    _version, kind, *lines = policy.split("\n")
    allows = kind.startswith("allow")
    default_rule = _ALLOW if allows else _KILL
    return (_KILL if allows else _ALLOW), list(_rules(lines, default_rule))


def _rules(lines: list[str], default: int) -> Iterator[Rule]:
    for line in lines:
        line = line.strip()
        # liblxc, too, adds each rule for every architecture, whatever section it is in.
        if not line or line[0] in "#[":
            continue
        if line == "reject_force_umount":
            yield Rule("umount2", _ERRNO | errno.EACCES, ((1, _MASKED, 1, 1),))
            continue
        words, bracket, arguments = line.partition("[")
        yield Rule(words.split()[0], _action(words.split()[1:], default), _comparisons(bracket + arguments))


def _action(words: list[str], default: int) -> int:
    if not words:
        return default
    if words[0] == "errno":
        return _ERRNO | int(words[1])
    return {"kill": _KILL, "trap": _TRAP, "allow": _ALLOW, "notify": _NOTIFY}[words[0]]


def _comparisons(text: str) -> tuple[tuple[int, int, int, int], ...]:
    found = []
    for argument, value, operator, mask in _ARGUMENT.findall(text):
        number = _OPERATORS[operator]
        # libseccomp wants the mask first, liblxc's lines have it last.
        pair = (int(mask), int(value)) if number == _MASKED else (int(value), 0)
        found.append((int(argument), number, *pair))
    return tuple(found)


class Filter:
    """Built outside of the container, loaded inside."""

    def __init__(self, policy: str) -> None:
        library = self._library = ctypes.CDLL("libseccomp.so.2")
        library.seccomp_init.restype = ctypes.c_void_p
        library.seccomp_init.argtypes = (ctypes.c_uint32,)
        library.seccomp_attr_set.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32)
        library.seccomp_arch_add.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
        library.seccomp_load.argtypes = (ctypes.c_void_p,)
        library.seccomp_notify_fd.argtypes = (ctypes.c_void_p,)
        library.seccomp_syscall_resolve_name.argtypes = (ctypes.c_char_p,)
        library.seccomp_rule_add_array.argtypes = (
            ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p
        )  # fmt: skip
        default, rules = parse(policy)
        # Never released: the process becomes another program.
        self._context = library.seccomp_init(default)
        self._check(library.seccomp_attr_set(self._context, _NNP, 0), "seccomp_attr_set")
        for architecture in _COMPATIBLE.get(os.uname().machine, ()):
            self._check(library.seccomp_arch_add(self._context, architecture), "seccomp_arch_add")
        self._default = default
        self._notifies = any(rule.action == _NOTIFY for rule in rules)
        for rule in rules:
            self._add(rule)

    def _add(self, rule: Rule) -> None:
        number = self._library.seccomp_syscall_resolve_name(rule.call.encode())
        # Unknown here, or what happens anyway, which libseccomp refuses to add.
        if number == -1 or rule.action == self._default:
            return
        comparisons = (_Comparison * len(rule.comparisons))(*(_Comparison(*numbers) for numbers in rule.comparisons))
        # Read during the call only.
        result = self._library.seccomp_rule_add_array(
            self._context, rule.action, number, len(rule.comparisons), comparisons
        )
        self._check(result, f"seccomp_rule_add {rule.call}")

    def load(self) -> int:
        """For good, for this process and its children; the listener, -1 if the policy asks nobody."""
        self._check(self._library.seccomp_load(self._context), "seccomp_load")
        return (
            self._check(self._library.seccomp_notify_fd(self._context), "seccomp_notify_fd") if self._notifies else -1
        )

    @staticmethod
    def _check(result: int, call: str) -> int:
        if result < 0:
            raise OSError(-result, f"{call}: {os.strerror(-result)}")
        return result
