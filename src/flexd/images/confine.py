# SPDX-License-Identifier: Apache-2.0
"""Command lines that confine programs: those fed with somebody else's archive or server, and those that build one.

The kernel keeps them in: a tar or unsquashfs that is fooled (or exploited) sees only a read-only /usr and the target
directory, and holds no capability beyond file ownership. All of them end with us (`programs.LEASH`).
"""

from collections.abc import Sequence
from pathlib import Path

# Redirections in a POSIX shell know descriptors up to 9 only, so the leash gets the number 3.
_TAKE_LEASH = 'exec 3<"/proc/self/fd/$FLEXD_LEASH"'
# Runs a command as pid 1 of its namespace until it ends, or the leash does: pid 1's end kills all that is left.
# Descriptor 4, since a shell gives /dev/null to what it starts in the background.
_LEASHED = r"""
trap "exit 137" TERM
exec 4<&0 </dev/null
(cat <&3; kill -TERM 1) >/dev/null 2>&1 4<&- &
status=0
"$@" <&4 4<&- 3<&- & wait $! || status=$?
"""

# In a private mount namespace: a tmpfs as root with the system's programs, read-only.
_ROOT = r"""
mount -t tmpfs -o size=64m,mode=755 flexd "$stage"
mkdir "$stage/dev"
: >"$stage/dev/null"
mount --bind /dev/null "$stage/dev/null"
for directory in bin sbin lib lib32 lib64 usr nix gnu; do
    if [ -L "/$directory" ]; then cp -P "/$directory" "$stage/$directory"
    elif [ -d "/$directory" ]; then
        mkdir "$stage/$directory"
        mount --bind -o ro "/$directory" "$stage/$directory"
    fi
done
"""

# Beside that the target at /image/rootfs. The few files of a unified image that stand beside rootfs/ land in the tmpfs
# and vanish with it. Then no capabilities but those that restore owners and modes: without CAP_MKNOD no devices,
# without CAP_SYS_ADMIN no trusted.* attributes. An overlay whiteout (character device 0/0) is the one device that
# anybody may make: it is removed again.
_CONFINE = rf"""
set -eu
{_TAKE_LEASH}
stage=$1; target=$2; file=$3; shift 3
{_ROOT}
mkdir -p "$stage/image/rootfs" "$stage/tmp"
if [ -n "$target" ]; then mount --bind "$target" "$stage/image/rootfs"; fi
if [ -n "$file" ]; then : >"$stage/file"; mount --bind -o ro "$file" "$stage/file"; fi
cd /
exec chroot "$stage" setpriv --no-new-privs --inh-caps=-all \
    --bounding-set=-all,+chown,+dac_override,+fowner,+fsetid,+setfcap sh -c '{_LEASHED}
    find /image/rootfs -xdev \( -type b -o -type c \) -printf "skipped device: %p\n" -delete >&2
    exit $status' -- "$@"
"""

# As above, but what stands beside rootfs/ is kept in a directory of its own, and the program speaks to its peer by its
# own stdin and stdout (rsync).
_CONFINE_PEER = rf"""
set -eu
stage=$1; beside=$2; target=$3; root=$4; shift 4
{_ROOT}
mkdir -p "$stage/image" "$stage/tmp"
mount --bind "$beside" "$stage/image"
mkdir -p "$stage/image/$root"
mount --bind "$target" "$stage/image/$root"
cd /
exec chroot "$stage" setpriv --no-new-privs --inh-caps=-all \
    --bounding-set=-all,+chown,+dac_override,+fowner,+fsetid,+setfcap -- "$@"
"""

# A tree to read at /tree/NAME and one file to write at /output; no capability but to read everything.
_CONFINE_READER = rf"""
set -eu
{_TAKE_LEASH}
stage=$1; tree=$2; name=$3; output=$4; shift 4
{_ROOT}
mkdir -p "$stage/tree/$name" "$stage/tmp"
mount --bind -o ro "$tree" "$stage/tree/$name"
if [ -n "$output" ]; then : >"$stage/output"; mount --bind "$output" "$stage/output"; fi
cd /
exec chroot "$stage" setpriv --no-new-privs --inh-caps=-all --bounding-set=-all,+dac_read_search sh -c '{_LEASHED}
    exit $status' -- "$@"
"""

# A program that speaks to servers: nobody's rights, the host's network and /etc, one directory of nobody's to write.
_CONFINE_CLIENT = rf"""
set -eu
{_TAKE_LEASH}
stage=$1; work=$2; shift 2
{_ROOT}
mkdir -p "$stage/etc" "$stage/work"
mount --bind -o ro /etc "$stage/etc"
mount --bind "$work" "$stage/work"
chown 65534:65534 "$stage/work"
cd /
exec chroot "$stage" setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs --inh-caps=-all \
    --bounding-set=-all sh -c 'cd /work
    {_LEASHED}
    exit $status' -- "$@"
"""

# Layers to read at /layout and a tree to make at /bundle. Layers hold whiteouts and devices: making a device node needs
# CAP_MKNOD, so nothing here lets one be opened, and they are removed again.
_CONFINE_LAYERS = rf"""
set -eu
{_TAKE_LEASH}
stage=$1; layout=$2; bundle=$3; shift 3
{_ROOT}
mkdir -p "$stage/layout" "$stage/bundle" "$stage/tmp" "$stage/proc"
mount --bind -o ro "$layout" "$stage/layout"
mount --bind "$bundle" "$stage/bundle"
mount -o remount,bind,nodev,nosuid "$stage/bundle"
mount -o remount,nodev "$stage"
mount -t proc -o nosuid,nodev,noexec proc "$stage/proc"
cd /
exec chroot "$stage" setpriv --no-new-privs --inh-caps=-all \
    --bounding-set=-all,+chown,+dac_override,+fowner,+fsetid,+setfcap,+mknod sh -c '{_LEASHED}
    find /bundle -xdev \( -type b -o -type c \) -printf "skipped device: %p\n" -delete >&2
    exit $status' -- "$@"
"""

IMAGE = "/image"
TARGET = "/image/rootfs"
"""Where a confined program sees the target."""
FILE = "/file"
"""Where a confined program sees the one file it is shown."""
TREE = "/tree"
"""Where a confined reader sees the tree, under its name."""
OUTPUT = "/output"
"""Where a confined reader may write."""
WORK = "/work"
"""Where a confined client may write."""
LAYOUT = "/layout"
"""Where a confined program sees an OCI image layout."""
BUNDLE = "/bundle"
"""Where a confined program makes a tree of layers."""

_NAMESPACES = ("unshare", "--mount", "--propagation", "private", "--ipc", "--pid", "--fork", "--kill-child")


def confined(argv: Sequence[str], *, stage: Path, target: Path | None = None, file: Path | None = None) -> list[str]:
    """A program that may write to `target` only. `stage` is an empty directory to mount on, outside of target; many
    may use it at once, for each mounts in a namespace of its own. Needs root."""
    names = [str(stage), str(target or ""), str(file or "")]
    return [*_NAMESPACES, "sh", "-c", _CONFINE, "sh", *names, *argv]


def peering(argv: Sequence[str], *, stage: Path, beside: Path, target: Path, root: str = "rootfs") -> list[str]:
    """A program that writes what another host sends: below `IMAGE`, which is `beside` with `target` at `root` (empty:
    which is `target`)."""
    return [*_NAMESPACES, "sh", "-c", _CONFINE_PEER, "sh", str(stage), str(beside), str(target), root, *argv]


def reading(argv: Sequence[str], *, stage: Path, tree: Path, name: str, output: Path | None = None) -> list[str]:
    """A program that reads somebody else's tree, whatever its files' modes, and may write one file at most."""
    places = [str(stage), str(tree), name, str(output or "")]
    return [*_NAMESPACES, "sh", "-c", _CONFINE_READER, "sh", *places, *argv]


def client(argv: Sequence[str], *, stage: Path, work: Path) -> list[str]:
    """A program that talks to a server that we need not trust; `work` becomes nobody's."""
    return [*_NAMESPACES, "sh", "-c", _CONFINE_CLIENT, "sh", str(stage), str(work), *argv]


def layering(argv: Sequence[str], *, stage: Path, layout: Path, bundle: Path) -> list[str]:
    """A program that puts somebody else's layers on top of each other, owners and all, below `bundle`."""
    return [*_NAMESPACES, "sh", "-c", _CONFINE_LAYERS, "sh", str(stage), str(layout), str(bundle), *argv]


def leashed(argv: Sequence[str]) -> list[str]:
    """A program with all of root's rights, in namespaces that take its mounts and processes away when it ends."""
    return [*_NAMESPACES, "--mount-proc", "sh", "-c", f"{_TAKE_LEASH}\n{_LEASHED}\nexit $status", "sh", *argv]


def powerless(argv: Sequence[str]) -> list[str]:
    """A filter that needs nothing but its stdin and stdout: run as nobody, with no capability at all."""
    nobody = "65534"
    return [
        *("setpriv", "--reuid", nobody, "--regid", nobody, "--clear-groups", "--no-new-privs", "--inh-caps=-all"),
        *("--bounding-set=-all", "--", *argv),
    ]
