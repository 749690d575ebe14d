# SPDX-License-Identifier: Apache-2.0
"""liblxc through ctypes: what the helper needs of it, attach and console.

Not python3-lxc: Debian has it for its own Python only, and it runs a Python function in the attached process, where
ctypes can name liblxc's own C function. The head of struct lxc_container is ABI (members are only added at its end)."""

import ctypes
import errno
import os
from collections.abc import Callable, Sequence
from typing import Any

# fmt: off
_FUNCTIONS = (
    "is_defined", "state", "is_running", "freeze", "unfreeze", "init_pid", "load_config", "start", "startl", "stop",
    "want_daemonize", "want_close_all_fds", "config_file_name", "wait", "set_config_item", "destroy", "save_config",
    "create", "createl", "rename", "reboot", "shutdown", "clear_config", "clear_config_item", "get_config_item",
    "get_running_config_item", "get_keys", "get_interfaces", "get_ips", "get_cgroup_item", "set_cgroup_item",
    "get_config_path", "set_config_path", "clone", "console_getfd", "console", "attach",
)
# fmt: on

_CLEAR_ENVIRONMENT = 1  # LXC_ATTACH_CLEAR_ENV
_ATTACH_DEFAULT = 0xFFFF  # LXC_ATTACH_DEFAULT: cgroup, capabilities, personality, LSM
_ATTACH_LSM = 0x8  # LXC_ATTACH_LSM_EXEC
_ALL_NAMESPACES = -1
_DETECT_PERSONALITY = -1
_NO_LOG = -9  # -EBADF
_CONSOLE = 0  # tty number of /dev/console


class LxcError(Exception):
    pass


class _Container(ctypes.Structure):
    """lxccontainer.h, from its start to the last function used here."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("configfile", ctypes.c_char_p),
        ("pidfile", ctypes.c_char_p),
        ("slock", ctypes.c_void_p),
        ("privlock", ctypes.c_void_p),
        ("numthreads", ctypes.c_int),
        ("lxc_conf", ctypes.c_void_p),
        ("error_string", ctypes.c_char_p),
        ("error_num", ctypes.c_int),
        ("daemonize", ctypes.c_bool),
        ("config_path", ctypes.c_char_p),
        *((name, ctypes.c_void_p) for name in _FUNCTIONS),
    )


class _AttachOptions(ctypes.Structure):
    """attach_options.h; the reserve at the end keeps a longer struct of a later liblxc zeroed, its default."""

    _fields_ = (
        ("attach_flags", ctypes.c_int),
        ("namespaces", ctypes.c_int),
        ("personality", ctypes.c_long),
        ("initial_cwd", ctypes.c_char_p),
        ("uid", ctypes.c_uint32),
        ("gid", ctypes.c_uint32),
        ("env_policy", ctypes.c_int),
        ("extra_env_vars", ctypes.POINTER(ctypes.c_char_p)),
        ("extra_keep_env", ctypes.POINTER(ctypes.c_char_p)),
        ("stdin_fd", ctypes.c_int),
        ("stdout_fd", ctypes.c_int),
        ("stderr_fd", ctypes.c_int),
        ("log_fd", ctypes.c_int),
        ("lsm_label", ctypes.c_char_p),
        ("groups_size", ctypes.c_size_t),
        ("groups", ctypes.c_void_p),
        ("reserve", ctypes.c_long * 16),
    )


class _Command(ctypes.Structure):
    _fields_ = (("program", ctypes.c_char_p), ("argv", ctypes.POINTER(ctypes.c_char_p)))


_TEXT = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)
_SET_ITEM = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p)
_ENTRY = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
_ATTACH = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)
)
_CONSOLE_GETFD = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int)
)


class Library:
    """liblxc.so.1, loaded once before the helper forks."""

    def __init__(self) -> None:
        self.so: Any = ctypes.CDLL("liblxc.so.1", use_errno=True)
        self.so.lxc_get_version.restype = ctypes.c_char_p
        self.so.lxc_has_api_extension.restype = ctypes.c_bool
        self.so.lxc_has_api_extension.argtypes = (ctypes.c_char_p,)
        self.so.lxc_container_new.restype = ctypes.POINTER(_Container)
        self.so.lxc_container_new.argtypes = (ctypes.c_char_p, ctypes.c_char_p)

    def version(self) -> str:
        return bytes(self.so.lxc_get_version()).decode()

    def has_extension(self, name: str) -> bool:
        return bool(self.so.lxc_has_api_extension(name.encode()))

    def container(self, name: str, directory: str) -> "Container":
        return Container(self, name, directory)


class Container:
    """A container that runs. Its configuration is not loaded: attach asks the monitor for what it must know, and
    loading would append to its log. Never freed: the forked process that made it ends soon."""

    def __init__(self, library: Library, name: str, directory: str) -> None:
        self._so = library.so
        self.name = name
        self._pointer = library.so.lxc_container_new(name.encode(), os.fsencode(directory))
        if not self._pointer:
            raise LxcError(f'liblxc does not know the container "{name}"')
        self._check_layout(os.fsencode(directory))

    def _check_layout(self, directory: bytes) -> None:
        """A struct of another shape than assumed must be an error, not a jump into the blue."""
        struct = self._pointer.contents
        if struct.name != self.name.encode() or struct.config_path != directory or not struct.attach:
            raise LxcError("liblxc.so.1 lays out struct lxc_container unlike lxccontainer.h 1.7")
        if self._function("get_config_path", _TEXT)(self._pointer) != directory:
            raise LxcError("liblxc.so.1 orders the functions of struct lxc_container unlike lxccontainer.h 1.7")

    def _function(self, name: str, prototype: Any) -> Any:
        return prototype(getattr(self._pointer.contents, name))

    def attach(
        self,
        argv: Sequence[str],
        environment: dict[str, str],
        cwd: str,
        ids: tuple[int, int],
        fds: tuple[int, int, int],
        entry: Callable[[], int] | None = None,
    ) -> int:
        """Start a program inside, in all namespaces, the cgroup, LSM and seccomp of the container; its pid, our child.
        With an `entry` that is called instead, as the container's root, without LSM and seccomp.

        The GIL is released during the call, and there are no other threads. All that C reads is held by locals.
        """
        if entry is None:
            # liblxc asks the monitor for the policy, but not for this: where this process is filtered itself (in a
            # container, or by `native_calls`) the program would run without the policy.
            self._function("set_config_item", _SET_ITEM)(self._pointer, b"lxc.seccomp.allow_nesting", b"1")
        arguments = _strings(argv)
        command = _Command(arguments[0], arguments)
        options = _AttachOptions(
            attach_flags=_ATTACH_DEFAULT if entry is None else _ATTACH_DEFAULT & ~_ATTACH_LSM,
            namespaces=_ALL_NAMESPACES,
            personality=_DETECT_PERSONALITY,
            initial_cwd=os.fsencode(cwd),
            uid=ids[0] if entry is None else 0,
            gid=ids[1] if entry is None else 0,
            env_policy=_CLEAR_ENVIRONMENT,
            extra_env_vars=_strings([f"{name}={value}" for name, value in environment.items()]),
            stdin_fd=fds[0],
            stdout_fd=fds[1],
            stderr_fd=fds[2],
            log_fd=_NO_LOG,
        )
        pid = ctypes.c_int(-1)
        # Kept by this frame: the child is a copy of it.
        called = _ENTRY(lambda _payload: entry() if entry is not None else 0)
        run = ctypes.cast(self._so.lxc_attach_run_command if entry is None else called, ctypes.c_void_p)
        attach = self._function("attach", _ATTACH)
        result = attach(self._pointer, run, ctypes.byref(command), ctypes.byref(options), ctypes.byref(pid))
        if result < 0 or pid.value <= 0:
            raise LxcError(f'liblxc cannot attach to "{self.name}"')
        return pid.value

    def set_cgroup_item(self, file: str, value: str) -> None:
        """`devices.allow` and `devices.deny` work on cgroup v1 and v2."""
        set_config_item = self._function("set_config_item", _SET_ITEM)
        # Any item: liblxc looks for cgroups only once it has a configuration, and this one says nothing.
        set_config_item(self._pointer, b"lxc.log.level", b"ERROR")
        if not self._function("set_cgroup_item", _SET_ITEM)(self._pointer, file.encode(), value.encode()):
            raise LxcError(f'liblxc cannot set {file} of "{self.name}" to "{value}"')

    def console(self) -> tuple[int, int]:
        """(a socket that holds the console while it is open, the master of a terminal on it)."""
        number = ctypes.c_int(_CONSOLE)
        master = ctypes.c_int(-1)
        holder = self._function("console_getfd", _CONSOLE_GETFD)(
            self._pointer, ctypes.byref(number), ctypes.byref(master)
        )
        if holder < 0 or master.value < 0:
            # liblxc says no more than -1; a container that is gone is noticed by who watches it.
            raise BlockingIOError(errno.EBUSY, f'the console of "{self.name}" is in use or gone')
        return holder, master.value


def _strings(values: Sequence[str]) -> Any:
    """A NULL-terminated array; ctypes keeps the bytes alive as long as the array."""
    return (ctypes.c_char_p * (len(values) + 1))(*(os.fsencode(value) for value in values), None)
