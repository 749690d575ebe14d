# SPDX-License-Identifier: Apache-2.0
"""`flexc file`."""

from __future__ import annotations

import os
import stat
import sys

from flexd.cli.command import Command, Group, Option, Positional
from flexd.cli.errors import CliError, UsageError
from flexd.cli.file_transfer import InstanceFiles, Owner, delete_tree, pull_file, pull_tree, push_file, push_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from flexd.cli.command import Arguments
    from flexd.cli.context import Context

_MAX_LINKS = 40  # as many as Linux follows


def _inside(context: Context, word: str) -> tuple[InstanceFiles, str, str]:
    """The file system, the instance's name and the path of `[<remote>:]<instance>/<path>`."""
    client, rest = context.resolve(word)
    instance, slash, path = rest.partition("/")
    if not slash or not instance:
        raise UsageError(f'"{word}" is not [<remote>:]<instance>/<path>')
    return InstanceFiles(client, instance), instance, f"/{path}"


def _shown(context: Context) -> bool:
    return not context.quiet and sys.stderr.isatty()


def _mode(text: str) -> int | None:
    if not text:
        return None
    try:
        return int(text, 8)
    except ValueError as error:
        raise UsageError(f'Invalid mode "{text}": expected octal digits, as 0644') from error


def _push(context: Context, args: Arguments) -> None:
    *sources, target = args.path
    if not sources:
        raise UsageError("Invalid number of arguments: expected <source path>... [<remote>:]<instance>/<path>")
    files, _, path = _inside(context, target)
    owner = Owner(args.uid, args.gid, _mode(args.mode))
    into = target.endswith("/") or files.kind(path) == "directory"
    if not into and len(sources) > 1:
        raise CliError(f"More than one file to push, but {target} is no directory")
    if args.create_dirs:
        directory = path if into else os.path.dirname(path)
        files.make_directories(directory, Owner(args.uid or 0, args.gid or 0, 0o755))
    for source in sources:
        _push_one(context, files, source, path, into, owner, args.recursive)


def _push_one(
    context: Context, files: InstanceFiles, source: str, target: str, into: bool, owner: Owner, recursive: bool
) -> None:
    """Send one source: under its own name if the target is a directory; a directory always, as lxc does."""
    if source == "-":
        files.write(target, sys.stdin.buffer.read(), owner)
        return
    try:
        found = os.stat(source)
    except OSError as error:
        raise CliError(f"Failed opening {source}: {error.strerror}") from error
    inside = os.path.join(target, os.path.basename(os.path.abspath(source)))
    if not stat.S_ISDIR(found.st_mode):
        push_file(files, source, inside if into else target, owner.merged(found), _shown(context))
    elif recursive:
        push_tree(files, source, inside, owner, _shown(context))
    else:
        raise CliError(f"Can't push {source}: it is a directory; say --recursive")


def _pull(context: Context, args: Arguments) -> None:
    *sources, target = args.path
    if not sources:
        raise UsageError("Invalid number of arguments: expected [<remote>:]<instance>/<path>... <target path>")
    into = os.path.isdir(target) or target.endswith("/")
    if len(sources) > 1 and not into and not args.create_dirs:
        raise CliError(f"More than one file to pull, but {target} is no directory")
    if args.create_dirs:
        into = into or len(sources) > 1
        os.makedirs(target if into else os.path.dirname(target) or ".", exist_ok=True)
    for source in sources:
        files, instance, path = _inside(context, source)
        inside = os.path.join(target, os.path.basename(path.rstrip("/")) or instance)
        if args.recursive and files.kind(path) == "directory":
            os.makedirs(target, exist_ok=True)
            pull_tree(files, path, inside, _shown(context))
        else:
            _pull_one(context, files, path, inside if into else target)


def _pull_one(context: Context, files: InstanceFiles, path: str, target: str, links: int = 0) -> None:
    """Fetch a file, following symbolic links inside the instance."""
    if links > _MAX_LINKS:
        raise CliError(f"Can't pull {path}: too many symbolic links lead to each other")
    kind, owner, response = files.open(path)
    if kind == "directory":
        raise CliError(f"Can't pull {path}: it is a directory; say --recursive")
    if kind == "symlink" and target != "-":
        link = os.path.join(os.path.dirname(path), response.read().decode().rstrip("\n"))
        _pull_one(context, files, os.path.normpath(link), target, links + 1)
        return
    pull_file(response, target, owner, _shown(context), path)


def _delete(context: Context, args: Arguments) -> None:
    for word in args.path:
        files, _, path = _inside(context, word)
        if args.recursive:
            delete_tree(files, path)
        else:
            files.delete(path)


def _edit(context: Context, args: Arguments) -> None:
    files, _, path = _inside(context, args.path)
    kind, owner, response = files.open(path)
    if kind != "file":
        raise CliError(f"Can't edit {path}: it is a {kind}")
    before = response.read()
    after = _edited(before, os.path.basename(path)) if sys.stdin.isatty() else sys.stdin.buffer.read()
    if after != before:
        files.write(path, after, owner)


def _edited(content: bytes, name: str) -> bytes:
    """The bytes as the person left them; a temporary file, because the content need not be text."""
    import tempfile

    from flexd.cli.edit import run_editor

    with tempfile.TemporaryDirectory(prefix="flexc-") as scratch:
        path = os.path.join(scratch, name)
        with open(path, "wb") as file:
            file.write(content)
        run_editor(path)
        with open(path, "rb") as file:
            return file.read()


def _create(context: Context, args: Arguments) -> None:
    files, _, path = _inside(context, args.path)
    if args.type == "symlink" and not args.target:
        raise UsageError("A symlink needs a target: flexc file create --type=symlink <instance>/<path> <target>")
    if args.target and args.type != "symlink":
        raise UsageError("Only symlinks have a target")
    if args.create_dirs:
        files.make_directories(os.path.dirname(path.rstrip("/")), Owner(args.uid or 0, args.gid or 0, 0o755))
    if not args.force and files.kind(path):
        raise CliError(f"{path} already exists; say --force to replace it")
    mode = _mode(args.mode)
    if mode is None and args.type != "symlink":
        mode = 0o755 if args.type == "directory" else 0o644
    files.write(path, args.target.encode(), Owner(args.uid or 0, args.gid or 0, mode), args.type)


def _mount(context: Context, args: Arguments) -> None:
    from flexd.cli.file_mount import listen_ssh, mount_sshfs

    client, rest = context.resolve(args.path)
    instance, _, path = rest.partition("/")
    if bool(args.target) == bool(args.listen):
        raise UsageError("Give a directory to mount on, or --listen=ADDRESS:PORT to serve it over SSH")
    if args.listen:
        listen_ssh(client, instance, args.listen, args.auth_user, args.no_auth)
    else:
        mount_sshfs(client, instance, f"/{path}", args.target)


_UID = Option("--uid", type=int, default=None, help="Owner of the file (default: the source's)")
_GID = Option("--gid", type=int, default=None, help="Group of the file (default: the source's)")
_MODE = Option("--mode", default="", help="Permissions in octal (default: the source's)")
_CREATE_DIRS = Option("-p", "--create-dirs", action="store_true", help="Make missing directories")
_RECURSIVE = Option("-r", "--recursive", action="store_true", help="With all that is in directories")
_ONE = "[<remote>:]<instance>/<path>"
_SEVERAL = f"{_ONE} [{_ONE}...]"
_PATH = Positional("path", completes="instance-path")

COMMAND = Group(
    "file",
    "Manage files in instances",
    [
        Command(
            "create",
            "Create an empty file, a directory or a symbolic link",
            _create,
            f"{_ONE} [<target>]",
            [_PATH, Positional("target", "?")],
            [
                _CREATE_DIRS,
                Option("-f", "--force", action="store_true", help="Replace what is there"),
                _GID,
                _MODE,
                Option(
                    "--type",
                    default="file",
                    choices=("file", "directory", "symlink"),
                    help="file (default), directory or symlink",
                ),
                _UID,
            ],
        ),
        Command(
            "delete",
            "Delete files",
            _delete,
            _SEVERAL,
            [Positional("path", "+", completes="instance-path")],
            [_RECURSIVE],
            aliases=["rm"],
        ),
        Command("edit", "Edit a file", _edit, _ONE, [_PATH]),
        Command(
            "mount",
            "Mount the files of an instance, or serve them over SSH",
            _mount,
            "[<remote>:]<instance>[/<path>] [<target path>]",
            [_PATH, Positional("target", "?", completes="file")],
            [
                Option("--auth-user", default="", help="User name to ask for with --listen"),
                Option("--listen", default="", help="Serve SFTP over SSH on ADDRESS:PORT instead"),
                Option("--no-auth", action="store_true", help="Ask for no password with --listen"),
            ],
            examples=[("flexc file mount first/root ./root", "Until <ctrl>+c; needs sshfs")],
        ),
        Command(
            "pull",
            "Fetch files from instances",
            _pull,
            f"{_SEVERAL} <target path>",
            [Positional("path", "+", completes="instance-path")],
            [_CREATE_DIRS, _RECURSIVE],
            examples=[("flexc file pull first/etc/hosts .", "Into this directory; - prints it")],
        ),
        Command(
            "push",
            "Send files into an instance",
            _push,
            f"<source path>... {_ONE}",
            [Positional("path", "+", completes="file")],
            [_CREATE_DIRS, _GID, _MODE, _RECURSIVE, _UID],
            examples=[
                ("flexc file push /etc/hosts first/etc/hosts", "One file"),
                ("flexc file push -r ./site first/srv/ --uid 33 --gid 33", "A directory, as /srv/site"),
            ],
        ),
    ],
    examples=[("flexc file edit first/etc/fstab", "In your editor"), ("flexc file pull -r first/var/log .", "A tree")],
)
