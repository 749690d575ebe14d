# SPDX-License-Identifier: Apache-2.0
"""What an OCI image says of the program that it is for: config.json beside metadata.yaml, as Incus keeps it.

A subset of the OCI runtime configuration (runtime-spec, config.md), as umoci(1) derives it from an image's. Pure.
"""

import shlex
from collections.abc import Mapping

import msgspec
from msgspec import Struct, field

from flexd.images.contract import BadImage
from flexd.runtime.init_signals import signal_number

# image-spec, conversion.md: where STOPSIGNAL goes.
_STOP_SIGNAL = "org.opencontainers.image.stopSignal"
_IDS = 1 << 32


class _User(Struct, rename="camel"):
    uid: int = 0
    gid: int = 0
    additional_gids: list[int] | None = None


class _Process(Struct):
    args: list[str] | None = None
    cwd: str = "/"
    env: list[str] | None = None
    user: _User = field(default_factory=_User)


class _Document(Struct):
    process: _Process
    annotations: dict[str, str] | None = None


class Application(Struct):
    """Ids are the image's. `stop_signal` as signal(7) writes it, "" for SIGTERM."""

    command: list[str]
    cwd: str = "/"
    uid: int = 0
    gid: int = 0
    groups: list[int] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    stop_signal: str = ""


def parse_application(text: bytes, name: str) -> Application:
    where = f"config.json of image {name}"
    try:
        document = msgspec.json.decode(text, type=_Document)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadImage(f"Invalid {where}: {error}") from error
    process = document.process
    user = process.user
    groups = list(dict.fromkeys(user.additional_gids or []))
    if any(not 0 <= number < _IDS for number in (user.uid, user.gid, *groups)):
        raise BadImage(f"Invalid {where}: a user or group id is none: {user.uid}, {user.gid}, {groups}")
    if not process.cwd.startswith("/"):
        raise BadImage(f'Invalid {where}: the working directory "{process.cwd}" is not absolute')
    return Application(
        command=process.args or [],
        cwd=process.cwd,
        uid=user.uid,
        gid=user.gid,
        groups=groups,
        environment=_environment(process.env or [], where),
        stop_signal=_signal((document.annotations or {}).get(_STOP_SIGNAL, ""), where),
    )


def _environment(variables: list[str], where: str) -> dict[str, str]:
    found = {}
    for variable in variables:
        name, equals, value = variable.partition("=")
        if not name or not equals or any(character in variable for character in "\n\r\0"):
            raise BadImage(f"Invalid {where}: {variable!r} is no variable of an environment, or of several lines")
        found[name] = value
    return found


def _signal(text: str, where: str) -> str:
    if not text:
        return ""
    name = text if text.isdigit() or text.startswith("SIG") else f"SIG{text}"
    try:
        signal_number(name)
    except ValueError as error:
        raise BadImage(f"Invalid {where}: stop signal: {error}") from error
    return name


# --- as configuration of an instance -----------------------------------------------------------------------------

IS_APPLICATION = "volatile.container.oci"
STOP_SIGNAL = "volatile.container.stop_signal"
GROUPS = "volatile.container.groups"


def application_config(application: Application) -> dict[str, str]:
    """The keys of an instance that runs it (extensions: instance_oci, instance_oci_entrypoint)."""
    config = {
        IS_APPLICATION: "true",
        "oci.entrypoint": shlex.join(application.command),
        "oci.cwd": application.cwd,
        "oci.uid": str(application.uid),
        "oci.gid": str(application.gid),
        **{f"environment.{name}": value for name, value in application.environment.items()},
    }
    if application.stop_signal:
        config[STOP_SIGNAL] = application.stop_signal
    if application.groups:
        config[GROUPS] = ",".join(map(str, application.groups))
    return config


def application_of(config: Mapping[str, str]) -> Application:
    """The other way round, from an instance's expanded configuration."""
    prefix = "environment."
    return Application(
        command=shlex.split(config.get("oci.entrypoint", "")),
        cwd=config.get("oci.cwd") or "/",
        uid=int(config.get("oci.uid") or 0),
        gid=int(config.get("oci.gid") or 0),
        groups=[int(each) for each in config.get(GROUPS, "").split(",") if each],
        environment={key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)},
        stop_signal=config.get(STOP_SIGNAL, ""),
    )


def render_application(application: Application) -> bytes:
    """config.json."""
    user = {"uid": application.uid, "gid": application.gid, "additionalGids": application.groups}
    process = {
        "user": user,
        "args": application.command,
        "env": [f"{name}={value}" for name, value in sorted(application.environment.items())],
        "cwd": application.cwd,
    }
    annotations = {_STOP_SIGNAL: application.stop_signal} if application.stop_signal else {}
    document = {"ociVersion": "1.0.2", "process": process, "annotations": annotations}
    return msgspec.json.format(msgspec.json.encode(document), indent=2)
