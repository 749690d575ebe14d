# SPDX-License-Identifier: Apache-2.0
"""One instance from one server to another. What its way needs is written into its configuration first, so that whoever
goes on after an interrupt, or a crash of anything, finds it there."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from flexd.cli.command import parse
from flexd.cli.errors import CliError
from flexd.cli.evacuation_plan import (
    LIVE,
    MIGRATE,
    ORIGIN,
    POWER,
    RUNNING,
    STOP,
    Job,
    is_left_behind,
    is_running,
    setting,
    shall_run,
)
from flexd.client.client import path_of
from flexd.client.errors import ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from flexd.cli.context import Context
    from flexd.cli.evacuation_servers import Server
    from flexd.client.client import Client

START = "start"
# What an instance is given to shut down, unless boot.host_shutdown_timeout says otherwise; LXD's default.
_SHUTDOWN_TIMEOUT_S = 30


@dataclass
class Row:
    """What became of one instance. `target`: the server it is on now, if it went; `note`: why not better."""

    instance: str
    action: str
    target: str = ""
    seconds: float = 0.0
    note: str = ""
    error: str = ""


class Transport:
    """Each call has connections of its own, so any thread may make it."""

    def __init__(self, context: Context, mode: str) -> None:
        """`mode`: who carries the bytes, as with `flexc move --mode`."""
        self._context, self._mode = context, mode

    def stop_for_good(self, job: Job, here: Server) -> Row:
        """It stays, and `restore` will start it if it ran."""
        with self._at(here, job) as (_, client):
            if is_running(job.instance):
                self._mark(client, job)
                _stop(client, job)
        return Row(job.label, STOP, note=job.reason)

    def move(self, job: Job, here: Server, there: Server) -> Row:
        """Live or cold. If it fails, the instance goes on where it was."""
        row = Row(job.label, job.action, there.remote, note=job.reason)
        if is_left_behind(job, there.room):
            with self._at(there, job) as (_, client):
                client.perform("DELETE", path_of("instances", job.name))
        with self._at(here, job) as (context, client):
            self._mark(client, job)
            if job.action == LIVE:
                row.note = self._move_live(context, client, job, here, there)
                row.action = MIGRATE if row.note else LIVE
            if row.action == MIGRATE:
                self._move_cold(context, client, job, here, there)
        self.arrive(job, there)
        return row

    def arrive(self, job: Job, there: Server) -> Row:
        """Start it if it is to run, and forget what only its way needed; at home, that it was away, too."""
        with self._at(there, job) as (_, client):
            found = client.get(path_of("instances", job.name))
            if shall_run(job.instance) and not is_running(found):
                _start(client, job)
            origin = "" if job.origin == there.identity else job.origin
            _write(client, job, {ORIGIN: origin, POWER: ""})
        return Row(job.label, START, there.remote)

    def finish(self, job: Job, here: Server, there: Server) -> Row:
        """A live move that was interrupted after the hand-over: it runs there, and only a shell of it is here."""
        with self._at(here, job) as (_, client):
            client.perform("DELETE", path_of("instances", job.name))
        self.arrive(job, there)
        return Row(job.label, LIVE, there.remote)

    def _move_live(self, context: Context, client: Client, job: Job, here: Server, there: Server) -> str:
        """Why it could not go live, if it runs on and may be moved cold instead; empty if it went."""
        try:
            self._relocate(context, job, here, there)
        except (ClientError, CliError) as error:
            if not is_running(client.get(path_of("instances", job.name))):
                raise
            if not job.falls_back:
                self._unmark(client, job)
                raise
            return f"not live: {error}"
        return ""

    def _move_cold(self, context: Context, client: Client, job: Job, here: Server, there: Server) -> None:
        try:
            if is_running(job.instance):
                _stop(client, job)
            self._relocate(context, job, here, there)
        except (ClientError, CliError):
            if is_running(job.instance) and not is_running(client.get(path_of("instances", job.name))):
                _start(client, job)
            self._unmark(client, job)
            raise

    def _relocate(self, context: Context, job: Job, here: Server, there: Server) -> None:
        """As `flexc move` does it: what runs goes live."""
        from flexd.cli.commands.move import COMMAND

        words = [f"{here.remote}:{job.name}", f"{there.remote}:", "--mode", self._mode]
        COMMAND.run(context, parse(COMMAND, words))

    def _mark(self, client: Client, job: Job) -> None:
        _write(client, job, {ORIGIN: job.origin} | ({POWER: RUNNING} if shall_run(job.instance) else {}))

    def _unmark(self, client: Client, job: Job) -> None:
        _write(client, job, {ORIGIN: setting(job.instance, ORIGIN), POWER: ""})

    @contextlib.contextmanager
    def _at(self, server: Server, job: Job) -> Iterator[tuple[Context, Client]]:
        context = self._context.another(job.project)
        try:
            yield context, context.client(server.remote)
        finally:
            context.close()


def _write(client: Client, job: Job, config: dict[str, str]) -> None:
    client.perform("PATCH", path_of("instances", job.name), {"config": config})


def _stop(client: Client, job: Job) -> None:
    """Cleanly, and if it does not end in time, not."""
    if job.instance.get("ephemeral"):
        raise CliError("it is ephemeral: stopping it would delete it")
    timeout = int(setting(job.instance, "boot.host_shutdown_timeout", str(_SHUTDOWN_TIMEOUT_S)))
    path = path_of("instances", job.name, "state")
    try:
        client.perform("PUT", path, {"action": "stop", "timeout": timeout, "force": False})
    except ClientError:
        client.perform("PUT", path, {"action": "stop", "timeout": timeout, "force": True})


def _start(client: Client, job: Job) -> None:
    client.perform("PUT", path_of("instances", job.name, "state"), {"action": "start", "timeout": -1})
