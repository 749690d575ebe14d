# SPDX-License-Identifier: Apache-2.0
"""Emptying a server and filling it again: what `flexc evacuate` and `flexc restore REMOTE:` do.

All that a later run has to know is in the instances' own configuration, so whoever interrupts it, or kills it, can
simply say it again.
"""

from __future__ import annotations

import os
import sys
import time

from flexd.cli.errors import CliError
from flexd.cli.evacuation_plan import (
    HANDED_OVER,
    LIVE,
    MIGRATE,
    ORIGIN,
    POWER,
    STOP,
    Job,
    choose,
    in_start_order,
    in_stop_order,
    is_running,
    plan,
    setting,
    unfit,
)
from flexd.cli.evacuation_servers import Server, key_of
from flexd.cli.evacuation_transport import START, Row, Transport
from flexd.client.errors import ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from flexd.cli.evacuation_plan import Instance

    Task = Callable[[], Row]

# As a shell reports a command that was ended by SIGINT.
_INTERRUPTED = 130


class Crew:
    """Does tasks with several threads and reports each. After an interrupt it begins no more."""

    def __init__(self, parallel: int, report: Callable[[Row], None]) -> None:
        self._parallel = parallel
        self._report = report
        self.rows: list[Row] = []
        self.interrupted = False

    def work(self, groups: Sequence[Sequence[Task]]) -> None:
        """One group after the other; within a group in this order, as many at once as may be."""
        for group in groups:
            self._work(list(group))

    def _work(self, waiting: list[Task]) -> None:
        from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

        under_way: set[Future[Row]] = set()
        with ThreadPoolExecutor(self._parallel) as pool:
            while under_way or (waiting and not self.interrupted):
                try:
                    while waiting and not self.interrupted and len(under_way) < self._parallel:
                        under_way.add(pool.submit(waiting.pop(0)))
                    done, _ = wait(under_way, return_when=FIRST_COMPLETED)
                    under_way -= done
                    for future in done:
                        self.rows.append(future.result())
                        self._report(self.rows[-1])
                except KeyboardInterrupt:
                    self._interrupt(len(under_way))

    def _interrupt(self, under_way: int) -> None:
        if self.interrupted:
            # Past the threads, which would be waited for; what they asked for goes on in the servers.
            sys.stdout.flush()
            os._exit(_INTERRUPTED)
        self.interrupted = True
        print(f"\nWaiting for {under_way} under way; interrupt again to leave them", file=sys.stderr)


def _task(job: Job, target: str, act: Task) -> Task:
    """Never raises: that it went wrong with one instance is a row, too."""

    def task() -> Row:
        began = time.monotonic()
        try:
            row = act()
        except (ClientError, CliError, OSError) as error:
            row = Row(job.label, job.action, target, error=str(error))
        row.seconds = time.monotonic() - began
        return row

    return task


def evacuate(transport: Transport, here: Server, others: Sequence[Server], forced: str, crew: Crew) -> None:
    """Every instance leaves, or is stopped, as its policy (or `forced`) has it."""
    servers = {server.remote: server for server in others}
    rooms = [server.room for server in others]

    def task(job: Job) -> Task:
        if job.action == STOP:
            return _task(job, "", lambda: transport.stop_for_good(job, here))
        room, fault = choose(job, rooms)
        if room is None:
            return _failure(job, fault)
        there = servers[room.remote]
        return _task(job, there.remote, lambda: transport.move(job, here, there))

    planned = [
        plan(each, forced=forced, identity=here.identity, criu_problem=here.room.criu_problem)
        for each in here.instances
        if not setting(each, HANDED_OVER)
    ]
    leaving = [job for job in planned if job.action != STOP or is_running(job.instance)]
    groups = [[task(job) for job in group] for group in in_stop_order(leaving)]
    crew.work([[*_shells(transport, here, others), *_half_done(transport, here, others)], *groups])


def _shells(transport: Transport, here: Server, others: Sequence[Server]) -> Iterator[Task]:
    """What live moves left here that were interrupted after the hand-over."""
    for instance in here.instances:
        if not setting(instance, HANDED_OVER):
            continue
        job = Job(instance, LIVE, setting(instance, ORIGIN))
        there = next((server for server in others if _has_taken(server, instance)), None)
        if there is None:
            yield _failure(job, "it was handed over to a server that is none of these")
        else:
            yield _finish(transport, job, here, there)


def _has_taken(server: Server, shell: Instance) -> bool:
    """It is the same, not only of the same name: the mark went along, and stays until the move is finished."""
    known = (each for each in server.instances if key_of(each) == key_of(shell))
    return any(setting(each, ORIGIN) == setting(shell, ORIGIN) != "" for each in known)


def _finish(transport: Transport, job: Job, here: Server, there: Server) -> Task:
    return _task(job, there.remote, lambda: transport.finish(job, here, there))


def _failure(job: Job, fault: str) -> Task:
    return lambda: Row(job.label, job.action, error=fault)


def _half_done(transport: Transport, here: Server, others: Sequence[Server]) -> Iterator[Task]:
    """What an earlier run had moved, and not got to run any more."""
    for server in others:
        for instance in server.instances:
            origin = setting(instance, ORIGIN)
            on_its_way = setting(instance, POWER) and origin not in ("", server.identity)
            if on_its_way and key_of(instance) not in here.room.instances:
                yield _arrival(transport, Job(instance, START, origin), server)


def _arrival(transport: Transport, job: Job, server: Server) -> Task:
    return _task(job, server.remote, lambda: transport.arrive(job, server))


def bring_home(transport: Transport, home: Server, others: Sequence[Server], crew: Crew) -> None:
    """All that was evacuated from this server comes back, and what was stopped is started."""
    places: dict[tuple[str, str], tuple[Job, Server]] = {}
    gone = {key_of(instance) for instance in home.instances if setting(instance, HANDED_OVER)}
    for instance in home.instances:
        if (setting(instance, ORIGIN) == home.identity or setting(instance, POWER)) and key_of(instance) not in gone:
            places[key_of(instance)] = Job(instance, START, setting(instance, ORIGIN)), home
    for server in others:
        for instance in server.instances:
            if setting(instance, ORIGIN) == home.identity and not setting(instance, HANDED_OVER):
                job = plan(instance, forced="", identity=home.identity, criu_problem=server.room.criu_problem)
                if job.action == STOP:  # it has come to where it is, so it can go back
                    job.action = MIGRATE
                places[key_of(instance)] = job, server

    def task(job: Job) -> Task:
        server = places[(job.project, job.name)][1]
        if server is home:
            return _arrival(transport, job, home)
        fault = unfit(job, home.room)
        if fault:
            return _failure(job, f"{home.remote} {fault}")
        home.room.take(job)
        return _task(job, home.remote, lambda: transport.move(job, server, home))

    shells = [task for server in others for task in _shells(transport, server, [home])]
    groups = [[task(job) for job in group] for group in in_start_order(job for job, _ in places.values())]
    crew.work([shells, *groups])


def print_rows(rows: Sequence[Row], form: str) -> None:
    """The report."""
    from flexd.cli.table import print_list

    header = ["instance", "action", "target", "time", "error"]
    table = [[row.instance, row.action, row.target, f"{row.seconds:.1f}s", row.error or row.note] for row in rows]
    print_list(form, header, table, [vars(row) for row in rows])
