# SPDX-License-Identifier: Apache-2.0
"""Templates of images: written for pongo2 (LXD's engine, Django's syntax), rendered by a sandboxed Jinja2.

The source is translated tag by tag; what Jinja2 has beyond pongo2 is refused, what could run for ever or fill the
memory is bounded. A template sees texts and mappings, never an object of ours. Pure and blocking: call in a thread.
"""

import html
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from flexd.api.errors import BadRequest

if TYPE_CHECKING:
    from jinja2 import Environment, Template

TEMPLATE_BYTES = 1 << 20
"""The longest template rendered."""
_RENDERED_BYTES = 16 << 20
_TEXT_BYTES = 4 << 20
# Of all loops of one rendering together; real templates walk over some dozens of keys.
_TURNS = 100_000
_WIDTH = 1000

_STRING = r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\''
_TAG = re.compile(
    rf"\{{#.*?#\}}|\{{%-?\s*comment\s*-?%\}}.*?\{{%-?\s*endcomment\s*-?%\}}|"
    rf"\{{%-?\s*verbatim\s*-?%\}}(?P<verbatim>.*?)\{{%-?\s*endverbatim\s*-?%\}}|"
    rf"\{{(?P<kind>[{{%])(?P<left>-?)(?P<body>(?:{_STRING}|(?!-?[}}%]\}}).)*)(?P<right>-?)[}}%]\}}",
    re.DOTALL,
)
_TOKEN = re.compile(
    rf"(?P<space>\s+)|(?P<string>{_STRING})|(?P<number>\d+(?:\.\d+)?)|(?P<name>[A-Za-z_]\w*)|"
    r"(?P<operator>&&|\|\||[=!<>]=|<>|[-+*/%^<>!=|:,.()\[\]])"
)
_WORDS = {"&&": " and ", "||": " or ", "!": " not ", "<>": "!=", "^": "**"}
_WORDS |= {"nil": "none", "True": "true", "False": "false"}
_LOOP = {
    "Counter": "index",
    "Counter0": "index0",
    "Revcounter": "revindex",
    "Revcounter0": "revindex0",
    "First": "first",
    "Last": "last",
}
# Jinja2 would take these as something else than a variable.
_RESERVED = frozenset({"if", "else", "is", "recursive", "loop", "self", "import", "context"})
_PLAIN_TAGS = {"endif": "endif", "endfor": "endfor", "else": "else", "empty": "else", "endwith": "endwith"}
_PLAIN_TAGS |= {"endset": "endset", "endifequal": "endif", "endifnotequal": "endif", "endfilter": "endfilter"}


class BadTemplate(BadRequest):
    def __init__(self, name: str, fault: object) -> None:
        super().__init__(f'Failed rendering template "{name}": {" ".join(str(fault).split())}')


class _Fault(Exception):
    """What is wrong with a template, in words for its author."""


def render(name: str, source: str, context: Mapping[str, Any], config: Mapping[str, str]) -> str:
    """`context` holds texts and mappings of texts; `config` is what `config_get` reads. `BadTemplate` says what is
    wrong; `name` is for that."""
    import jinja2

    if len(source) > TEMPLATE_BYTES:
        raise BadTemplate(name, f"it has more than {TEMPLATE_BYTES} bytes")
    try:
        template = _compile(source)
        values = {**context, "config_get": _ConfigGet(config), "each": _Each()}
        return _joined(template.generate(values))
    except (_Fault, jinja2.TemplateError, ArithmeticError, TypeError, ValueError, LookupError) as error:
        raise BadTemplate(name, error) from error
    except (RecursionError, SyntaxError, MemoryError) as error:
        raise BadTemplate(name, "nested too deeply") from error


def _joined(pieces: Iterable[str]) -> str:
    found, total = [], 0
    for piece in pieces:
        total += len(piece)
        if total > _RENDERED_BYTES:
            raise _Fault(f"it renders to more than {_RENDERED_BYTES} bytes")
        found.append(piece)
    return "".join(found)


@lru_cache(maxsize=64)
def _compile(source: str) -> "Template":
    return _environment().from_string(translate(source))


# --- translation -------------------------------------------------------------------------------------------------


def translate(source: str) -> str:
    """pongo2's source as Jinja2's."""
    found, position = [], 0
    for match in _TAG.finditer(source):
        found.append(_literal(source[position : match.start()]))
        found.append(_tag(match))
        position = match.end()
    return "".join([*found, _literal(source[position:])])


def _literal(text: str) -> str:
    """What is between tags holds none, or one that is never closed."""
    for opening in ("{{", "{%", "{#"):
        if opening in text:
            raise _Fault(f'"{opening}" is never closed')
    return text


def _tag(match: re.Match[str]) -> str:
    if match["verbatim"] is not None:
        return "{% raw %}" + match["verbatim"] + "{% endraw %}"
    if match["kind"] is None:
        return ""  # a comment
    if match["kind"] == "{":
        return f"{{{{{match['left']}{_expression(match['body'])}{match['right']}}}}}"
    name, _, rest = match["body"].strip().partition(" ")
    return _block(name, rest.strip(), match["left"], match["right"])


def _block(name: str, rest: str, left: str, right: str) -> str:
    if name == "firstof":
        return f"{{{{{left} {' or '.join(_operands(rest))} {right}}}}}"
    if (name == "autoescape" and rest == "off") or name == "endautoescape":
        return f"{{%{left} if true {right}%}}{{% endif %}}" if left or right else ""
    return f"{{%{left} {_statement(name, rest)} {right}%}}"


def _statement(name: str, rest: str) -> str:
    if name in ("if", "elif"):
        return f"{name} {_expression(rest)}"
    if name in _PLAIN_TAGS:
        return _PLAIN_TAGS[name]
    if name == "for":
        return _for(rest)
    if name == "set":
        return f"set {_expression(rest)}"
    if name == "with":
        return f"with {_bindings(rest)}"
    if name == "filter":
        return "filter " + _expression(f"x|{rest}").removeprefix("x|")
    if name in ("ifequal", "ifnotequal"):
        operands = _operands(rest)
        if len(operands) != 2:
            raise _Fault(f'"{name}" takes two values')
        return f"if ({operands[0]}) {'==' if name == 'ifequal' else '!='} ({operands[1]})"
    raise _Fault(f'the tag "{name}" is not supported')


def _for(rest: str) -> str:
    match = re.fullmatch(r"(\w+)(?:\s*,\s*(\w+))?\s+in\s+(.*?)((?:\s+(?:reversed|sorted))*)", rest, re.DOTALL)
    if match is None:
        raise _Fault(f'"for {rest}" is not understood')
    names = [name for name in (match[1], match[2]) if name]
    flags = match[4].split()
    order = f"{str('sorted' in flags).lower()}, {str('reversed' in flags).lower()}"
    return f"for {', '.join(names)} in each(({_expression(match[3])}), {len(names)}, {order})"


def _bindings(rest: str) -> str:
    match = re.fullmatch(r"(.*)\sas\s+(\w+)", rest, re.DOTALL)
    if match is not None:
        return f"{match[2]} = {_expression(match[1])}"
    parts = [part for part in re.split(r"(\w+)\s*=(?!=)", rest) if part.strip()]
    if not parts or len(parts) % 2:
        raise _Fault(f'"with {rest}" is not understood')
    return ", ".join(f"{parts[i]} = {_expression(parts[i + 1])}" for i in range(0, len(parts), 2))


def _operands(rest: str) -> list[str]:
    """Values side by side: `a "b c" d|upper`."""
    words, current = [], ""
    for kind, text in _tokens(rest):
        if kind == "space" and current:
            words.append(current)
            current = ""
        elif kind != "space":
            current += text
    return [_expression(word) for word in [*words, current] if word]


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _Fault(f'unexpected "{text[position]}" in "{text.strip()}"')
        yield match.lastgroup or "", match[0]
        position = match.end()


def _expression(text: str) -> str:
    tokens = [(kind, token) for kind, token in _tokens(text)]
    found: list[str] = []
    index = 0
    while index < len(tokens):
        kind, token = tokens[index]
        before = found[-1] if found else ""
        if token == ":":
            argument, index = _argument(tokens, index + 1)
            found.append(f"({argument})")
            continue
        if kind == "name" and token == "forloop":
            member, index = _argument(tokens, index)
            found.append("loop." + _LOOP.get(member.rpartition(".")[2], "nothing"))
            continue
        if kind == "name" and token in _RESERVED and before != ".":
            raise _Fault(f'"{token}" cannot be used in "{text.strip()}"')
        found.append(token if before == "." else _WORDS.get(token, token))
        index += 1
    return "".join(found)


def _argument(tokens: list[tuple[str, str]], index: int) -> tuple[str, int]:
    """One literal or dotted name, as a filter takes after a colon; returns where the rest begins."""
    while index < len(tokens) and tokens[index][0] == "space":
        index += 1
    end = index
    while end < len(tokens) and (tokens[end][0] in ("name", "number", "string") or tokens[end][1] == "."):
        end += 1
        if tokens[end - 1][1] != "." and (end >= len(tokens) or tokens[end][1] != "."):
            break
    if end == index:
        raise _Fault("a filter's argument is missing after the colon")
    return "".join(token for _, token in tokens[index:end]), end


# --- what templates can call -------------------------------------------------------------------------------------


class _ConfigGet:
    """`config_get("user.key", "default")`, of the expanded configuration."""

    def __init__(self, config: Mapping[str, str]) -> None:
        self._config = config

    def __call__(self, key: object, default: object = "") -> str:
        value = self._config.get(str(key))
        return _shown(default) if value is None else value.rstrip("\r\n")


class _Each:
    """What a `for` walks over: mappings by key, in order; every turn of every loop is counted."""

    def __init__(self) -> None:
        self._turns = 0

    def __call__(self, value: Any, names: int, sort: bool, reverse: bool) -> Iterator[Any]:
        items = self._items(value, names)
        if sort:
            items.sort()
        if reverse:
            items.reverse()
        for item in items:
            self._turns += 1
            if self._turns > _TURNS:
                raise _Fault(f"its loops take more than {_TURNS} turns")
            yield item

    def _items(self, value: Any, names: int) -> list[Any]:
        if isinstance(value, Mapping):
            return sorted(value.items()) if names == 2 else sorted(value)
        if isinstance(value, str | list):
            return [(item, "") for item in value] if names == 2 else list(value)
        return []  # pongo2 walks over nothing else either


def _shown(value: object) -> str:
    """A value as pongo2 prints it."""
    if value is None or type(value).__name__.endswith("Undefined"):
        return ""
    if isinstance(value, float):
        return f"{value:f}"
    if isinstance(value, Mapping):
        return "<map[string]string Value>"
    return str(value)


def _bounded(text: str) -> str:
    if len(text) > _TEXT_BYTES:
        raise _Fault(f"a text grows beyond {_TEXT_BYTES} bytes")
    return text


def _number(value: Any) -> int | float:
    if isinstance(value, int | float):
        return value
    try:
        return float(value) if "." in str(value) else int(value)
    except ValueError:
        return 0


def _add(left: Any, right: Any) -> Any:
    if isinstance(left, int | float) and isinstance(right, int | float):
        return left + right
    return _bounded(_shown(left) + _shown(right))


def _divide(left: Any, right: Any) -> int | float:
    """Whole numbers stay whole, as in Go."""
    above, below = _number(left), _number(right)
    if isinstance(above, int) and isinstance(below, int):
        return int(above / below) if abs(above) < 1 << 52 else above // below
    return above / below


def _product(left: Any, right: Any) -> int | float:
    result = _number(left) * _number(right)
    if isinstance(result, int) and result.bit_length() > 64:
        raise _Fault("a number becomes too large")
    return result


def _binary(operator: str, left: Any, right: Any) -> Any:
    if operator == "+":
        return _add(left, right)
    if operator == "*":
        return _product(left, right)
    if operator == "/":
        return _divide(left, right)
    if operator == "**":
        return math.pow(_number(left), _number(right))
    return _number(left) % _number(right)


def _slice(value: Any, bounds: str) -> Any:
    start, _, end = str(bounds).partition(":")
    return value[int(start) if start else None : int(end) if end else None]


def _yesno(value: Any, words: str = "yes,no,maybe") -> str:
    yes, no, *maybe = words.split(",")
    if value is None and maybe:
        return maybe[0]
    return yes if value else no


def _padded(pad: Callable[[str, int], str]) -> Callable[[Any, int], str]:
    return lambda value, width: pad(_shown(value), min(int(width), _WIDTH))


def _replaced(value: Any, old: str, new: str) -> str:
    text = _shown(value)
    if old and len(text) + text.count(old) * len(new) > _TEXT_BYTES:
        _bounded(" " * (_TEXT_BYTES + 1))
    return text.replace(old, new)


_FILTERS: dict[str, Callable[..., Any]] = {
    "add": _add,
    "addslashes": lambda value: re.sub(r"([\\'\"])", r"\\\1", _shown(value)),
    "capfirst": lambda value: _shown(value)[:1].upper() + _shown(value)[1:],
    "center": _padded(str.center),
    "cut": lambda value, old: _replaced(value, old, ""),
    "default": lambda value, other: value or other,
    "default_if_none": lambda value, other: other if value is None else value,
    "divisibleby": lambda value, by: bool(_number(by)) and _number(value) % _number(by) == 0,
    "escape": lambda value: html.escape(_shown(value)),
    "first": lambda value: value[0] if value else "",
    "float": lambda value: float(_number(value)),
    "integer": lambda value: int(_number(value)),
    "join": lambda value, by: _bounded(_shown(by).join(map(_shown, value))),
    "last": lambda value: value[-1] if value else "",
    "length": len,
    "length_is": lambda value, wanted: len(value) == int(wanted),
    "linebreaksbr": lambda value: _replaced(value, "\n", "<br />"),
    "ljust": _padded(str.ljust),
    "lower": lambda value: _shown(value).lower(),
    "make_list": lambda value: list(_shown(value)),
    "rjust": _padded(str.rjust),
    "safe": lambda value: value,
    "slice": _slice,
    "split": lambda value, by: _shown(value).split(by),
    "striptags": lambda value: re.sub(r"<[^>]*>", "", _shown(value)),
    "title": lambda value: _shown(value).title(),
    "truncatechars": lambda value, n: v if len(v := _shown(value)) <= int(n) else v[: max(int(n) - 3, 0)] + "...",
    "upper": lambda value: _shown(value).upper(),
    "urlencode": lambda value: quote(_shown(value), safe=""),
    "wordcount": lambda value: len(_shown(value).split()),
    "yesno": _yesno,
}


@lru_cache(maxsize=1)
def _environment() -> "Environment":
    """Made at the first template: Jinja2 takes 30 ms to import, and most daemons have images without templates."""
    from jinja2 import ChainableUndefined
    from jinja2.runtime import LoopContext
    from jinja2.sandbox import SandboxedEnvironment

    class Sandbox(SandboxedEnvironment):
        """No attribute of any object but a mapping's keys and a loop's counters; no call but ours."""

        intercepted_binops = frozenset({"+", "*", "/", "%", "**"})

        def call_binop(self, _context: Any, operator: str, left: Any, right: Any) -> Any:
            return _binary(operator, left, right)

        def getattr(self, obj: Any, attribute: str) -> Any:
            if isinstance(obj, LoopContext) and attribute in _LOOP.values():
                return getattr(obj, attribute)
            return self.getitem(obj, attribute)

        def getitem(self, obj: Any, argument: Any) -> Any:
            if isinstance(obj, Mapping) and argument in obj:
                return obj[argument]
            if isinstance(obj, str | list) and isinstance(argument, int) and -len(obj) <= argument < len(obj):
                return obj[argument]
            return self.undefined(obj=obj, name=argument)

        def is_safe_callable(self, obj: Any) -> bool:
            return isinstance(obj, _ConfigGet | _Each)

    environment = Sandbox(undefined=ChainableUndefined, finalize=_shown, keep_trailing_newline=True)
    environment.globals.clear()
    environment.tests.clear()
    environment.filters = dict(_FILTERS)
    return environment
