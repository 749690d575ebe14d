# SPDX-License-Identifier: Apache-2.0
"""Request bodies: bytes into wire structs, with every fault found at once.

As in Go, JSON `null` means "not given". An empty configuration value means "unset" and is dropped.
"""

import types
import typing
from typing import Any, TypeVar, cast

import msgspec
from msgspec import Struct

from flexd.api.errors import BadRequest, Fault, raise_faults

T = TypeVar("T", bound=Struct)

_UNIONS = (typing.Union, types.UnionType)


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object of a body; `null` is an empty one."""
    if not body.strip():
        raise BadRequest("Invalid request: a JSON object is expected in the body, which is empty (EOF)")
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"Invalid JSON in the request's body: {error}") from error
    except RecursionError as error:
        raise BadRequest("Invalid JSON in the request's body: it is nested too deeply") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest(f"Invalid request: a JSON object is expected in the body, not {_json_name(value)}")
    return value


def decode(body: bytes, kind: type[T]) -> T:
    """The body as `kind`; `InvalidInput` names each wrong member by its dotted path."""
    return from_builtins(parse_json(body), kind)


def merged(body: bytes, current: T) -> T:
    """PATCH: the members sent, put into the current value. Maps (`config`, `devices`) are merged key by key."""
    sent = parse_json(body)
    base = msgspec.to_builtins(current)
    for name, value in sent.items():
        if isinstance(value, dict) and isinstance(base.get(name), dict):
            base[name] = {**base[name], **value}
        elif value is not None:
            base[name] = value
    return from_builtins(base, type(current))


def narrow(value: Struct, kind: type[T]) -> T:
    """The members of `value` that `kind` has too: what PUT may change of what GET shows."""
    return kind(**{name: getattr(value, name) for name in kind.__struct_fields__ if hasattr(value, name)})


def from_builtins(value: dict[str, Any], kind: type[T]) -> T:
    faults: list[Fault] = []
    result = _convert(value, kind, "", faults)
    raise_faults(faults)
    return cast(T, result)


def _convert(value: Any, kind: Any, path: str, faults: list[Fault]) -> Any:
    """`value` as `kind`; on a fault notes it and returns None, which then is never used."""
    kind = _without_none(kind)
    origin = typing.get_origin(kind)
    if isinstance(kind, type) and issubclass(kind, Struct) and isinstance(value, dict):
        return _convert_struct(value, kind, path, faults)
    if origin is dict and isinstance(value, dict):
        member = typing.get_args(kind)[1]
        found = {key: _convert(v, member, _join(path, key), faults) for key, v in value.items() if v is not None}
        return {key: v for key, v in found.items() if v != ""} if path.rpartition(".")[2] == "config" else found
    if origin is list and isinstance(value, list):
        member = typing.get_args(kind)[0]
        return [_convert(v, member, _join(path, str(index)), faults) for index, v in enumerate(value)]
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        faults.append(Fault(path, str(error).replace("`", "").replace("Expected", "expected")))
        return None


def _convert_struct(value: dict[str, Any], kind: type[Struct], path: str, faults: list[Fault]) -> Struct:
    members = {
        field.name: _convert(value[field.encode_name], field.type, _join(path, field.encode_name), faults)
        for field in msgspec.structs.fields(kind)
        if value.get(field.encode_name) is not None
    }
    return kind(**members)


def _without_none(kind: Any) -> Any:
    """`X` of `X | None`: null is dropped before."""
    if typing.get_origin(kind) not in _UNIONS:
        return kind
    return next(arg for arg in typing.get_args(kind) if arg is not type(None))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _json_name(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean"}
    return names.get(type(value), "a number")
