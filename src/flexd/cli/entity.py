# SPDX-License-Identifier: Apache-2.0
"""The verbs that every kind of thing has: show, edit, get, set, unset, rename, delete, made from one description."""

from __future__ import annotations

from flexd.cli.command import TARGET, Command, Option, Positional
from flexd.cli.keyvalue import apply_changes, parse_settings, remove_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from flexd.cli.command import Arguments
    from flexd.cli.context import Context
    from flexd.client.client import Client

    # Finds the thing that the positionals name: its server, its path, and what to call it in messages.
    Locate = Callable[[Context, Arguments], tuple[Client, str, str]]


class Entity:
    """A kind. `writable`: the fields of its PUT; `order`: how `show` sorts all of its fields."""

    def __init__(
        self,
        noun: str,
        usage: str,
        positionals: Sequence[Positional],
        locate: Locate,
        writable: Sequence[str],
        order: Sequence[str],
        *,
        clustered: bool = False,
    ) -> None:
        self.noun = noun
        self.usage = usage
        self.positionals = positionals
        self.locate = locate
        self.writable = writable
        self.order = order
        self.options: Sequence[Option] = (TARGET,) if clustered else ()

    def document(self, value: dict[str, Any]) -> dict[str, Any]:
        """All fields, in order; those that the order doesn't know come last."""
        known = {key: value[key] for key in self.order if key in value}
        if known.get("used_by"):
            known["used_by"] = sorted(known["used_by"])
        return {**known, **{key: each for key, each in value.items() if key not in known}}

    def put(self, context: Context, client: Client, path: str, value: dict[str, Any], etag: str) -> None:
        """Replace the thing by its writable fields."""
        body = {key: value[key] for key in self.writable if key in value}
        context.perform(client, "PUT", path, body, etag=etag)

    def change(self, context: Context, args: Arguments, edit: Callable[[dict[str, Any], str], None]) -> str:
        """Read, change, and write back unless somebody else wrote meanwhile; returns the thing's name."""
        client, path, label = self.locate(context, args)
        reply = client.request("GET", path)
        edit(reply.metadata, label)
        self.put(context, client, path, reply.metadata, reply.etag)
        return label

    def command(
        self,
        name: str,
        summary: str,
        run: Callable[[Context, Arguments], int | None],
        usage: str = "",
        positionals: Sequence[Positional] = (),
        options: Sequence[Option] = (),
        examples: Sequence[tuple[str, str]] = (),
        aliases: Sequence[str] = (),
    ) -> Command:
        """A command on one thing: its words, then more."""
        return Command(
            name,
            summary,
            run,
            f"{self.usage} {usage}".strip(),
            [*self.positionals, *positionals],
            [*self.options, *options],
            examples=examples,
            aliases=aliases,
        )


def show(entity: Entity, only_writable: bool = False) -> Command:
    """Print it as YAML."""

    def run(context: Context, args: Arguments) -> None:
        from flexd.cli.yamltext import dump

        client, path, _ = entity.locate(context, args)
        value = entity.document(client.get(path))
        print(dump({key: each for key, each in value.items() if not only_writable or key in entity.writable}), end="")

    return entity.command("show", f"Show a {entity.noun} as YAML", run)


def edit(entity: Entity) -> Command:
    """Open it in an editor, or take it from standard input."""

    def run(context: Context, args: Arguments) -> None:
        from flexd.cli.edit import edit_document

        client, path, label = entity.locate(context, args)
        reply = client.request("GET", path)
        value = entity.document(reply.metadata)
        hint = f"This is the {entity.noun} {label}, as YAML. Save to apply; lines that begin with # are ignored."
        edit_document(
            {key: each for key, each in value.items() if key in entity.writable},
            hint,
            lambda changed: entity.put(context, client, path, changed, reply.etag),
        )

    return entity.command("edit", f"Edit a {entity.noun} as YAML", run)


def get(entity: Entity) -> Command:
    """Print one key."""

    def run(context: Context, args: Arguments) -> None:
        client, path, _ = entity.locate(context, args)
        print(client.get(path)["config"].get(args.key, ""))

    return entity.command("get", "Print the value of a configuration key", run, "<key>", [Positional("key")])


def set_(entity: Entity, examples: Sequence[tuple[str, str]] = ()) -> Command:
    """Set keys."""

    def run(context: Context, args: Arguments) -> None:
        changes = parse_settings(args.setting)
        entity.change(context, args, lambda value, _: apply_changes(value["config"], changes))

    positionals = [Positional("setting", "+")]
    return entity.command("set", "Set configuration keys", run, "<key>=<value>...", positionals, examples=examples)


def unset(entity: Entity) -> Command:
    """Remove a key."""

    def run(context: Context, args: Arguments) -> None:
        entity.change(context, args, lambda value, label: remove_key(value["config"], args.key, label))

    return entity.command("unset", "Remove a configuration key", run, "<key>", [Positional("key")])


def rename(entity: Entity) -> Command:
    """Give it another name."""

    def run(context: Context, args: Arguments) -> None:
        client, path, label = entity.locate(context, args)
        context.perform(client, "POST", path, {"name": args.new_name})
        context.say(f"{entity.noun.capitalize()} {label} renamed to {args.new_name}")

    positionals = [Positional("new_name")]
    return entity.command("rename", f"Rename a {entity.noun}", run, "<new-name>", positionals, aliases=["mv"])


def delete(entity: Entity) -> Command:
    """Remove it."""

    def run(context: Context, args: Arguments) -> None:
        client, path, label = entity.locate(context, args)
        context.perform(client, "DELETE", path)
        context.say(f"{entity.noun.capitalize()} {label} deleted")

    return entity.command("delete", f"Delete a {entity.noun}", run, aliases=["rm"])
