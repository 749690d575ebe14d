# SPDX-License-Identifier: Apache-2.0
"""What a host lacks, and what does not work without it: words for people; pure."""

from flexd.host.contract import CgroupLayout, Features

# Programs that nothing needs but more speed are not listed.
_PROGRAMS = {
    "lxc-start": "containers cannot be started (package lxc)",
    "dnsmasq": "managed bridges have no DHCP and DNS (package dnsmasq-base)",
    "nft": "managed bridges have no NAT and firewall (package nftables)",
    "btrfs": "storage pools of driver btrfs (package btrfs-progs)",
    "tar": "images and backups (package tar)",
    "unsquashfs": "images in squashfs format (package squashfs-tools)",
    "mksquashfs": "making images in squashfs format (package squashfs-tools)",
    "mmdebstrap": "building images of Debian and Ubuntu (package mmdebstrap)",
}
_CONTROLLERS = {
    "cpu": "limits.cpu.allowance and limits.cpu.priority cannot be enforced",
    "cpuset": "limits.cpu cannot be enforced",
    "hugetlb": "limits.hugepages.* cannot be enforced",
    "memory": "limits.memory* cannot be enforced, and nobody counts an instance's memory",
    "pids": "limits.processes cannot be enforced, and nobody counts an instance's processes",
}
# On v2 these are part of the core, and `io` is blkio's successor.
_V1_CONTROLLERS = {
    "blkio": "limits.disk.priority and limits.read|write of disks cannot be enforced",
    "cpuacct": "nobody counts an instance's CPU time",
    "devices": "a privileged instance's devices cannot be limited",
    "freezer": "instances cannot be paused",
}
_V2_CONTROLLERS = {"io": _V1_CONTROLLERS["blkio"]}


def missing(features: Features) -> dict[str, str]:
    """What is missing -> what then does not work."""
    absent = {name: words for name, words in _PROGRAMS.items() if name not in features.programs}
    kernel = {
        "idmapped mounts": (features.idmapped_mounts, "shifting ids without rewriting files (Linux 5.12)"),
        "overlay on idmapped mounts": (
            features.overlay_idmapped_lower, "unprivileged containers in storage pools of driver overlay (Linux 5.19)",
        ),
        "pidfd": (features.pidfd, "watching containers across restarts of the daemon (Linux 5.3)"),
        "seccomp listener": (features.seccomp_listener, "security.syscalls.intercept.* (Linux 5.0)"),
        "AppArmor": (features.apparmor, "confining containers by AppArmor profiles"),
        "network namespace ids": (features.network_namespace_id, "network figures of instances (Linux 4.20)"),
        "user namespaces": (features.unprivileged_user_namespaces, "unprivileged containers"),
    }  # fmt: skip
    absent |= {name: words for name, (present, words) in kernel.items() if not present}
    return absent | (_controllers(features.cgroup) if features.cgroup is not None else {})


def _controllers(layout: CgroupLayout) -> dict[str, str]:
    wanted = _CONTROLLERS | (_V2_CONTROLLERS if layout.mode == "v2" else _V1_CONTROLLERS)
    return {f"cgroup controller {name}": words for name, words in wanted.items() if name not in layout.controllers}
