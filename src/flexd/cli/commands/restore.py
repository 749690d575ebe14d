# SPDX-License-Identifier: Apache-2.0
"""`flexc restore`: an instance from a snapshot, or a server from an evacuation."""

from __future__ import annotations

from flexd.cli.command import FORMAT, Command, Option, Positional
from flexd.cli.commands.evacuate import PARALLEL, finish, remote_of, reporter
from flexd.cli.copying import MODE
from flexd.cli.errors import UsageError
from flexd.client.client import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from flexd.cli.command import Arguments
    from flexd.cli.context import Context


def _run(context: Context, args: Arguments) -> int:
    if args.instance.endswith(":") and not args.snapshot:
        return _restore_server(context, args)
    if not args.snapshot:
        raise UsageError("<snapshot> is missing; to bring home what was evacuated from a server: flexc restore REMOTE:")
    if getattr(args, "from"):
        raise UsageError("--from is about servers: flexc restore REMOTE: --from REMOTE:")
    client, instance = context.resolve(args.instance)
    # Other than everywhere else, the API wants INSTANCE/SNAPSHOT here, and nothing else is changed.
    body = {"restore": f"{instance}/{args.snapshot.rpartition('/')[2]}", "stateful": args.stateful}
    context.perform(client, "PUT", path_of("instances", instance), body, label=f"Restoring {instance}")
    return 0


def _restore_server(context: Context, args: Arguments) -> int:
    from flexd.cli.evacuation import Crew, bring_home
    from flexd.cli.evacuation_servers import other_servers, read_server
    from flexd.cli.evacuation_transport import Transport

    if args.stateful:
        raise UsageError("--stateful is about a snapshot, not a server")
    home = read_server(context, remote_of(context, args.instance), ("default",))
    others = other_servers(context, home, [remote_of(context, each) for each in getattr(args, "from")])
    crew = Crew(args.parallel, reporter(context, args))
    bring_home(Transport(context, args.mode), home, others, crew)
    return finish(crew.rows, args.format, crew.interrupted)


COMMAND = Command(
    "restore",
    "Set an instance back to a snapshot, or bring home what was evacuated from a server",
    _run,
    "[<remote>:]<instance> <snapshot> | <remote>:",
    [Positional("instance", completes="instance"), Positional("snapshot", "?")],
    [
        Option("--stateful", action="store_true", help="With the running state, if the snapshot has one"),
        Option("--from", action="append", default=[], help="Server to look on (default: all)", completes="remote"),
        PARALLEL,
        MODE,
        FORMAT,
    ],
    details="With a remote alone, its colon and no snapshot, it undoes flexc evacuate: instances come back from\n"
    "wherever they are, live if they can, higher boot.autostart.priority first, and those that were stopped start.",
    examples=[
        ("flexc restore web before", "What was written since then is lost"),
        ("flexc restore host1:", "What was evacuated from host1 comes home"),
    ],
)
