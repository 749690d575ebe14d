# SPDX-License-Identifier: Apache-2.0
"""What every command gets: the servers behind `remote:name`, operations with progress, and the person's flags."""

from __future__ import annotations

import sys

from flexd.cli.config import Config, load_config, local_socket
from flexd.cli.errors import CliError
from flexd.client.client import Client, path_of
from flexd.client.endpoint import UnixEndpoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, BinaryIO

    from flexd.cli.command import Arguments
    from flexd.client.endpoint import Endpoint


class Context:
    """Made once per run from the global options."""

    def __init__(self, options: Arguments) -> None:
        self.project: str = options.project
        self.quiet: bool = options.quiet
        self.verbose: bool = options.verbose or options.debug
        self._debug: bool = options.debug
        self._force_local: bool = options.force_local
        self._config: Config | None = None
        self._clients: dict[str, Client] = {}

    def close(self) -> None:
        """Let go of every connection."""
        for client in self._clients.values():
            client.close()

    def another(self, project: str) -> Context:
        """The same in a project, with connections of its own and nothing to say: for another thread."""
        made = object.__new__(Context)
        made.__dict__.update(self.__dict__, project=project, quiet=True, _config=self.config, _clients={})
        return made

    @property
    def config(self) -> Config:
        if self._config is None:
            self._config = load_config()
        return self._config

    @property
    def default_remote(self) -> str:
        return "local" if self._force_local else self.config.default_remote

    def split(self, text: str) -> tuple[str, str]:
        """`remote:name` as remote and name; without a remote, the default one."""
        remote, colon, name = text.partition(":")
        if not colon or "/" in remote:
            return self.default_remote, text
        self.config.remote(remote)
        return remote, name

    def resolve(self, text: str) -> tuple[Client, str]:
        """The server and the name that `remote:name` means."""
        remote, name = self.split(text)
        return self.client(remote), name

    def client(self, remote: str = "") -> Client:
        """The client of a remote ("" is the default one); one for the whole run."""
        name = remote or self.default_remote
        if name not in self._clients:
            settings = self.config.remote(name)
            project = self.project or settings.get("project") or ""
            self._clients[name] = Client(self._endpoint(name, settings), project, _trace if self._debug else None)
        return self._clients[name]

    def _endpoint(self, name: str, settings: Mapping[str, Any]) -> Endpoint:
        address = str(settings.get("addr") or "")
        if address.startswith("unix:"):
            return UnixEndpoint(address.removeprefix("unix:").removeprefix("//") or local_socket())
        from flexd.cli.remotes import https_endpoint

        return https_endpoint(name, address, settings)

    def perform(
        self,
        client: Client,
        method: str,
        path: str,
        body: Mapping[str, Any] | list[Any] | bytes | BinaryIO | None = None,
        *,
        label: str = "",
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        etag: str = "",
        on_sent: Callable[[int], None] | None = None,
    ) -> Any:
        """Ask, wait for the operation's end, and show its progress if a person watches. Ctrl-C cancels it."""
        reply = client.request(method, path, body, query=query, headers=headers, etag=etag, on_sent=on_sent)
        if not reply.operation:
            return reply.metadata
        return self.wait(client, reply.operation, label)

    def wait(self, client: Client, operation: str, label: str = "") -> dict[str, Any]:
        """Wait for an operation as `perform` does."""
        try:
            if self.quiet or not label or not sys.stderr.isatty():
                return client.wait(operation)
            from flexd.cli.progress import OperationProgress

            with OperationProgress(label) as progress:
                return client.wait(operation, progress.show)
        except KeyboardInterrupt:
            self._cancel(client, operation)
            raise

    def _cancel(self, client: Client, operation: str) -> None:
        """What was interrupted is asked to stop too; most work can't be and then goes on in the daemon."""
        from flexd.client.errors import ClientError

        identifier = operation.partition("?")[0].rpartition("/")[2]
        client.close()
        try:
            client.cancel(path_of("operations", identifier))
            print(f"\nCancelled operation {identifier}", file=sys.stderr)
        except ClientError as error:
            print(f"\nThe operation goes on: {error}. See: flexc operation show {identifier}", file=sys.stderr)

    def say(self, text: str) -> None:
        """Tell the person what is being done, unless they asked for silence."""
        if not self.quiet:
            print(text, flush=True)


def only_remote(context: Context, text: str) -> Client:
    """The server of an argument that must be `remote:` or empty."""
    client, name = context.resolve(text)
    if name:
        raise CliError(f'"{text}" is not a remote: it should end in a colon, as "{text}:"')
    return client


def _trace(text: str) -> None:
    print(f"DEBUG {text}", file=sys.stderr)
