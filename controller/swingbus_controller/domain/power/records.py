"""Frozen dataclasses as plain JSON values and back: the one form in which decisions are journaled.

Decides nothing. Refuses to know what is recorded. Invariant: `build(kind, plain(value)) == value` for dataclasses of str, int,
float, bool, None, enums, tuples, frozensets and mappings with string keys; anything else, or an unknown field, is an error.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from decimal import Decimal
from enum import Enum
from functools import cache, partial
from typing import Any, TypeVar

from swingbus.faults import InvalidInput

T = TypeVar("T")


def plain(value: Any) -> Any:
    """Return JSON values for a dataclass (or one of its parts)."""
    kind: Any = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if isinstance(value, Enum):
        return value.value
    names = _field_names(kind)
    if names is not None:
        return {name: plain(getattr(value, name)) for name in names}
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
        made: T = _builder(typing.cast(Any, kind))(record)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InvalidInput(
            f"a damaged {kind.__name__} record ({error}): the journal is newer than this program, or was edited.",
            reason="BAD_RECORD",
        ) from error
    return made


_AS_THEY_ARE = frozenset({str, int, float, bool, types.NoneType})

# What is to be done with a value follows from its kind alone, and is worked out once: a big site records hundreds of things in a second.


@cache
def _field_names(kind: type) -> tuple[str, ...] | None:
    return tuple(f.name for f in fields(kind)) if is_dataclass(kind) else None


@cache
def _builder(kind: Any) -> Callable[[Any], Any]:
    """Return what makes a value of a kind from its JSON value; raises ValueError or TypeError for another."""
    if kind is Any:
        return _as_it_is
    if is_dataclass(kind):
        return _dataclass_builder(typing.cast(type, kind))
    if kind is Decimal or (isinstance(kind, type) and issubclass(kind, Enum)):
        return typing.cast(Callable[[Any], Any], kind)
    origin, kinds = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple or origin is frozenset:
        each = _builder(kinds[0])
        return lambda value: origin([each(item) for item in value])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        item_of = _builder(kinds[1])
        return lambda value: {key: item_of(item) for key, item in value.items()}
    if origin in (types.UnionType, typing.Union):
        other = _builder(next(option for option in kinds if option is not types.NoneType))
        return lambda value: None if value is None else other(value)
    return partial(_checked, kind)


def _dataclass_builder(kind: type) -> Callable[[Any], Any]:
    builders = {name: _builder(hint) for name, hint in typing.get_type_hints(kind).items()}

    def made(value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"{value!r} is not a record")
        if unknown := value.keys() - builders.keys():
            raise ValueError(f"unknown fields {', '.join(sorted(unknown))}")
        return kind(**{name: builders[name](item) for name, item in value.items()})

    return made


def _as_it_is(value: Any) -> Any:
    return value


def _checked(kind: type, value: Any) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind):
        raise ValueError(f"{value!r} is not a {kind.__name__}")
    return value
