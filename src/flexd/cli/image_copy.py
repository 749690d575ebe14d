# SPDX-License-Identifier: Apache-2.0
"""`flexc image copy`: from server to server, the data by whichever way there is."""

from __future__ import annotations

from flexd.cli.command import Command, Option, Positional
from flexd.cli.errors import CliError, UsageError
from flexd.cli.image_alias import point_aliases
from flexd.cli.image_remotes import image_of, protocol_of, pull_source, registry_source, stream_source
from flexd.client.client import path_of, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.client.client import Client


def _copy(context: Context, args: Arguments) -> None:
    remote, name = context.split(args.image)
    new_remote, rest = context.split(args.target)
    if rest or not args.target.endswith(":"):
        raise UsageError(f'"{args.target}" is not a remote: it should end in a colon')
    protocol = protocol_of(context, remote)
    if protocol == "build":
        raise CliError(f"Nothing to copy: images of {remote} are built where they are wanted: flexc image build")
    if protocol in ("simplestreams", "oci") and args.mode != "pull":
        raise UsageError(f"An image server can't push: --mode {args.mode} needs a daemon as the source")
    if protocol == "oci":
        _copy_from_registry(context, args, registry_source(context.config.remote(remote), name), new_remote)
        return
    image = image_of(context, remote, name, "virtual-machine" if args.vm else "")
    job = _Job(context, args, context.client(new_remote), image)
    if protocol == "simplestreams":
        job.pull({**stream_source(context.config.remote(remote), name)})
    elif args.mode == "pull":
        # With its alias the other server can look for newer versions of it.
        alias = {"alias": name} if args.auto_update and image["public"] else {}
        job.pull({**pull_source(context.client(remote), image), **alias})
    elif args.mode == "push":
        job.push(context.client(remote))
    else:
        job.relay(context.client(remote))
    names = [alias["name"] for alias in image["aliases"] or ()] if args.copy_aliases else []
    point_aliases(job.target, [*args.alias, *names], image["fingerprint"])
    context.say("Image copied successfully!")


def _copy_from_registry(context: Context, args: Arguments, source: dict[str, Any], target: str) -> None:
    """Only the server knows what the registry has, and says so afterwards."""
    job = _Job(context, args, context.client(target), {})
    fingerprint = job.pull(source)
    names = [source["alias"]] if args.copy_aliases else []
    point_aliases(job.target, [*args.alias, *names], fingerprint)
    context.say("Image copied successfully!")


class _Job:
    """One image on its way to `target`."""

    def __init__(self, context: Context, args: Arguments, target: Client, image: dict[str, Any]) -> None:
        self.target = target
        self._context, self._args, self._image = context, args, image
        self._query = {"project": args.target_project} if args.target_project else None

    def pull(self, source: dict[str, Any]) -> str:
        """The target fetches it; returns what it then calls it."""
        body = {"source": source, "public": self._args.public, "auto_update": self._args.auto_update}
        operation = self._perform(self.target, "/1.0/images", body, self._query)
        return str(((operation or {}).get("metadata") or {}).get("fingerprint", ""))

    def push(self, server: Client) -> None:
        """The source sends it: for a target that can't reach the source."""
        environment = self.target.server()["environment"]
        if not environment.get("addresses"):
            raise CliError("The target is not on the network, so nothing can be pushed there; use --mode relay")
        source = {"type": "image", "mode": "push", "fingerprint": self._image["fingerprint"]}
        body = {"source": source, **self._settings()}
        token = self.target.request("POST", "/1.0/images", body, query=self._query).metadata
        export = {
            "target": f"https://{environment['addresses'][0]}",
            "certificate": environment["certificate"],
            "secret": token["metadata"]["secret"],
            "project": self._args.target_project or self.target.project,
        }
        self._perform(server, path_of("images", self._image["fingerprint"], "export"), export, None)

    def relay(self, server: Client) -> None:
        """Through this machine: for servers that can't reach each other."""
        answer = server.open("GET", path_of("images", self._image["fingerprint"], "export"))
        settings = self._settings()
        headers = {
            "Content-Type": answer.headers.get("content-type", "application/octet-stream"),
            "X-LXD-fingerprint": self._image["fingerprint"],
            "X-LXD-filename": self._image["filename"],
            "X-LXD-public": "true" if settings["public"] else "false",
            "X-LXD-properties": "&".join(f"{quote(k)}={quote(v)}" for k, v in settings["properties"].items()),
        }
        if answer.length is not None:
            headers["Content-Length"] = str(answer.length)
        reader = _Reader(answer.chunks())
        # `read` is all that the client uses of the stream.
        reply = self.target.request("POST", "/1.0/images", reader, headers=headers, query=self._query)  # type: ignore[arg-type]
        self._context.wait(self.target, reply.operation, "Copying the image")

    def _settings(self) -> dict[str, Any]:
        return {
            "public": self._args.public,
            "auto_update": self._args.auto_update,
            "properties": self._image["properties"] or {},
            "filename": self._image["filename"],
        }

    def _perform(self, client: Client, path: str, body: dict[str, Any], query: dict[str, str] | None) -> Any:
        return self._context.perform(client, "POST", path, body, label="Copying the image", query=query)


class _Reader:
    """Pieces that arrive, as something to read from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks

    def read(self, limit: int) -> bytes:  # noqa: ARG002 - a piece is as long as it is
        return next(self._chunks, b"")


COPY = Command(
    "copy",
    "Copy an image to another server",
    _copy,
    "[<remote>:]<image> <remote>:",
    [Positional("image", completes="image"), Positional("target", completes="remote")],
    [
        Option("--alias", action="append", default=[], help="Name to give to the image"),
        Option("--auto-update", action="store_true", help="Keep the copy up to date"),
        Option("--copy-aliases", action="store_true", help="Take the names along"),
        Option(
            "--mode",
            default="pull",
            choices=("pull", "push", "relay"),
            help="Who carries it: the target (pull, default), the source (push), or this machine (relay)",
        ),
        Option("--public", action="store_true", help="Let everybody fetch it, without being trusted"),
        Option("--target-project", default="", help="Into another project"),
        Option("--vm", action="store_true", help="An image of a virtual machine"),
    ],
    examples=[
        ("flexc image copy images:debian/12 local: --copy-aliases --auto-update", "From an image server"),
        ("flexc image copy docker:nginx:latest local: --alias nginx", "From an OCI registry"),
    ],
    aliases=["cp"],
)
