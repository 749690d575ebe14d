# SPDX-License-Identifier: Apache-2.0
"""liblxc's configuration, whole for a usual container, and what no value may do to it."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from flexd.api.errors import InvalidInput
from flexd.api.idmap import IdMap, IdMapEntry
from flexd.runtime.contract import ContainerSpec, MountSpec, NicSpec
from flexd.runtime.paths import ContainerPaths, group_prefix
from flexd.runtime.render import KERNEL_DIRECTORIES, NATIVE_ONLY, HostFacts, render

PATHS = ContainerPaths("c1", Path("/d/containers"), Path("/d/logs"))
PLAIN = ContainerSpec("c1", Path("/d/root"), IdMap.single(1_000_000, 65_536))
PREFIX = group_prefix(PATHS.directory)

GOLDEN = f"""\
lxc.uts.name = c1
lxc.arch = x86_64
lxc.rootfs.path = dir:/d/root
lxc.log.file = /d/logs/c1/lxc.log
lxc.log.level = warn
lxc.console.logfile = /d/logs/c1/console.log
lxc.console.size = 131072
lxc.console.rotate = 1
lxc.tty.max = 0
lxc.pty.max = 1024
lxc.hook.version = 1
lxc.hook.post-stop = /bin/sh -c 'printf %s "$LXC_TARGET" >"$0"; test "$LXC_TARGET" != reboot' /d/containers/c1/target
lxc.cgroup.dir.monitor = {PREFIX}/lxc.monitor.c1
lxc.cgroup.dir.monitor.pivot = {PREFIX}/lxc.pivot
lxc.cgroup.dir.container = {PREFIX}/lxc.payload.c1
lxc.cgroup.memory.limit_in_bytes = 1048576
lxc.idmap = u 0 1000000 65536
lxc.idmap = g 0 1000000 65536
lxc.sysctl.net.ipv4.ip_forward = 1
lxc.prlimit.nofile = 1000:2000
lxc.apparmor.profile = unconfined
lxc.seccomp.profile = /d/seccomp
lxc.seccomp.allow_nesting = 1
lxc.mount.auto = proc:rw sys:rw
lxc.autodev = 1
lxc.mount.entry = /dev/fuse dev/fuse none bind,create=file,optional 0 0
lxc.mount.entry = /dev/net/tun dev/net/tun none bind,create=file,optional 0 0
lxc.mount.entry = /sys/kernel/debug sys/kernel/debug none rbind,optional 0 0
lxc.mount.entry = /srv/my\\040data srv none bind,create=dir 0 0
lxc.net.0.type = phys
lxc.net.0.link = veth1
lxc.net.0.name = eth0
lxc.net.0.flags = up
lxc.net.0.hwaddr = 00:16:3e:00:00:01
lxc.net.0.mtu = 1400
lxc.environment = A=b c
lxc.signal.halt = SIGPWR
lxc.tty.max = 1
"""


def values(text: str, key: str) -> list[str]:
    return [line.partition(" = ")[2] for line in text.splitlines() if line.partition(" = ")[0] == key]


def rendered(facts: HostFacts | None = None, **changes: Any) -> str:
    return render(structs.replace(PLAIN, **changes), PATHS, facts or HostFacts())


def test_a_usual_container() -> None:
    text = rendered(
        HostFacts(kernel_directories=("/sys/kernel/debug",)),
        nics=(NicSpec("veth1", "eth0", "00:16:3e:00:00:01", 1400),),
        mounts=(MountSpec("/srv/my data", "srv", options=("bind", "create=dir")),),
        environment={"A": "b c"},
        cgroup=(("memory.limit_in_bytes", "1048576"),),
        sysctls={"net.ipv4.ip_forward": "1"},
        seccomp_profile="/d/seccomp",
        rlimits={"nofile": "1000:2000"},
        stop_signal="SIGPWR",
        raw="lxc.tty.max = 1",
    )
    assert text == GOLDEN


def test_who_runs_no_foreign_system_calls_is_known_to_exec() -> None:
    name, value = NATIVE_ONLY
    assert f"{name} = {value}\n" in rendered(native_only=True)
    assert name not in rendered()


def test_without_nics_it_still_has_a_network_namespace() -> None:
    assert values(rendered(), "lxc.net.0.type") == ["empty"]


def test_limits_go_to_the_hierarchy_that_has_the_controllers() -> None:
    text = rendered(HostFacts(unified_cgroup=True), cgroup=(("memory.max", "1"),))
    assert values(text, "lxc.cgroup2.memory.max") == ["1"]


def test_a_privileged_container_is_held_by_capabilities_devices_and_read_only_trees() -> None:
    text = rendered(HostFacts(apparmor=True, kernel_directories=KERNEL_DIRECTORIES), idmap=IdMap())
    assert values(text, "lxc.idmap") == []
    assert "sys_module" in values(text, "lxc.cap.drop")[0]
    assert values(text, "lxc.cgroup.devices.deny") == ["a"]
    assert values(text, "lxc.mount.auto") == ["proc:mixed sys:mixed"]
    assert values(text, "lxc.apparmor.profile") == ["lxc-container-default-cgns"]
    binds = [entry for entry in values(text, "lxc.mount.entry") if "rbind" in entry]
    assert len(binds) == len(KERNEL_DIRECTORIES)
    assert all("rbind,ro," in entry for entry in binds)


def test_maps_with_several_entries() -> None:
    idmap = IdMap((IdMapEntry("b", 0, 100_000, 1000), IdMapEntry("u", 1000, 1000, 1), IdMapEntry("g", 1001, 7, 1)))
    lines = ["u 0 100000 1000", "g 0 100000 1000", "u 1000 1000 1", "g 1001 7 1"]
    assert values(rendered(idmap=idmap), "lxc.idmap") == lines


@pytest.mark.parametrize(
    ("facts", "asked", "expected"),
    [(False, "p", "unconfined"), (True, "p", "p"), (True, "", "unconfined")],
)
def test_the_apparmor_profile(facts: bool, asked: str, expected: str) -> None:
    text = rendered(HostFacts(apparmor=facts), apparmor_profile=asked)
    assert values(text, "lxc.apparmor.profile") == [expected]


def test_lxcfs_is_shown_where_it_runs_and_is_wanted() -> None:
    mounted = HostFacts(lxcfs="/var/lib/lxcfs")
    assert "/var/lib/lxcfs/proc/meminfo proc/meminfo none bind,create=file,optional" in rendered(mounted)
    assert "lxcfs" not in rendered(mounted, lxcfs=False)
    assert "lxcfs" not in rendered()


def test_nesting_shows_whole_kernel_file_systems() -> None:
    assert "proc dev/.lxc/proc proc create=dir,optional" in rendered(nesting=True)
    assert ".lxc" not in rendered()


def test_raw_lines_come_last_and_end_with_a_line_break() -> None:
    assert rendered(raw="lxc.tty.max = 2").endswith("\nlxc.tty.max = 2\n")
    assert rendered(raw="lxc.tty.max = 2\n").endswith("\nlxc.tty.max = 2\n")


def test_init_is_words() -> None:
    assert values(rendered(init=("/bin/sleep", "1")), "lxc.init.cmd") == ["/bin/sleep 1"]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../c1"},
        {"name": ""},
        {"hostname": "a\nb"},
        {"hostname": "a\rb"},
        {"rootfs": Path("/a\nb")},
        {"raw": "a\0b"},
        {"init": ("/bin/sh", "a b")},
        {"init": ("",)},
        {"cgroup": (("memory.max = 1\nlxc.hook.stop", "x"),)},
        {"sysctls": {"a b": "1"}},
        {"rlimits": {"nofile = 1\nlxc.x": "1"}},
        {"rlimits": {"nofile": "1\n"}},
        {"environment": {"A=B": "1"}},
        {"environment": {"A": "1\nlxc.x = 1"}},
        {"mounts": (MountSpec("/a", "/absolute"),)},
        {"mounts": (MountSpec("/a", "../../etc"),)},
        {"mounts": (MountSpec("/a", "b", options=("bind rw",)),)},
        {"mounts": (MountSpec("/a", "b", fstype=""),)},
        {"nics": (NicSpec("veth1\nlxc.net.0.script.up = /x", "eth0"),)},
        {"stop_signal": "SIGPWR\n"},
        {"seccomp_profile": "/a\nb"},
        {"apparmor_profile": "a\nb", "rootfs": Path("/a\0b")},
    ],
)
def test_what_cannot_be_written_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        rendered(HostFacts(apparmor=True), **changes)


TEXT = st.text(st.characters(codec="utf-8"), max_size=30) | st.sampled_from(
    ["\n", "a\nlxc.hook.start = /x", "\r", "\0"]
)


@given(
    hostname=TEXT,
    value=TEXT,
    name=TEXT,
    source=TEXT,
    target=TEXT,
    option=TEXT,
    link=TEXT,
    signal=TEXT,
    key=TEXT,
    profile=TEXT,
    init=TEXT,
)
def test_no_value_makes_a_line_of_its_own(
    hostname: str, value: str, name: str, source: str, target: str, option: str, link: str, signal: str, key: str,
    profile: str, init: str,
) -> None:  # fmt: skip
    changes: dict[str, Any] = {
        "hostname": hostname,
        "environment": {name: value},
        "mounts": (MountSpec(source, target, options=(option,)),),
        "nics": (NicSpec(link, name, value),),
        "stop_signal": signal,
        "cgroup": ((key, value),),
        "sysctls": {key: value},
        "rlimits": {key: value},
        "seccomp_profile": profile,
        "init": (init,),
        "rootfs": Path(source),
    }
    for change in changes.items():
        try:
            text = rendered(**dict([change]))
        except InvalidInput:
            continue
        known = {line.partition(" = ")[0] for line in GOLDEN.splitlines()} | {"lxc.init.cmd"}
        for line in text.split("\n")[:-1]:
            line_key = line.partition(" = ")[0]
            assert line_key in known or line_key.startswith(("lxc.cgroup.", "lxc.sysctl.", "lxc.prlimit.", "lxc.net."))
        assert "\r" not in text
        assert "\0" not in text


@given(st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0"), min_size=1, max_size=30))
def test_a_source_is_one_field(source: str) -> None:
    entry = values_of_mounts(rendered(mounts=(MountSpec(source, "x"),)))[-1]
    fields = entry.split(" ")
    assert len(fields) == 6
    unescaped = fields[0].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
    assert unescaped == source


def values_of_mounts(text: str) -> list[str]:
    return [line.partition(" = ")[2] for line in text.split("\n") if line.startswith("lxc.mount.entry")]


def test_two_daemons_have_cgroups_of_their_own() -> None:
    assert group_prefix(Path("/a")) != group_prefix(Path("/b"))
