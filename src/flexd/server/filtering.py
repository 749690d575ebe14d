# SPDX-License-Identifier: Apache-2.0
"""`filter=` of lists (extension: api_filtering): `status eq Running and not config.image.os eq debian`.

Clauses are joined from left to right, without precedence or parentheses. A value is a regular expression for the whole
text of the field, case ignored, as in LXD 5.0; `lxc list c1` sends `name eq (^c1$|^c1.*)`.
"""

import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from msgspec import Struct

from flexd.api.errors import BadRequest

T = TypeVar("T", bound=Struct)

_OPERATORS = ("eq", "ne")
_JOINTS = ("and", "or")
# Python's expressions backtrack: three repeats over a short text are harmless, a repeated group is not.
_MAX_REPEATS = 3
_MAX_TEXT = 256
_REPEAT = re.compile(r"(?<!\\)[*+{]")
_REPEATED_GROUP = re.compile(r"\)\s*[*+{]")


class Clause(Struct, frozen=True):
    """One comparison; `joint` is how it is joined to what stands before it."""

    joint: str
    negated: bool
    field: tuple[str, ...]
    operator: str
    matches: Callable[[str], bool]

    def holds(self, value: Struct) -> bool:
        text = _field_text(value, self.field)
        found = text is not None and self.matches(text)
        return (found == (self.operator == "eq")) != self.negated


class Filter(Struct, frozen=True):
    clauses: tuple[Clause, ...] = ()

    def holds(self, value: Struct) -> bool:
        result = True
        for clause in self.clauses:
            holds = clause.holds(value)
            result = result or holds if clause.joint == "or" else result and holds
        return result

    def apply(self, values: list[T]) -> list[T]:
        return [value for value in values if self.holds(value)] if self.clauses else values


def parse_filter(text: str) -> Filter:
    """A parsed filter; an empty text lets everything through."""
    words = _split(text)
    clauses: list[Clause] = []
    while words:
        joint = "and"
        if clauses:
            joint = words.pop(0).lower()
            if joint not in _JOINTS:
                raise BadRequest(f'Invalid filter: invalid clause composition: "{joint}" instead of "and" or "or"')
            if not words:
                raise BadRequest("Invalid filter: unterminated compound clause")
        clauses.append(_parse_clause(words, joint))
    return Filter(tuple(clauses))


def _split(text: str) -> list[str]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars="")
    lexer.whitespace_split = True
    lexer.commenters = lexer.escape = ""
    lexer.quotes = '"'
    try:
        return list(lexer)
    except ValueError as error:
        raise BadRequest("Invalid filter: unterminated quote") from error


def _parse_clause(words: list[str], joint: str) -> Clause:
    negated = words[0].lower() == "not"
    if negated:
        words.pop(0)
    if not words:
        raise BadRequest("Invalid filter: incomplete not clause")
    field = words.pop(0)
    if not words:
        raise BadRequest(f'Invalid filter: clause has no operator (after "{field}")')
    operator = words.pop(0).lower()
    if operator not in _OPERATORS:
        raise BadRequest(f'Invalid filter: invalid clause composition: "{operator}" is not an operator (eq, ne)')
    if not words:
        raise BadRequest(f'Invalid filter: clause has no value (after "{field} {operator}")')
    return Clause(joint, negated, tuple(field.split(".")), operator, _matcher(words.pop(0)))


def _matcher(pattern: str) -> Callable[[str], bool]:
    literal = pattern.casefold()
    if _REPEATED_GROUP.search(pattern) or len(_REPEAT.findall(pattern)) > _MAX_REPEATS:
        raise BadRequest(f'Invalid filter: the pattern "{pattern}" repeats too often')
    try:
        expression = re.compile(pattern, re.IGNORECASE)
    except re.error:
        return lambda text: text.casefold() == literal
    return lambda text: (
        text.casefold() == literal or (len(text) <= _MAX_TEXT and expression.fullmatch(text) is not None)
    )


def _field_text(value: Any, path: Sequence[str]) -> str | None:
    """The scalar at a dotted path as text; None where there is none. Map keys may contain dots themselves."""
    for index, name in enumerate(path):
        if isinstance(value, dict):
            return _entry_text(value, path[index:])
        attribute = name if name != "class" else "class_"
        if not isinstance(value, Struct) or not hasattr(value, attribute):
            return None
        value = getattr(value, attribute)
    return _scalar_text(value)


def _entry_text(values: dict[str, Any], path: Sequence[str]) -> str | None:
    for end in range(len(path), 0, -1):
        key = ".".join(path[:end])
        if key in values:
            return _field_text(values[key], path[end:])
    return None


def _scalar_text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int) else None
