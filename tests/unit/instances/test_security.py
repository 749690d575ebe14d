# SPDX-License-Identifier: Apache-2.0
"""Keys that confine: each wrong value, contradictions, and what they ask for."""

from pathlib import Path

import pytest

from flexd.api.errors import BadRequest, FlexdError, InvalidInput
from flexd.api.instance import InstancePut
from flexd.host.contract import CgroupLayout
from flexd.instances.allocator import current_idmap
from flexd.instances.keys import config_faults
from flexd.instances.security import denies_compat, interceptions, seccomp_rules, supervision, sysctls
from flexd.runtime.seccomp import SeccompRules
from tests.unit.instances.house import PROJECT, ROOT, House, house


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("security.syscalls.deny", "mkdir errno"),
        ("security.syscalls.allow", "[toaster]"),
        ("security.syscalls.deny_default", "perhaps"),
        ("security.syscalls.deny_compat", "perhaps"),
        ("security.syscalls.intercept.bpf.devices", "sda"),
        ("raw.idmap", "both 1000"),
        ("raw.lxc", "lxc.log.file = /etc/passwd"),
        ("raw.lxc", "lxc.net.0.type = none"),
        ("raw.lxc", "lxc.prlimit.nofile = 5"),
        ("raw.lxc", "lxc.cgroup.dir = x"),
        ("raw.lxc", "lxc.rootfs.path = /"),
        ("raw.lxc", "nonsense"),
        ("linux.kernel_modules", "overlay,../../evil"),
        ("linux.sysctl.vm.swappiness", "1"),
        ("linux.sysctl.kernel.sysrq", "1"),
        ("linux.sysctl.net..x", "1"),
        ("linux.sysctl.net.ipv4.ip_forward", "1\nlxc.hook.start = /bin/sh"),
    ],
)
def test_wrong_values(key: str, value: str):
    faults = config_faults({key: value})
    assert [fault.path for fault in faults] == [f"config.{key}"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("security.syscalls.deny", "mkdir errno 1\n[all]\nchroot"),
        ("raw.lxc", "# a comment\n\nlxc.net.0.ipv4.address = 198.18.50.2/24\nlxc.mount.auto = cgroup"),
        ("linux.kernel_modules", "overlay, br_netfilter"),
        ("linux.sysctl.net.ipv4.ip_forward", "1"),
        ("linux.sysctl.kernel.shmmax", "65536"),
        ("raw.idmap", "both 1000 1000"),
    ],
)
def test_right_values(key: str, value: str):
    assert config_faults({key: value}) == []


def test_every_contradiction_is_told():
    config = {
        "raw.seccomp": "2\ndenylist\n",
        "security.syscalls.allow": "read",
        "security.syscalls.whitelist": "read",
        "security.syscalls.deny_default": "true",
        "security.syscalls.blacklist_compat": "true",
    }
    assert {fault.path for fault in config_faults(config)} == {
        "config.security.syscalls.allow",
        "config.security.syscalls.whitelist",
        "config.security.syscalls.deny_default",
        "config.security.syscalls.blacklist_compat",
    }


def test_allow_and_deny_contradict():
    faults = config_faults({"security.syscalls.allow": "read", "security.syscalls.blacklist": "write"})
    assert [fault.path for fault in faults] == ["config.security.syscalls.blacklist"]


def test_rules():
    assert seccomp_rules({}) == SeccompRules()
    assert seccomp_rules({"security.syscalls.blacklist_default": "false"}) == SeccompRules(deny_default=False)
    assert seccomp_rules({"security.syscalls.blacklist": "mkdir"}) == SeccompRules(deny="mkdir")


@pytest.mark.parametrize(
    ("config", "denied"),
    [
        ({}, False),
        ({"security.syscalls.deny_compat": "true"}, True),
        ({"security.syscalls.blacklist_compat": "true"}, True),
        ({"security.syscalls.deny_compat": "false"}, False),
    ],
)
def test_foreign_calls(config: dict[str, str], denied: bool):
    assert denies_compat(config) is denied


def test_device_programs_need_both_keys():
    both = {"security.syscalls.intercept.bpf": "true", "security.syscalls.intercept.bpf.devices": "true"}
    assert supervision(both).bpf_devices
    assert interceptions(both) == {"bpf"}
    assert interceptions({"security.syscalls.intercept.bpf.devices": "true"}) == set()


def test_sysctls():
    assert sysctls({"linux.sysctl.net.core.somaxconn": "7", "user.x": "1"}) == {"net.core.somaxconn": "7"}


@pytest.fixture
async def home(tmp_path: Path):
    async with house(tmp_path) as made:
        yield made


async def test_a_policy_is_written_for_the_start_and_goes_with_the_instance(home: House):
    await home.create(config={"security.syscalls.deny": "mkdir errno 1", "linux.sysctl.net.core.somaxconn": "9"})
    await home.act("start")
    spec = home.runtime.specs["c1"]
    path = Path(spec.seccomp_profile)
    assert path == home.daemon.directory / "security" / "seccomp" / "c1"
    text = path.read_text()
    assert "kexec_load errno 38\n" in text
    assert text.endswith("mkdir errno 1\n")
    assert path.stat().st_mode & 0o777 == 0o600
    assert spec.sysctls == {"net.core.somaxconn": "9"}
    await home.act("stop", force=True)
    await home.delete()
    assert not path.exists()


async def test_a_misspelled_call_is_refused(home: House):
    with pytest.raises(InvalidInput, match="mkdirr"):
        await home.create(config={"security.syscalls.deny": "mkdirr errno 1"})


async def test_keys_of_profile_and_instance_must_agree(home: House):
    profile = await _profile(home, {"security.syscalls.allow": "read"})
    with pytest.raises(InvalidInput, match=r"security\.syscalls\.deny"):
        await home.create(config={"security.syscalls.deny": "write"}, profiles=["default", profile])


async def _profile(home: House, config: dict[str, str]) -> str:
    from flexd.api.profile import ProfilesPost

    await home.daemon.profiles.create(PROJECT, ProfilesPost(name="extra", config=config))
    return "extra"


async def test_modules_are_loaded_or_the_start_fails(home: House):
    await home.create(config={"linux.kernel_modules": "overlay"})
    await home.act("start")
    assert home.host.machine.loaded == {"overlay"}
    await home.create("c2", config={"linux.kernel_modules": "overlay,toaster"})
    before = home.host_state()
    with pytest.raises(FlexdError, match="toaster"):
        await home.act("start", "c2")
    assert home.host_state() == before
    assert home.status("c2") == "Stopped"


async def test_an_edit_is_checked_too(home: House):
    await home.create()
    put = InstancePut(config={"raw.idmap": "both 1000 x"}, devices={"root": ROOT}, profiles=["default"])
    with pytest.raises(InvalidInput, match=r"raw\.idmap"):
        await home.daemon.instances.patch(PROJECT, "c1", put)


async def test_protection_against_shifting(home: House):
    await home.create(config={"security.protection.shift": "true"})
    await home.act("start")
    await home.act("stop", force=True)
    put = InstancePut(
        config={"security.protection.shift": "true", "raw.idmap": "both 1000 1000"},
        devices={"root": ROOT},
        profiles=["default"],
    )
    await home.daemon.instances.patch(PROJECT, "c1", put)
    with pytest.raises(FlexdError, match="protected against filesystem shifting"):
        await home.act("start")
    assert home.status() == "Stopped"
    put.config.pop("security.protection.shift")
    await home.daemon.instances.patch(PROJECT, "c1", put)
    await home.act("start")


async def test_a_profile_is_loaded_for_the_run(home: House):
    machine = home.host.machine
    await home.create(config={"raw.apparmor": "deny /etc/shadow r,"})
    await home.act("start")
    name = next(iter(machine.policy_namespaces))
    assert home.runtime.specs["c1"].apparmor_profile == f"{name}//&:{name}:"
    assert f'profile "{name}" ' in machine.profiles["c1"]
    assert "  deny /etc/shadow r," in machine.profiles["c1"].splitlines()
    await home.act("stop", force=True)
    assert (machine.profiles, machine.policy_namespaces) == ({}, set())


async def test_no_profile_is_left_by_a_start_that_failed(home: House):
    await home.create()
    home.runtime.failing["c1"] = "no such init"
    with pytest.raises(FlexdError):
        await home.act("start")
    assert (home.host.machine.profiles, home.host.machine.policy_namespaces) == ({}, set())


async def test_a_privileged_one_has_no_namespace(home: House):
    await home.create(config={"security.privileged": "true"})
    await home.act("start")
    assert home.host.machine.policy_namespaces == set()
    assert "//&" not in home.runtime.specs["c1"].apparmor_profile


async def edit(home: House, **config: str) -> None:
    keys = {key.replace("_", "."): value for key, value in config.items()}
    put = InstancePut(config=keys, devices={"root": ROOT}, profiles=["default"])
    await home.daemon.instances.patch(PROJECT, "c1", put)


async def test_a_profile_is_replaced_live(home: House):
    machine = home.host.machine
    await home.create()
    await edit(home, raw_apparmor="deny /etc/shadow r,")
    assert machine.profiles == {}  # it does not run
    await home.act("start")
    await edit(home, raw_apparmor="deny /etc/passwd w,", security_nesting="true", security_privileged="true")
    lines = machine.profiles["c1"].splitlines()
    assert "  deny /etc/passwd w," in lines
    assert "  deny /etc/shadow r," not in lines
    assert "  pivot_root," in lines
    assert any(line.startswith("  change_profile -> ") for line in lines)  # it runs unprivileged, as it was started
    await edit(home, raw_apparmor="", security_nesting="", security_privileged="")
    assert "deny /etc/passwd w," not in machine.profiles["c1"]


async def test_a_profile_that_does_not_compile_changes_nothing(home: House):
    await home.create(config={"raw.apparmor": "deny /etc/shadow r,"})
    await home.act("start")
    path = home.daemon.directory / "security" / "apparmor" / "c1"
    before = (home.host.machine.profiles["c1"], path.read_text(), home.daemon.instances.show(PROJECT, "c1").config)
    with pytest.raises(BadRequest, match=r'AppArmor profile of instance "c1".*syntax error'):
        await edit(home, raw_apparmor="syntax error", security_devlxd="false")
    after = (home.host.machine.profiles["c1"], path.read_text(), home.daemon.instances.show(PROJECT, "c1").config)
    assert after == before


async def test_the_guest_api_is_taken_and_given_back(home: House):
    await home.create()
    await home.act("start")
    assert home.runtime.specs["c1"].guest_api
    await edit(home, security_devlxd="false")
    assert set(home.runtime.mounts_of("c1")) == set()
    await edit(home, security_devlxd="")
    assert set(home.runtime.mounts_of("c1")) == {"dev/lxd", "dev/incus"}
    await edit(home, security_devlxd="false")
    home.runtime.failing_calls["add_mount"] = "it is busy"
    with pytest.raises(FlexdError, match="it is busy"):
        await edit(home, security_devlxd="true")
    assert set(home.runtime.mounts_of("c1")) == set()
    assert home.daemon.instances.show(PROJECT, "c1").config["security.devlxd"] == "false"


async def test_modules_are_loaded_for_one_that_runs(home: House):
    await home.create()
    await home.act("start")
    put = InstancePut(config={"linux.kernel_modules": "overlay"}, devices={"root": ROOT}, profiles=["default"])
    await home.daemon.instances.patch(PROJECT, "c1", put)
    assert home.host.machine.loaded == {"overlay"}
    put.config["linux.kernel_modules"] = "overlay,toaster"
    with pytest.raises(BadRequest, match="toaster"):
        await home.daemon.instances.patch(PROJECT, "c1", put)
    assert home.daemon.instances.show(PROJECT, "c1").config["linux.kernel_modules"] == "overlay"


async def old_guest(home: House, version: int) -> None:
    """An instance with the init of an old distribution."""
    await home.create()
    record = home.daemon.registry.instance(PROJECT, "c1")
    root = await home.daemon.pools.mount(record.volume, current_idmap(record.config))
    (root / "sbin").mkdir(parents=True, exist_ok=True)
    (root / "lib/systemd").mkdir(parents=True, exist_ok=True)
    (root / "sbin/init").symlink_to("../lib/systemd/systemd")
    (root / "lib/systemd/systemd").write_bytes(b"\x7fELF\0systemd %d\0" % version)


async def test_a_guest_that_knows_no_cgroup_v2(home: House):
    await old_guest(home, 215)
    with pytest.raises(FlexdError, match=r"needs a host with cgroup v1 \(it has systemd 215\)"):
        await home.act("start")
    assert home.status() == "Stopped"
    layout = home.host.cgroups.layout_value
    v1 = {**layout.controllers, "systemd": Path("/sys/fs/cgroup/systemd")}
    home.host.cgroups.layout_value = CgroupLayout("hybrid", v1, layout.unified)
    await home.act("start")
    assert home.status() == "Running"


async def test_a_guest_that_knows_both(home: House):
    await old_guest(home, 232)
    await home.act("start")


async def test_an_image_that_says_that_it_needs_v1(home: House):
    await home.create(config={"image.requirements.cgroup": "v1"})
    with pytest.raises(FlexdError, match="its image says so"):
        await home.act("start")
