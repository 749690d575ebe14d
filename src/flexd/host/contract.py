# SPDX-License-Identifier: Apache-2.0
"""What flexd asks of the kernel and of programs, as one protocol with a real and a fake implementation.

Everything here may be awaited on the event loop: whatever blocks runs in a thread or a process. Failures are
`HostError` (a system call) or `CommandFailed` (a program), both naming what was tried on what. Removing what is not
there is not an error; creating what is there is, unless the method says otherwise. Both implementations pass
`tests/contract/host`.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct, field

from flexd.api.idmap import IdMap
from flexd.host.criu_contract import Criu as Criu
from flexd.host.criu_contract import CriuFacts as CriuFacts
from flexd.host.process_contract import CommandFailed as CommandFailed
from flexd.host.process_contract import Completed as Completed
from flexd.host.process_contract import HostError as HostError
from flexd.host.process_contract import Peer as Peer
from flexd.host.process_contract import Processes as Processes
from flexd.host.process_contract import ProcessRef as ProcessRef
from flexd.host.process_contract import Spawned as Spawned

# --- mounts ------------------------------------------------------------------------------------------------------


class MountInfo(Struct, frozen=True):
    """A line of `/proc/self/mountinfo` (proc_pid_mountinfo(5))."""

    target: Path
    source: str
    fstype: str
    options: str
    root: str = "/"


class Layer(Struct, frozen=True):
    """A read-only layer of an overlay, its ids shifted by an idmapped mount that only the overlay holds."""

    path: Path
    idmap: IdMap | None = None


class Mounts(Protocol):
    async def mount(self, source: str, target: Path, fstype: str, options: str = "") -> None:
        """Mount a file system; `options` as mount(8) writes them (`ro,nosuid,size=1m`)."""
        ...

    async def mount_file(self, file: Path, target: Path, fstype: str, options: str = "") -> None:
        """Mount the file system in a file through a loop device, with direct I/O where that works; the device goes
        with the mount."""
        ...

    async def bind(self, source: Path, target: Path, *, recursive: bool = False, readonly: bool = False) -> None: ...

    async def idmapped_bind(
        self, source: Path, target: Path, idmap: IdMap, *, recursive: bool = False, readonly: bool = False
    ) -> None:
        """Bind with ids shifted: what is id N on disk is seen as the map's host id of N
        (open_tree(2), mount_setattr(2) MOUNT_ATTR_IDMAP, move_mount(2))."""
        ...

    def beneath(self, parent: Path, path: Path) -> AbstractAsyncContextManager[Path]:
        """A file or directory under a name that stays its own for the time of the block, whatever is renamed or linked
        meanwhile; `HostError` if the path leads out of `parent` (openat2(2), RESOLVE_BENEATH), EXDEV."""
        ...

    async def overlay(
        self, target: Path, *, lower: Path, upper: Path, work: Path, lower_idmap: IdMap | None = None
    ) -> None:
        """Overlay `upper` on `lower`; with `lower_idmap` the lower layer is an idmapped mount that only the overlay
        holds. `upper` keeps ids as they are on disk. No other mount stays behind."""
        ...

    async def overlay_layers(
        self, target: Path, layers: Sequence[Layer], *, upper: Path | None = None, work: Path | None = None
    ) -> None:
        """As `overlay` with any number of read-only layers, topmost first; without `upper` (and `work`) read-only,
        for which the kernel wants two layers or more."""
        ...

    async def unmount(self, target: Path, *, detach: bool = False) -> None:
        """Unmount the topmost mount at target; with `detach` lazily (MNT_DETACH). Nothing mounted: no error."""
        ...

    async def mounted(self, target: Path) -> bool: ...

    async def below(self, path: Path) -> list[MountInfo]:
        """Mounts at or below a path, in the order they were made."""
        ...


# --- files -------------------------------------------------------------------------------------------------------


class FileUsage(Struct, frozen=True):
    total_bytes: int
    used_bytes: int
    inodes_total: int
    inodes_used: int


class Files(Protocol):
    async def remove_tree(self, path: Path) -> None:
        """Remove a tree without following links or crossing into other mounts; absent: no error."""
        ...

    async def copy_tree(self, source: Path, target: Path) -> None:
        """Copy with owners, modes, times, links, xattrs, ACLs, holes and device nodes; reflinks where there are any."""
        ...

    async def copy_tree_from(self, source: Path, target: Path, *, spare: Path) -> None:
        """The same, where a tree that is about to go is mostly equal: files that are as in `source` become the target's
        by a link, and only the others are copied. Equal: to rsync(1), by size and times to the nanosecond. `spare` is
        an absolute path."""
        ...

    async def copy_attributes(self, source: Path, target: Path) -> None:
        """Give a directory another one's owner, mode, extended attributes (ACLs are some) and times."""
        ...

    async def refresh_tree(self, source: Path, target: Path, *, by_content: bool = False) -> None:
        """Make a tree equal to another one, writing only what differs: by size and time, or, where times are not to be
        relied on, `by_content`, which reads both. Needs rsync."""
        ...

    async def shift_tree(self, path: Path, *, old: IdMap, new: IdMap) -> None:
        """Change owners (ACLs and file capabilities included) from host ids under `old` to those under `new`."""
        ...

    async def disk_usage(self, path: Path) -> int:
        """Bytes used by a tree (du without crossing file systems)."""
        ...

    async def filesystem(self, path: Path) -> FileUsage: ...

    async def filesystem_type(self, path: Path) -> str:
        """`ext4`, `btrfs`, `xfs`, `tmpfs`…"""
        ...

    async def systemd_version(self, root: Path) -> int | None:
        """Of the root file system of a container; None if it has another init, or one that does not tell."""
        ...


class Quotas(Protocol):
    """Project quotas (quotactl(2), FS_IOC_FSSETXATTR) where the file system of a path has them on."""

    async def available(self, path: Path) -> str | None:
        """None if they can be enforced, else the reason why not."""
        ...

    async def assign(self, path: Path, project: int) -> None:
        """Put a tree under a project id (inherited by what is made below it)."""
        ...

    async def set_limit(self, path: Path, project: int, limit_bytes: int) -> None:
        """0 lifts the limit."""
        ...

    async def usage(self, path: Path, project: int) -> int: ...


class BtrfsUsage(Struct, frozen=True):
    """Bytes of a subvolume: all it refers to, and those that nobody else does. Up to 30 s old (the commit interval)."""

    referenced_bytes: int
    exclusive_bytes: int


class Btrfs(Protocol):
    """Subvolumes of btrfs and their quota groups."""

    async def available(self) -> str | None:
        """None if this kernel has it and its programs are there, else what is missing."""
        ...

    async def format(self, path: Path, *, label: str, force: bool = False) -> None:
        """mkfs.btrfs(8) on a file or block device; one that holds a file system already only with `force`."""
        ...

    async def is_subvolume(self, path: Path) -> bool: ...
    async def create_subvolume(self, path: Path) -> None: ...

    async def snapshot(self, source: Path, target: Path, *, readonly: bool = False) -> None:
        """Of a subvolume and the subvolumes in it; `target` must not exist. The parts are not of one moment."""
        ...

    async def set_readonly(self, path: Path, readonly: bool) -> None:
        """A subvolume and the subvolumes in it."""
        ...

    async def subvolumes(self, path: Path) -> list[str]:
        """The paths of the subvolumes below a subvolume, from there; what lies in one comes after it."""
        ...

    async def uuid(self, path: Path) -> str: ...

    async def graft(self, source: Path, tree: Path, path: str) -> None:
        """A writable snapshot of a subvolume at a path in another one, in the place of an empty directory if there is
        one. What is in the tree leads nowhere else; what is above the last part of the path must be there."""
        ...

    async def send(self, path: Path, *, parent: Path | None = None, output: int) -> None:
        """Write a read-only subvolume, without those in it, to a descriptor for `receive`; of one with a parent only
        what differs."""
        ...

    async def receive(self, directory: Path, *, input: int) -> Path:
        """Make a read-only subvolume of a stream, in a directory that holds its parent if it has one, and cannot write
        elsewhere. Not whole, or not a stream at all: `CommandFailed`, and nothing of it is left."""
        ...

    async def delete_subvolumes(self, path: Path) -> None:
        """The subvolume at a path with those in it, or, at a directory, every subvolume below. Others write there."""
        ...

    async def enable_quotas(self, path: Path) -> None:
        """Of the whole file system; waits until what is there has been counted. On already: quick."""
        ...

    async def set_limit(self, path: Path, limit_bytes: int) -> None:
        """What a subvolume may refer to; 0 lifts the limit. Quotas are on."""
        ...

    async def usage(self, path: Path) -> BtrfsUsage | None:
        """None where quotas are off."""
        ...

    async def sync(self, path: Path) -> None:
        """Commit the file system, so that usage is up to date."""
        ...


# --- device nodes ------------------------------------------------------------------------------------------------


class Node(Struct, frozen=True):
    """A device: kind "c"haracter or "b"lock, and its numbers (mknod(2))."""

    kind: str
    major: int
    minor: int


class Watch(Protocol):
    """Tells that device nodes may have come or gone; what did is for the listener to look up."""

    def set_directories(self, directories: Iterable[Path]) -> None:
        """Beside the kernel's hardware events: entries of these directories coming and going."""
        ...

    async def wait(self) -> None:
        """Return at the next change since the last return; several at once are one."""
        ...

    def close(self) -> None: ...


class Nodes(Protocol):
    async def read(self, path: Path) -> Node | None:
        """The device behind a path; None if there is nothing, or something else."""
        ...

    async def make(self, path: Path, node: Node, *, mode: int, uid: int, gid: int) -> None:
        """A node (and the directory for it); one that is there is replaced."""
        ...

    async def disk_of(self, path: Path) -> str | None:
        """`major:minor` of the whole disk that holds a path (of the device itself, if the path is one); None for file
        systems that are on no block device."""
        ...

    async def of_usb(self, vendor: str, product: str) -> dict[str, Node]:
        """Paths of the nodes that belong to USB devices of a vendor and a product (four hex digits; empty: any): the
        device's own and those of its drivers (ttyUSB0, sda)."""
        ...

    async def has_class(self, name: str) -> bool:
        """Whether the kernel has devices of a class (`/sys/class/NAME`): `drm`, `infiniband`, `tpm`."""
        ...

    def watch(self) -> Watch: ...


# --- cgroups -----------------------------------------------------------------------------------------------------


class CgroupStats(Struct):
    """Figures of one cgroup; None where the controller is not there. CPU in nanoseconds, memory in bytes."""

    cpu_usage_ns: int | None = None
    memory_usage_bytes: int | None = None
    memory_peak_bytes: int | None = None
    memory_limit_bytes: int | None = None
    swap_usage_bytes: int | None = None
    swap_peak_bytes: int | None = None
    processes: int | None = None


class CgroupLayout(Struct, frozen=True):
    """`mode` is "v1", "v2" or "hybrid"; `controllers` maps a controller to its mount point (all the same on v2)."""

    mode: str
    controllers: dict[str, Path]
    unified: Path | None


class Cgroups(Protocol):
    """Cgroups by their path relative to each hierarchy's root (`lxc.payload.c1`), on v1, v2 and hybrid alike."""

    async def layout(self) -> CgroupLayout: ...

    async def stats(self, groups: Sequence[str]) -> list[CgroupStats]:
        """Figures of many cgroups in one go (one thread hop), in order; a cgroup that is gone gives an empty row."""
        ...

    async def read(self, group: str, controller: str, file: str) -> str: ...

    async def write(self, group: str, controller: str, file: str, value: str) -> None: ...

    async def processes(self, group: str) -> list[int]: ...

    async def remove(self, group: str) -> None:
        """Remove an empty cgroup and its empty children from every hierarchy."""
        ...

    async def delegate(self, group: str) -> None:
        """Let whoever owns the directory of a cgroup, or of one below it, also move processes there."""
        ...


# --- links -------------------------------------------------------------------------------------------------------


class LinkCounters(Struct, frozen=True):
    bytes_received: int = 0
    bytes_sent: int = 0
    packets_received: int = 0
    packets_sent: int = 0
    errors_received: int = 0
    errors_sent: int = 0
    packets_dropped_inbound: int = 0
    packets_dropped_outbound: int = 0


class LinkAddress(Struct, frozen=True):
    """family "inet" or "inet6"; scope "global", "link", "local" or "host"."""

    family: str
    address: str
    prefix: int
    scope: str


class Link(Struct, frozen=True):
    """`kind` is the rtnl kind (`veth`, `bridge`, …), "" for a plain device; `peer_index` the veth peer's ifindex."""

    name: str
    index: int
    kind: str = ""
    hwaddr: str = ""
    mtu: int = 0
    up: bool = False
    running: bool = False
    loopback: bool = False
    master_index: int = 0
    peer_index: int = 0
    addresses: tuple[LinkAddress, ...] = ()
    counters: LinkCounters = LinkCounters()


class Route(Struct, frozen=True):
    """`destination` in CIDR (`0.0.0.0/0` for a default route)."""

    destination: str
    link: str
    gateway: str = ""


class Links(Protocol):
    """rtnetlink(7) in the daemon's own network namespace, and readings from others."""

    async def all(self) -> list[Link]: ...
    async def names(self) -> dict[int, str]:
        """Every link's name by its index; much cheaper than `all`."""
        ...

    async def get(self, name: str) -> Link | None: ...
    async def virtual_functions(self, name: str) -> dict[int, str]:
        """SR-IOV: the number of each virtual function of a card and its link's name, "" where that is elsewhere."""
        ...

    async def routes(self) -> list[Route]:
        """Main-table routes of both families."""
        ...

    async def create_bridge(self, name: str, *, hwaddr: str = "", mtu: int = 0) -> None: ...

    async def create_veth(
        self, name: str, peer: str, *, hwaddr: str = "", mtu: int = 0, index: int = 0, peer_hwaddr: str = ""
    ) -> None:
        """A pair, both down. `hwaddr`/`index` are `name`'s, which goes into the container; `peer` stays on the host."""
        ...

    async def create_macvlan(
        self, name: str, parent: str, *, mode: str = "bridge", hwaddr: str = "", mtu: int = 0
    ) -> None:
        """`mode`: bridge, vepa, private or passthru."""
        ...

    async def create_ipvlan(self, name: str, parent: str, *, mode: str = "l3s") -> None:
        """`mode`: l2, l3 or l3s."""
        ...

    async def delete(self, name: str) -> None: ...
    async def rename(self, name: str, new_name: str) -> None: ...
    async def move(self, name: str, namespace: Path, new_name: str) -> None:
        """Give a link to a network namespace (`/proc/PID/ns/net`, or a bind mount of that) under a new name. It is
        down there and has lost its addresses."""
        ...

    async def fetch(self, namespace: Path, name: str, new_name: str) -> bool:
        """Take a link back out of a network namespace; False if there is none of that name, or no such namespace."""
        ...

    async def set_up(self, name: str, up: bool = True) -> None: ...
    async def set_mtu(self, name: str, mtu: int) -> None: ...
    async def set_hwaddr(self, name: str, hwaddr: str) -> None: ...
    async def set_master(self, name: str, bridge: str | None) -> None: ...
    async def set_addresses(self, name: str, addresses: Sequence[str]) -> None:
        """Make the interface's global addresses exactly these (`10.0.0.1/24`, `fd42::1/64`)."""
        ...

    async def set_sysctl(self, name: str, family: str, key: str, value: str) -> None:
        """`net.<family>.conf.<name>.<key>`, family "ipv4" or "ipv6"; name may be "all" or "default"."""
        ...

    async def get_sysctl(self, name: str, family: str, key: str) -> str | None:
        """What `set_sysctl` sets, without the line's end; None where the kernel does not have it (IPv6 off)."""
        ...

    async def neighbours(self, name: str) -> list[tuple[str, str]]:
        """(address, hwaddr) of the neighbour table of a link."""
        ...

    async def inside(self, pids: Sequence[int]) -> list[list[Link]]:
        """Links of the network namespaces of these processes, in order, loopback included; gone: an empty list.
        One call for many, without entering a namespace in the daemon."""
        ...


class Firewall(Protocol):
    """nftables: tables of our own, replaced whole in one transaction; nothing else is ever touched."""

    async def available(self) -> str | None:
        """None if nft works here, else why not."""
        ...

    async def replace_table(self, family: str, name: str, body: str) -> None:
        """Make the table exactly `body` (chains and rules in nft(8) syntax, what stands between the braces)."""
        ...

    async def delete_table(self, family: str, name: str) -> None: ...

    async def tables(self) -> list[tuple[str, str]]:
        """(family, name) of all tables."""
        ...


# --- the machine -------------------------------------------------------------------------------------------------


class Features(Struct):
    """What this host can do; shown in `GET /1.0`. Reasons are for people."""

    kernel: str = ""
    kernel_version: str = ""
    kernel_architecture: str = ""
    os_name: str = ""
    os_version: str = ""
    architectures: list[str] = field(default_factory=list)
    cgroup: CgroupLayout | None = None
    idmapped_mounts: bool = False
    overlay_idmapped_lower: bool = False
    pidfd: bool = False
    seccomp_listener: bool = False
    apparmor: bool = False
    apparmor_stacking: bool = False  # a namespace of policies for what is loaded inside a container
    apparmor_rules: list[str] = field(default_factory=list)  # of those that newer parsers know: `userns,`
    unprivileged_user_namespaces: bool = False
    nested: bool = False  # this daemon is itself in a user namespace, as in a container
    network_namespace_id: bool = False
    programs: dict[str, str] = field(default_factory=dict)  # name -> version ("" where it does not tell)


class SubordinateRange(Struct, frozen=True):
    """Ids that root may map, from `/etc/subuid` and `/etc/subgid` (subuid(5)), else 1000000:1000000000."""

    base: int
    count: int


class Machine(Protocol):
    async def features(self) -> Features:
        """The kernel's are tried at the first call only; programs are looked for at every one."""
        ...

    async def missing(self) -> dict[str, str]:
        """What this host lacks now -> what then does not work; cheap, as programs may be installed at any time."""
        ...

    async def subordinate_ids(self) -> SubordinateRange: ...
    async def boot_id(self) -> str:
        """`/proc/sys/kernel/random/boot_id`: differs after a reboot of the host."""
        ...

    async def memory_bytes(self) -> int:
        """The host's memory (`MemTotal` of proc_meminfo(5))."""
        ...

    async def online_cpus(self) -> str:
        """The CPUs that run, as a list (`0-3,7`; `/sys/devices/system/cpu/online`)."""
        ...

    async def raise_limits(self) -> dict[str, str]:
        """Raise the sysctls that many containers need (fs.inotify.*, kernel.keys.*, vm.max_map_count, neighbour
        tables) where they may be raised; returns what was changed, `name -> "old -> new"`. Never lowers."""
        ...

    async def sysctl(self, name: str, value: str) -> bool:
        """Set one sysctl; False where the kernel does not have it or it may not be set."""
        ...

    async def load_module(self, name: str) -> None:
        """Load a kernel module, unless the kernel has it already (modprobe(8))."""
        ...

    async def load_profile(self, path: Path) -> None:
        """Load the AppArmor profile of a file into the kernel, or replace it there (apparmor_parser(8))."""
        ...

    async def unload_profile(self, path: Path) -> None:
        """Take it out again; not loaded, or no such file: no error."""
        ...

    async def make_policy_namespace(self, name: str) -> None:
        """A namespace for AppArmor profiles that are loaded inside a container; there already: no error."""
        ...

    async def remove_policy_namespace(self, name: str) -> None: ...

    async def unknown_syscalls(self, names: Sequence[str]) -> list[str]:
        """Those of the names that are no system call on any architecture."""
        ...

    async def resources(self) -> dict[str, Any]:
        """What `GET /1.0/resources` shows, as builtins in the shape of `flexd.api.resources.Resources`."""
        ...

    async def load_average(self) -> tuple[float, float, float]: ...


class Host(Protocol):
    """All of it; each part is its own object, so that a test can replace one."""

    @property
    def processes(self) -> Processes: ...
    @property
    def mounts(self) -> Mounts: ...
    @property
    def files(self) -> Files: ...
    @property
    def quotas(self) -> Quotas: ...
    @property
    def btrfs(self) -> Btrfs: ...
    @property
    def nodes(self) -> Nodes: ...
    @property
    def cgroups(self) -> Cgroups: ...
    @property
    def links(self) -> Links: ...
    @property
    def firewall(self) -> Firewall: ...
    @property
    def criu(self) -> Criu: ...
    @property
    def machine(self) -> Machine: ...
    async def close(self) -> None: ...
