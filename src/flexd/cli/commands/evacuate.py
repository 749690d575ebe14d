# SPDX-License-Identifier: Apache-2.0
"""`flexc evacuate`."""

from __future__ import annotations

from flexd.cli.command import FORMAT, Command, Option, Positional
from flexd.cli.copying import MODE
from flexd.cli.errors import CliError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.cli.evacuation_transport import Row

PARALLEL = Option("--parallel", type=int, default=4, help="How many instances move at once (default 4)")


def _run(context: Context, args: Arguments) -> int:
    from flexd.cli.evacuation import Crew, evacuate
    from flexd.cli.evacuation_servers import other_servers, read_server
    from flexd.cli.evacuation_transport import Transport

    remote = remote_of(context, args.remote)
    if bool(args.to) == args.to_any:
        raise UsageError("Say where to: --to REMOTE: (any number of times), or --to-any")
    here = read_server(context, remote, ())
    others = other_servers(context, here, [remote_of(context, each) for each in args.to])
    if not others:
        raise CliError(f'There is no server to evacuate "{remote}:" to; see: flexc remote list')
    if not args.force and here.instances:
        from flexd.cli.ask import confirm

        where = ", ".join(server.remote for server in others)
        if not confirm(f'Evacuate {len(here.instances)} instances of "{remote}:" to {where}? (yes/no) '):
            raise CliError("Not confirmed; nothing was done")
    crew = Crew(args.parallel, reporter(context, args))
    evacuate(Transport(context, args.mode), here, others, args.action, crew)
    return finish(crew.rows, args.format, crew.interrupted)


def remote_of(context: Context, text: str) -> str:
    """`host2:` as host2; without one the default remote."""
    remote, name = context.split(text)
    if name:
        raise UsageError(f'"{text}" is not a remote: it should end in a colon, as "{text}:"')
    return remote


def reporter(context: Context, args: Arguments) -> Callable[[Row], None]:
    """Tells of each instance as soon as it is done with, unless a program reads."""

    def report(row: Row) -> None:
        if args.format in ("table", "compact"):
            where = f" to {row.target}:" if row.target else ""
            context.say(f"{row.instance}: {row.action}{where}: {row.error or f'done in {row.seconds:.1f} s'}")

    return report


def finish(rows: Sequence[Row], form: str, interrupted: bool) -> int:
    """Print the report; the exit status."""
    from flexd.cli.evacuation import print_rows

    print_rows(rows, form)
    failed = sum(bool(row.error) for row in rows)
    if interrupted:
        raise CliError("Interrupted; the same command goes on from here")
    if failed:
        raise CliError(f"{failed} of {len(rows)} instances failed; the same command tries them again")
    return 0


COMMAND = Command(
    "evacuate",
    "Move every instance off a server",
    _run,
    "[<remote>:] (--to <remote>: | --to-any)",
    [Positional("remote", "?", completes="remote")],
    [
        Option("--to", action="append", default=[], help="A server to go to; several share", completes="remote"),
        Option("--to-any", action="store_true", help="To whichever remotes there are"),
        Option(
            "--action",
            choices=("auto", "live-migrate", "migrate", "stop"),
            help="For all instances, whatever their cluster.evacuate says: auto, live-migrate, migrate or stop",
        ),
        PARALLEL,
        MODE,
        Option("--force", action="store_true", help="Don't ask"),
        FORMAT,
    ],
    details="Each instance goes as its cluster.evacuate says: live-migrate, migrate (stopped, moved, started), stop\n"
    "(it stays) or auto: live if it can, else stopped for as long as it takes; one that is tied to the host by a\n"
    "device stays, stopped. Higher boot.stop.priority leaves first; each goes to the server that is the emptiest\n"
    "then, in memory and CPUs. An interrupted evacuation goes on when it is said again.",
    examples=[
        ("flexc evacuate host1: --to host2:", "Before host1 is switched off"),
        ("flexc evacuate host1: --to-any --action migrate", "To several, none of them live"),
        ("flexc restore host1:", "Bring all of them home"),
    ],
)
