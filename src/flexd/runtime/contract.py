# SPDX-License-Identifier: Apache-2.0
"""Running containers: what the house asks of liblxc, with a real and a fake implementation.

A container is known here by its runtime name (`c1`, or `project_c1` outside the default project). The daemon may
restart at any time: nothing here is a child that dies with it, and `find` sees what runs.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal, Protocol

from msgspec import Struct, field

from flexd.api.errors import BadRequest, Conflict, FlexdError
from flexd.api.idmap import IdMap
from flexd.host.contract import ProcessRef


class StartFailed(FlexdError):
    """The container did not start, or init died at once; the message ends with the last lines of log and console."""


class ConsoleInUse(Conflict):
    """Someone else is attached to the console."""


class CheckpointFailed(BadRequest):
    """The state of a container cannot be saved; the message says why, and the container runs on."""


class RestoreFailed(FlexdError):
    """A saved state cannot be brought back to life here; nothing of the try stays behind."""


class Obstacle(Struct, frozen=True):
    """Something that keeps a running container from being saved, and what its owner can do about it."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what} ({self.remedy})"


class NicSpec(Struct, frozen=True):
    """A link made by the daemon that liblxc moves into the container (`lxc.net.N.type = phys`)."""

    link: str  # name on the host before the start
    name: str  # name inside (eth0)
    hwaddr: str = ""
    mtu: int = 0
    addresses: tuple[str, ...] = ()  # CIDR, given by liblxc before init runs
    gateways: tuple[str, ...] = ()
    on_link: tuple[str, ...] = ()  # families ("ipv4", "ipv6") whose default route is the link itself


class MountSpec(Struct, frozen=True):
    """One `lxc.mount.entry`; target is relative to the container's root."""

    source: str
    target: str
    fstype: str = "none"
    options: tuple[str, ...] = ("bind",)


class ApplicationSpec(Struct, frozen=True):
    """One program that a container is for, in place of a system's init; ids are the container's. An init of ours is its
    parent, which reaps orphans, passes signals on and ends with its status."""

    command: tuple[str, ...]
    cwd: str = "/"
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()


class ContainerSpec(Struct, frozen=True):
    """All that rendering needs; pure data. `rootfs` is mounted with ids as the container's map has them on the host."""

    name: str
    rootfs: Path
    idmap: IdMap = IdMap()  # empty: privileged
    hostname: str = ""
    architecture: str = "x86_64"
    nics: tuple[NicSpec, ...] = ()
    mounts: tuple[MountSpec, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    init: tuple[str, ...] = ()  # empty: /sbin/init
    application: ApplicationSpec | None = None  # in place of `init`
    cgroup: tuple[tuple[str, str], ...] = ()  # ("memory.limit_in_bytes", "…"), written before init runs
    sysctls: dict[str, str] = field(default_factory=dict)
    rlimits: dict[str, str] = field(default_factory=dict)  # "nofile" -> "1024:4096" or "unlimited"
    nesting: bool = False
    lxcfs: bool = True
    seccomp_profile: str = ""  # path; empty: none
    supervised: bool = False  # the policy has `notify` rules
    native_only: bool = False  # no system calls of other architectures (32-bit programs)
    limit_devices: bool = False  # its cgroup says which devices it may use; always so if privileged
    apparmor_profile: str = ""
    guest_api: str = ""  # directory of the guest API's socket; empty: none
    migratable: bool = False  # started so that its state can be saved: what systemd must be told for that
    stop_signal: str = ""
    raw: str = ""  # raw.lxc, appended last


class ProxyAddress(Struct, frozen=True):
    """kind "tcp", "udp" or "unix"; `host` is an address, or a path (`@name`: abstract)."""

    kind: str
    host: str
    port: int = 0


class ProxySpec(Struct, frozen=True):
    """Connections to forward, (listen, connect) for each. `inside`: listen in the container and connect on the host,
    else the other way round. The socket's owner and the ids to drop to are of the side that they are on."""

    pairs: tuple[tuple[ProxyAddress, ProxyAddress], ...]
    inside: bool = False
    proxy_protocol: bool = False  # tell the sender by HAProxy's PROXY protocol, version 1
    socket_uid: int = 0
    socket_gid: int = 0
    socket_mode: int = 0o644
    drop_uid: int = 0
    drop_gid: int = 0


class Supervision(Struct, frozen=True):
    """Which system calls of a container are acted on outside of it, and how; asked for at each call, so it is live."""

    calls: frozenset[str] = frozenset()  # mknod, setxattr, mount, bpf, sched_setscheduler, sysinfo
    mount_allowed: frozenset[str] = frozenset()  # file systems
    mount_fuse: dict[str, str] = field(default_factory=dict)  # file system -> the program that mounts it
    mount_shift: bool = False
    bpf_devices: bool = False


class RunningContainer(Struct, frozen=True):
    """`init` is the container's PID 1 as the host sees it; `monitor` is liblxc's process beside it."""

    name: str
    init: ProcessRef
    monitor: ProcessRef
    cgroup: str  # payload cgroup relative to each hierarchy (`lxc.payload.c1`)


class Dump(Protocol):
    """A container whose state is saved, and which stands still: its images are complete, its files are of that moment,
    nobody reaches it over the network. If nobody decides, because the daemon dies, it goes on."""

    async def finish(self) -> None:
        """It ends, and its peers hear nothing of it. From here on the images are all there is."""
        ...

    async def resume(self) -> None:
        """It goes on as if nothing had been; the images stay."""
        ...


class Restore(Protocol):
    """A container made from images, complete, that stands still and cannot be reached over the network. If nobody
    decides, because the daemon dies, it ends and leaves nothing."""

    async def resume(self) -> RunningContainer:
        """It goes on where it was saved."""
        ...

    async def abort(self) -> None:
        """It ends, as if it had never been."""
        ...


class Ended(Struct, frozen=True):
    """Why a container's init ended: it powered off, rebooted, or was killed from outside. `status`: what it exited
    with; None if reboot(2) or a signal ended it, or while no daemon ran."""

    target: Literal["stop", "reboot"]
    status: int | None = None


class ExecSpec(Struct, frozen=True):
    """A command to run inside; ids are the container's. An empty command is an error."""

    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    cwd: str = ""
    uid: int = 0
    gid: int = 0


class ExecProcess(Protocol):
    """A command under way. `wait` gives LXD's status: 0-255, 128+n for a signal, 126 not executable, 127 not found."""

    @property
    def pid(self) -> int: ...
    async def wait(self) -> int: ...
    async def signal(self, number: int) -> None: ...


class FileInfo(Struct, frozen=True):
    """kind "file", "directory", "symlink" or "other"; ids as the container sees them; `mode` is permission bits."""

    kind: str
    uid: int
    gid: int
    mode: int
    size_bytes: int = 0
    mtime_s: float = 0.0
    target: str = ""  # of a symlink
    entries: tuple[str, ...] = ()  # of a directory


class ContainerFiles(Protocol):
    """Files of one container, running or stopped, reached as its root would: a path never leaves its root."""

    async def stat(self, path: str, *, follow: bool = True) -> FileInfo:
        """`NotFound` if there is nothing; `entries` and `target` are filled in."""
        ...

    async def open(self, path: str, flags: int, *, mode: int = 0o644, uid: int = 0, gid: int = 0) -> int:
        """A file descriptor (the caller closes it); os.O_* flags; mode and ids apply where the file is created."""
        ...

    async def set_owner(self, path: str, *, uid: int | None, gid: int | None, mode: int | None) -> None: ...
    async def make_directory(self, path: str, *, mode: int, uid: int, gid: int) -> None:
        """An existing directory is no error."""
        ...

    async def make_symlink(self, path: str, target: str, *, uid: int, gid: int) -> None: ...
    async def remove(self, path: str) -> None:
        """A file, link or empty directory."""
        ...

    async def sftp(self) -> int:
        """A socket on which an SFTP server (draft-ietf-secsh-filexfer-02) for the container's root answers."""
        ...

    async def close(self) -> None: ...


class Runtime(Protocol):
    async def version(self) -> str:
        """liblxc's version, for `environment.driver_version`."""
        ...

    async def features(self) -> Mapping[str, str]:
        """`environment.lxc_features`: name -> "true"/"false", LXD's names."""
        ...

    async def missing(self) -> Mapping[str, str]:
        """What containers go without on this host now -> what that means for them; cheap."""
        ...

    async def supervise(self, lookup: Callable[[str], Supervision | None]) -> None:
        """From now on act on intercepted system calls of the container named as `lookup` says (None: as the kernel)."""
        ...

    async def start(self, spec: ContainerSpec) -> RunningContainer:
        """Start; returns when init runs. `StartFailed` if it does not, nothing stays behind then. An application may
        have ended by then, with status 0."""
        ...

    async def obstacles(self, container: RunningContainer) -> list[Obstacle]:
        """What keeps the state of a running container from being saved, all at once."""
        ...

    async def checkpoint(self, container: RunningContainer, spec: ContainerSpec, images: Path) -> Dump:
        """Save the state of a running container into a directory, which is made anew. `spec`: what it runs with now.
        `CheckpointFailed` with the reason if it cannot be done; it runs on then."""
        ...

    async def restore(self, spec: ContainerSpec, images: Path) -> Restore:
        """Make a container of saved state instead of starting one; the root is mounted, the links of `spec` are there.
        `RestoreFailed` if it cannot be done. The images are read, also changed, and stay the caller's."""
        ...

    async def announce(self, container: RunningContainer) -> None:
        """Tell its networks that its addresses are here now: it has moved."""
        ...

    async def find(self, name: str) -> RunningContainer | None:
        """The running container of this name, whoever started it and whenever."""
        ...

    async def wait_ended(self, container: RunningContainer) -> Ended:
        """Return when init and its monitor are gone (liblxc's own clean-up done), and say why."""
        ...

    async def how_ended(self, name: str) -> Ended:
        """The same of a container that does not run any more."""
        ...

    async def shutdown(self, container: RunningContainer) -> None:
        """Ask init to power off with the signal that it wants (SIGRTMIN+3, SIGPWR, SIGUSR2…); returns at once."""
        ...

    def network_held(self, container: RunningContainer) -> AbstractAsyncContextManager[bool]:
        """Within, its network namespace stays, also if the container ends; False if it has ended."""
        ...

    async def kill(self, container: RunningContainer) -> None:
        """SIGKILL init and wait until nothing of it is left."""
        ...

    async def freeze(self, container: RunningContainer) -> None: ...
    async def unfreeze(self, container: RunningContainer) -> None: ...
    async def frozen(self, container: RunningContainer) -> bool: ...

    async def exec(
        self, container: RunningContainer, spec: ExecSpec, *, stdin: int, stdout: int, stderr: int, terminal: bool
    ) -> ExecProcess:
        """Run a command inside (liblxc attach: all namespaces, cgroup, LSM, seccomp, capabilities). The three are file
        descriptors that the call duplicates; with `terminal` they are the slave of one pty, made the controlling
        terminal of a new session. Command not found: an ExecProcess that ends with 127 (126: not executable)."""
        ...

    async def add_mount(self, container: RunningContainer, mount: MountSpec) -> None:
        """Bind into a running container what `lxc.mount.entry` would at its start (`bind`/`rbind` only; `ro`, `nosuid`,
        `nodev`, `noexec`, a propagation, `create=dir|file`). The path is the container's own: it never leads out."""
        ...

    async def remove_mount(self, container: RunningContainer, mount: MountSpec) -> None:
        """Unmount it, lazily, and remove the file that was made for it; left alone if by now something else is mounted
        there. The container may be gone."""
        ...

    async def allow_device(self, container: RunningContainer, rule: str) -> None:
        """Let it use a device (`c 10:200 rwm`), where its devices are limited at all: in a privileged container."""
        ...

    async def deny_device(self, container: RunningContainer, rule: str) -> None: ...

    async def start_proxy(self, container: RunningContainer, spec: ProxySpec, record: Path) -> None:
        """A process that forwards from when this returns, and outlives the daemon. `record`: a file to name it in,
        written before it forwards, so that it can be found after a crash."""
        ...

    async def proxy_runs(self, record: Path) -> bool: ...

    async def wait_proxy(self, record: Path) -> None:
        """Return when it has ended; at once if there is none."""
        ...

    async def stop_proxy(self, record: Path) -> None:
        """End it and its connections, and remove the file; gone: no error."""
        ...

    async def console(self, container: RunningContainer) -> int:
        """A file descriptor of the master of the container's console (/dev/console); one holder at a time."""
        ...

    async def console_log(self, name: str) -> bytes:
        """What was written to the console of the current or last run (bounded, newest last)."""
        ...

    async def clear_console_log(self, name: str) -> None: ...

    async def log_files(self, name: str) -> list[Path]:
        """Existing files for `/1.0/instances/NAME/logs` (lxc.log, lxc.conf, console.log …)."""
        ...

    async def remove(self, name: str) -> None:
        """Forget a stopped container: logs, configuration, run-time directory."""
        ...

    async def rename(self, name: str, new_name: str) -> None:
        """Move a stopped container's logs to its new name."""
        ...

    async def files(self, container: RunningContainer | None, rootfs: Path, idmap: IdMap) -> ContainerFiles:
        """Files of a container: inside its mount namespace if it runs, else on its mounted rootfs."""
        ...

    async def close(self) -> None:
        """Stop helpers; containers run on."""
        ...
