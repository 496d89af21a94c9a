"""Read a parsed TOML table strictly: every key has a type and a range, unknown keys are refused, all errors come at once.

Decides: whether a table says what its reader expects. Refuses to know: files and what the values are for. Invariant: a value
is returned only if it is right; else a fault is noted with its path and a harmless value of the right type stands in until
`raise_if_faulty` ends the reading.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

from swingbus.faults import InvalidInput

T = TypeVar("T")
ID = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")


@dataclass(slots=True)
class Faults:
    """What is wrong with one document, and every key that its readers know (paths with `[]` for lists)."""

    messages: list[str] = field(default_factory=list)
    known_keys: set[str] = field(default_factory=set)

    def note(self, path: str, what: str) -> None:
        """Note one fault: where, and what with its next step."""
        self.messages.append(f"{path}: {what}" if path else what)

    def raise_if_faulty(self, title: str) -> None:
        """Raise one `InvalidInput` that lists every fault."""
        if not self.messages:
            return
        count = len(self.messages)
        lines = "\n".join(f"  - {message}" for message in self.messages)
        raise InvalidInput(
            f"{title} has {count} {'fault' if count == 1 else 'faults'}:\n{lines}",
            reason="BAD_CONFIGURATION",
            metadata={"fault_count": str(count), "first": self.messages[0]},
        )


class StrictTable:
    """One table: ask for each key once, then `finish`."""

    def __init__(self, values: Mapping[str, Any], faults: Faults, path: str = "", pattern: str = "") -> None:
        self._values = values
        self._faults = faults
        self._path = path
        self._pattern = pattern
        self._asked: list[str] = []

    @property
    def path(self) -> str:
        """Where this table is in its document."""
        return self._path

    def has(self, key: str) -> bool:
        """Tell whether a key is given."""
        return key in self._values

    def keys(self) -> tuple[str, ...]:
        """Return the keys that are given, in their order."""
        return tuple(self._values)

    def fault(self, key: str, what: str) -> None:
        """Note that a key's value is wrong in a way that only its reader can tell."""
        self._faults.note(self._at(key), what)

    def text(self, key: str, default: str | None = None, *, choices: Collection[str] = ()) -> str:
        """Return a string; without a default it is required."""
        value = self._take(key)
        if value is None:
            return self._missing(key, default, "")
        if not isinstance(value, str) or not value.strip():
            return self._wrong(key, value, "a string that is not empty", default or "")
        if choices and value not in choices:
            near = difflib.get_close_matches(value, list(choices), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            self.fault(key, f"{value!r} is none of {', '.join(sorted(choices))}{hint}")
            return default or ""
        return value

    def name(self, key: str, default: str | None = None) -> str:
        """Return a short id: lower-case letters, digits, `-`, `.`, `_`, at most 63."""
        value = self.text(key, default)
        if value and not ID.fullmatch(value):
            self.fault(key, f"{value!r} is not a name; use 1 to 63 of a-z, 0-9, '-', '.', '_', ends a letter or digit")
            return default or ""
        return value

    def number(
        self, key: str, default: float | None = None, *, low: float = -math.inf, high: float = math.inf
    ) -> float:
        """Return a finite number within [low, high]; without a default it is required."""
        value = self._take(key)
        if value is None:
            return self._missing(key, default, 0.0)
        return self._number(key, value, low, high, default if default is not None else 0.0)

    def optional_number(self, key: str, *, low: float = -math.inf, high: float = math.inf) -> float | None:
        """Return a finite number within [low, high], or None where the key is absent."""
        value = self._take(key)
        return None if value is None else self._number(key, value, low, high, 0.0)

    def _number(self, key: str, value: Any, low: float, high: float, stand_in: float) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            return self._wrong(key, value, "a finite number", stand_in)
        if not low <= value <= high:
            span = f"at least {low:g}" if math.isinf(high) else f"between {low:g} and {high:g}"
            self.fault(key, f"{value!r} is out of range: {span}")
            return stand_in
        return float(value)

    def count(self, key: str, default: int | None = None, *, low: int = 0, high: int = 1_000_000) -> int:
        """Return a whole number within [low, high]; without a default it is required."""
        value = self._take(key)
        if value is None:
            return self._missing(key, default, low)
        if isinstance(value, bool) or not isinstance(value, int):
            return self._wrong(key, value, "a whole number", low)
        if not low <= value <= high:
            self.fault(key, f"{value} is out of range: between {low} and {high}")
            return low
        return value

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Return true or false; without a default it is required."""
        value = self._take(key)
        if value is None:
            return self._missing(key, default, False)
        return value if isinstance(value, bool) else self._wrong(key, value, "true or false", False)

    def moment(self, key: str) -> datetime:
        """Return a required instant: a TOML date-time with an offset."""
        value = self._take(key)
        stand_in = datetime.fromisoformat("2000-01-01T00:00:00+00:00")
        if value is None:
            return self._missing(key, None, stand_in)
        if not isinstance(value, datetime) or value.utcoffset() is None:
            return self._wrong(key, value, "a date-time with an offset, such as 2026-11-01T00:00:00Z", stand_in)
        if value - stand_in < timedelta(0):
            self.fault(key, f"{value.isoformat()} is before the year 2000")
            return stand_in
        return value

    def optional_moment_s(self, key: str) -> float | None:
        """Return an instant in Unix seconds, or None where the key is absent."""
        if not self.has(key):
            self._take(key)
            return None
        return self.moment(key).timestamp()

    def texts(self, key: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return a list of strings."""
        value = self._take(key)
        if value is None:
            return default
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            return self._wrong(key, value, "a list of strings", default)
        return tuple(value)

    def decimal(self, key: str, default: str | None = None) -> str:
        """Return money as a decimal string (never a float): '62.50'."""
        value = self._take(key)
        if value is None:
            return self._missing(key, default, "0")
        if not isinstance(value, str) or not re.fullmatch(r"-?\d{1,12}(\.\d{1,12})?", value):
            return self._wrong(key, value, "a decimal number in quotes, such as '62.50'", default or "0")
        return value

    def table(self, key: str) -> StrictTable:
        """Return a table inside this one; an absent one is empty."""
        value = self._take(key)
        if value is not None and not isinstance(value, Mapping):
            value = self._wrong(key, value, f"a table [{self._at(key)}]", {})
        return StrictTable(value or {}, self._faults, self._at(key), self._like(key))

    def tables(self, key: str) -> tuple[StrictTable, ...]:
        """Return a list of tables `[[key]]`; an absent one is empty."""
        value = self._take(key)
        if value is None:
            # Its keys are not visited; the reader's own documentation test uses a file that has them all.
            return ()
        if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
            value = self._wrong(key, value, f"a list of tables [[{self._at(key)}]]", [])
        return tuple(
            StrictTable(item, self._faults, f"{self._at(key)}[{self._label(item, index)}]", f"{self._like(key)}[]")
            for index, item in enumerate(value)
        )

    def finish(self) -> None:
        """Refuse every key that nobody asked for, with the nearest one that exists."""
        for key in self._values:
            if key in self._asked:
                continue
            near = difflib.get_close_matches(key, self._asked, n=1, cutoff=0.5)
            known = ", ".join(sorted(self._asked)) or "none"
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {known}"
            self._faults.note(self._at(key), f"unknown key; {hint}")

    def _take(self, key: str) -> Any:
        self._asked.append(key)
        self._faults.known_keys.add(self._like(key))
        return self._values.get(key)

    def _at(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def _like(self, key: str) -> str:
        return f"{self._pattern}.{key}" if self._pattern else key

    @staticmethod
    def _label(item: Mapping[str, Any], index: int) -> str:
        for key in ("name", "bank", "signal", "point"):
            if isinstance(item.get(key), str):
                return str(item[key])
        return str(index)

    def _missing(self, key: str, default: T | None, stand_in: T) -> T:
        if default is not None:
            return default
        self.fault(key, "is missing; it has no default")
        return stand_in

    def _wrong(self, key: str, value: object, wanted: str, stand_in: T) -> T:
        self.fault(key, f"{value!r} is not {wanted}")
        return stand_in


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # TOML's whole numbers have as many digits as somebody types
        return False
