"""Frozen dataclasses as plain JSON values and back: the one form in which decisions are journaled.

Decides nothing. Refuses to know what is recorded. Invariant: `build(kind, plain(value)) == value` for dataclasses of str, int,
float, bool, None, enums, tuples, frozensets and mappings with string keys; anything else, or an unknown field, is an error.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from decimal import Decimal
from enum import Enum
from functools import cache
from typing import Any, TypeVar

from swingbus.faults import InvalidInput

T = TypeVar("T")


def plain(value: Any) -> Any:
    """Return JSON values for a dataclass (or one of its parts)."""
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, frozenset):
        return sorted(plain(item) for item in value)
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Decimal):
        return str(value)
    return value


def build(kind: type[T], record: Any) -> T:
    """Return the dataclass that `plain` wrote; raise InvalidInput for anything else."""
    try:
        made: T = _build(kind, record)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(
            f"a damaged {kind.__name__} record ({error}): the journal is newer than this program, or was edited.",
            reason="BAD_RECORD",
        ) from error
    return made


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _build(kind: Any, value: Any) -> Any:
    if kind is Any:
        return value
    if is_dataclass(kind):
        hints = _hints(typing.cast(type, kind))
        unknown = set(value) - set(hints)
        if unknown:
            raise ValueError(f"unknown fields {', '.join(sorted(unknown))}")
        make: Any = kind
        return make(**{name: _build(hints[name], item) for name, item in value.items()})
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if kind is Decimal:
        return Decimal(value)
    origin = typing.get_origin(kind)
    if origin is tuple:
        return tuple(_build(typing.get_args(kind)[0], item) for item in value)
    if origin is frozenset:
        return frozenset(_build(typing.get_args(kind)[0], item) for item in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {key: _build(typing.get_args(kind)[1], item) for key, item in value.items()}
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _build(next(option for option in typing.get_args(kind) if option is not types.NoneType), value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind):
        raise ValueError(f"{value!r} is not a {kind.__name__}")
    return value
