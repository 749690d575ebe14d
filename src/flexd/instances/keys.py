# SPDX-License-Identifier: Apache-2.0
"""Configuration keys of instances and profiles (LXD's names); validation and documentation derive from these rows."""

import ipaddress
import re
import shlex
from collections.abc import Mapping

from flexd.api.errors import Fault
from flexd.api.keys import Key, check_config
from flexd.instances.fitness import KEYS as FITNESS_KEYS
from flexd.instances.limits import KEYS as LIMIT_KEYS
from flexd.instances.security import KEYS as SECURITY_KEYS
from flexd.instances.security import security_faults
from flexd.operations.schedule import expiry_fault, pattern_fault, schedule_fault

_DOMAIN = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")


def _seconds_fault(value: str) -> str | None:
    return None if value.isdecimal() else f'invalid value "{value}" (expected seconds, a whole number)'


def _environment_fault(value: str) -> str | None:
    return "must not contain a line break" if "\n" in value or "\0" in value else None


def _id_fault(value: str) -> str | None:
    fits = value.isascii() and value.isdecimal() and int(value) < 1 << 32
    return None if fits else f'invalid value "{value}" (expected a user or group id, a number)'


def _command_fault(value: str) -> str | None:
    try:
        words = shlex.split(value)
    except ValueError as error:
        return f'invalid value "{value}" ({error}; quoted as for a shell)'
    return None if words and "\0" not in value else "is empty: there is nothing to run"


def _directory_fault(value: str) -> str | None:
    fits = value.startswith("/") and not any(character in value for character in "\n\r\0")
    return None if fits else f'invalid value "{value}" (expected an absolute path)'


def _addresses_fault(value: str) -> str | None:
    try:
        for each in value.split(","):
            ipaddress.ip_address(each.strip())
    except ValueError as error:
        return f'invalid value "{value}" ({error})'
    return None


def _domains_fault(value: str) -> str | None:
    names = [each.strip() for each in value.split(",")]
    fits = all(_DOMAIN.fullmatch(name) for name in names)
    return None if fits else f'invalid value "{value}" (expected names of domains)'


KEYS = (
    Key("boot.autorestart", kind="bool", default="false", description="Start again after an end that nobody asked for"),
    Key("boot.autostart", kind="bool", description="Start with the daemon; unset: as it was when the host went down"),
    Key("boot.autostart.delay", default="0", check=_seconds_fault, description="Seconds until the next starts"),
    Key("boot.autostart.priority", kind="integer", default="0", description="Higher starts first"),
    Key("boot.host_shutdown_timeout", default="30", check=_seconds_fault, description="Seconds for a clean stop"),
    Key("boot.stop.priority", kind="integer", default="0", description="Higher stops first"),
    Key("cloud-init.network-config", kind="blob", live=False, description="Network configuration for cloud-init"),
    Key("cloud-init.user-data", kind="blob", live=False, description="What cloud-init does at the first boot"),
    Key("cloud-init.vendor-data", kind="blob", live=False, description="As user-data, from whoever offers the image"),
    Key(
        "cluster.evacuate",
        default="auto",
        choices=("auto", "live-migrate", "migrate", "stop"),
        description="What becomes of it when its server is evacuated",
    ),
    Key("environment.*", check=_environment_fault, description="Environment of init and of exec"),
    Key("image.*", description="Properties of the image that it was made from"),
    *LIMIT_KEYS,
    *FITNESS_KEYS,
    Key("oci.cwd", live=False, check=_directory_fault, description="Working directory of an OCI image's program"),
    Key("oci.dns.domain", live=False, check=_domains_fault, description="Domain in an OCI container's resolv.conf"),
    Key("oci.dns.nameservers", live=False, check=_addresses_fault, description="Name servers, not its networks'"),
    Key("oci.dns.search", live=False, check=_domains_fault, description="Domains to search, not its networks'"),
    Key("oci.entrypoint", live=False, check=_command_fault, description="An OCI image's program, quoted as in a shell"),
    Key("oci.gid", live=False, check=_id_fault, description="Group of an OCI image's program"),
    Key("oci.uid", live=False, check=_id_fault, description="User of an OCI image's program"),
    *SECURITY_KEYS,
    Key("snapshots.expiry", check=expiry_fault, description="How long snapshots live (`1d 2H`)"),
    Key("snapshots.pattern", default="snap%d", check=pattern_fault, description="Names of snapshots"),
    Key("snapshots.schedule", check=schedule_fault, description="Cron expression, or @hourly, @daily, @startup …"),
    Key("snapshots.schedule.stopped", kind="bool", default="false", description="Also while it does not run"),
    Key("user.*", description="Free for users"),
)

# What only the daemon writes; kept, shown and accepted back, as clients return whole configurations.
VOLATILE_KEYS = (
    Key("volatile.apply_template"),
    Key("volatile.base_image"),
    Key("volatile.cloud-init.instance-id"),
    Key("volatile.evacuate.origin"),
    Key("volatile.evacuate.power"),
    Key("volatile.container.groups"),
    Key("volatile.container.oci"),
    Key("volatile.container.stop_signal"),
    Key("volatile.idmap.base"),
    Key("volatile.idmap.current"),
    Key("volatile.idmap.next"),
    Key("volatile.last_state.exit_status"),
    Key("volatile.last_state.idmap"),
    Key("volatile.last_state.power"),
    Key("volatile.last_state.ready"),
    Key("volatile.migration.handed_over"),
    Key("volatile.migration.in_doubt"),
    Key("volatile.migration.stateful"),
    Key("volatile.uuid"),
    Key("volatile.*"),
)


def config_faults(config: Mapping[str, str], *, profile: bool = False) -> list[Fault]:
    """Every fault of an instance's (or a profile's) configuration."""
    if profile:
        found = [
            Fault(f"config.{key}", "cannot be set in a profile")
            for key in config
            if key.startswith(("volatile.", "image."))
        ]
        rest = {key: value for key, value in config.items() if not key.startswith(("volatile.", "image."))}
        return found + check_config(rest, KEYS) + security_faults(rest)
    return check_config(config, KEYS + VOLATILE_KEYS) + security_faults(config)
