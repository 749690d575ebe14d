# SPDX-License-Identifier: Apache-2.0
"""Images wherever they are: on a daemon, on a simplestreams server, or not built yet."""

from __future__ import annotations

from flexd.cli.errors import CliError
from flexd.client.client import path_of
from flexd.client.errors import NotFoundError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from flexd.cli.context import Context
    from flexd.client.client import Client

_HEX = frozenset("0123456789abcdef")
# Shorter names of hexadecimal digits are aliases: "decade", "12".
_FINGERPRINT_LENGTH = 12


def protocol_of(context: Context, remote: str) -> str:
    """`lxd`, `simplestreams`, `oci` (a registry), or `build`: made from packages when it is wanted."""
    return str(context.config.remote(remote).get("protocol") or "lxd")


def find_image(client: Client, name: str, kind: str = "") -> str:
    """The fingerprint that an alias or the beginning of a fingerprint stands for."""
    try:
        query = {"type": kind} if kind else None
        return str(client.get(path_of("images", "aliases", name), query)["target"])
    except NotFoundError:
        pass
    try:
        return str(client.get(path_of("images", name))["fingerprint"])
    except NotFoundError as error:
        raise CliError(
            f'Image "{name}" not found. See what there is with: flexc image list; '
            f"make one with: flexc image build {name if '/' in name else 'debian/12'}"
        ) from error


def images_of(context: Context, remote: str, *, all_projects: bool = False) -> list[dict[str, Any]]:
    """All images of a remote, as the API shows them: of one project, or of all."""
    protocol = protocol_of(context, remote)
    if protocol == "build":
        raise CliError(
            f"The remote {remote} has no list: its images are built from packages when they are wanted. "
            f"Try: flexc launch {remote}:12; what can be built: flexc image build --help"
        )
    if protocol == "oci":
        raise CliError(
            f"The remote {remote} has no list: registries only find images by their names. "
            f"Try: flexc launch {remote}:nginx; to look at one: flexc image copy {remote}:nginx local:"
        )
    if protocol == "simplestreams":
        from flexd.cli.streams import list_images

        return list_images(str(context.config.remote(remote)["addr"]))
    query = {"recursion": "1", **({"all-projects": "true"} if all_projects else {})}
    images: list[dict[str, Any]] = context.client(remote).get("/1.0/images", query)
    return images


def image_of(context: Context, remote: str, name: str, kind: str = "") -> dict[str, Any]:
    """One image of a remote, by alias or fingerprint."""
    if protocol_of(context, remote) == "oci":
        images_of(context, remote)
    if protocol_of(context, remote) == "simplestreams":
        from flexd.cli.streams import find_in

        return find_in(images_of(context, remote), name, str(context.config.remote(remote)["addr"]))
    client = context.client(remote)
    image: dict[str, Any] = client.get(path_of("images", find_image(client, name, kind)))
    return image


def launch_source(context: Context, client: Client, image: str, kind: str) -> dict[str, Any]:
    """Where `client` is to take an instance's image from: `[remote:]name`."""
    remote, name = context.split(image)
    protocol = protocol_of(context, remote)
    if protocol == "simplestreams":
        return stream_source(context.config.remote(remote), name)
    if protocol == "oci":
        return registry_source(context.config.remote(remote), name)
    if protocol == "build":
        return {"type": "image", "fingerprint": _built(context, client, context.config.remote(remote), name)}
    server = context.client(remote)
    if server is client:
        return {"type": "image", "fingerprint": find_image(client, name, kind)}
    return pull_source(server, image_of(context, remote, name, kind))


def stream_source(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An image of a simplestreams server, which the daemon asks itself."""
    source = {"type": "image", "mode": "pull", "server": str(settings["addr"]), "protocol": "simplestreams"}
    is_fingerprint = len(name) >= _FINGERPRINT_LENGTH and _HEX.issuperset(name)
    return {**source, "fingerprint" if is_fingerprint else "alias": name}


def registry_source(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An image of an OCI registry, which the daemon asks itself."""
    if not name:
        raise CliError("An OCI image needs a name, as docker:nginx or docker:nginx:1.27")
    return {"type": "image", "mode": "pull", "server": str(settings["addr"]), "protocol": "oci", "alias": name}


def _built(context: Context, client: Client, settings: Mapping[str, Any], name: str) -> str:
    """`debian:12` is the image debian/12 of the server, built there if it is missing."""
    full_name = f"{str(settings['addr']).removeprefix('build:')}/{name}"
    try:
        return str(client.get(path_of("images", "aliases", full_name))["target"])
    except NotFoundError:
        pass
    context.say(f"Building {full_name}: it is not there yet")
    body = {"source": {"type": "build", "name": full_name}}
    operation = context.perform(client, "POST", "/1.0/images", body, label=f"Building {full_name}")
    return str(operation["metadata"]["fingerprint"])


def pull_source(server: Client, image: Mapping[str, Any]) -> dict[str, Any]:
    """What another server needs to fetch an image from this one."""
    environment = server.server()["environment"]
    addresses = environment.get("addresses") or []
    if not addresses:
        raise CliError(
            "The source server is not on the network, so the other one can't fetch from it. Let it listen: "
            "flexc config set core.https_address=:8443, or use: flexc image copy --mode relay"
        )
    source = {
        "type": "image",
        "mode": "pull",
        "protocol": "lxd",
        "server": f"https://{addresses[0]}",
        "certificate": environment["certificate"],
        "fingerprint": image["fingerprint"],
        "project": server.project or "default",
    }
    if not image["public"]:
        reply = server.request("POST", path_of("images", image["fingerprint"], "secret"))
        source["secret"] = reply.metadata["metadata"]["secret"]
    return source
