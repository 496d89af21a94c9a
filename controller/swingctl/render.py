"""How answers look: tables that fit the terminal, and JSON that stays stable.

Decides shape only; refuses to know what was asked. Tables speak kW and ages, for people. JSON holds every field of the contract under its
proto name, in canonical units, also when it is empty; it is what scripts may rely on (docs/cli.md).
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO
from urllib.parse import unquote

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from swingbus.quantities import format_hashrate, format_power, format_span

ABSENT = "-"
_GAP = "  "
_LEAST_WIDTH = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column: how it gives way when the terminal is narrow."""

    title: str
    right: bool = False  # numbers stand on the right
    wraps: bool = False  # prose: may be broken over lines
    shortens: bool = False  # ids: may lose their middle
    droppable: bool = False  # may be left out at last, which is said below the table


def render_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> str:
    """Return a table no wider than `width` characters (None: as wide as it needs)."""
    if not rows:
        return ""
    kept = list(range(len(columns)))
    widths = _fit(columns, rows, kept, width)
    dropped: list[str] = []
    while width is not None and _total(widths) > width and (gone := [i for i in kept if columns[i].droppable]):
        dropped.append(columns[gone[-1]].title)
        kept.remove(gone[-1])
        widths = _fit(columns, rows, kept, width)
    lines = []
    for row in ([c.title for c in columns], *rows):
        cells = [_cell(columns[i], row[i], widths[i]) for i in kept]
        for part in range(max(len(cell) for cell in cells)):
            texts = [cell[part] if part < len(cell) else "" for cell in cells]
            padded = [
                text.rjust(widths[i]) if columns[i].right else text.ljust(widths[i])
                for i, text in zip(kept, texts, strict=True)
            ]
            lines.append(_GAP.join(padded).rstrip())
    if dropped:
        lines.append(f"(too narrow for {', '.join(reversed(dropped))}: widen the terminal or use --output json)")
    return "\n".join(lines)


def _total(widths: Mapping[int, int]) -> int:
    return sum(widths.values()) + len(_GAP) * (len(widths) - 1)


def _fit(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], kept: Sequence[int], width: int | None
) -> dict[int, int]:
    """Return the columns' widths, the flexible ones narrowed, widest first, as far as it goes."""
    widths = {i: max(len(columns[i].title), *(len(row[i]) for row in rows)) for i in kept}
    if width is None:
        return widths
    least = {i: max(_LEAST_WIDTH, len(columns[i].title)) for i in kept}
    flexible = [i for i in kept if columns[i].wraps or columns[i].shortens]
    # Prose wraps well down to a third of a line; only then do ids lose letters, and only then does prose get narrower still.
    comfort = {i: max(least[i], 24 if columns[i].wraps else 16) for i in flexible}
    for floor in (comfort, least):
        while (excess := _total(widths) - width) > 0:
            able = [i for i in flexible if widths[i] > floor[i]]
            if not able:
                break
            widest = max(able, key=lambda i: widths[i])
            second = max((widths[i] for i in able if i != widest), default=floor[widest])
            widths[widest] -= min(excess, max(1, widths[widest] - max(second, floor[widest])))
    return widths


def _cell(column: Column, text: str, width: int) -> list[str]:
    if len(text) <= width:
        return [text]
    if column.wraps:
        return textwrap.wrap(text, width, break_long_words=True, break_on_hyphens=False) or [""]
    return [shorten(text, width)]


def shorten(text: str, width: int) -> str:
    """Return `text` with its middle replaced by … where it is longer than `width`."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return text[: width - 1 - tail] + "…" + (text[-tail:] if tail else "")


def render_facts(facts: Iterable[tuple[str, str]], width: int | None) -> str:
    """Return `name  value` lines with a hanging indent; facts without a value are left out."""
    shown = [(name, value) for name, value in facts if value]
    margin = max((len(name) for name, _ in shown), default=0) + len(_GAP)
    lines: list[str] = []
    for name, value in shown:
        room = max(20, (width or 10_000) - margin)
        parts = [piece for line in value.splitlines() for piece in (textwrap.wrap(line, room) or [""])]
        for number, part in enumerate(parts):
            lines.append(((name if number == 0 else "").ljust(margin) + part).rstrip())
    return "\n".join(lines)


def power(value: float | None) -> str:
    """Watts for people."""
    return ABSENT if value is None else format_power(value)


def hashrate(value: float | None) -> str:
    """Terahashes per second for people."""
    return ABSENT if value is None else format_hashrate(value)


def ratio(value: float | None) -> str:
    """A share as per cent."""
    return ABSENT if value is None else f"{value * 100:.1f} %"


def optional(message: Message, field: str) -> Any:
    """Return the value of an optional field, None where it is absent."""
    return getattr(message, field) if message.HasField(field) else None


def moment(message: Message, field: str, now: datetime) -> str:
    """A Timestamp field for people: UTC, with the date only where it is not today."""
    if not message.HasField(field):
        return ABSENT
    at: datetime = getattr(message, field).ToDatetime(tzinfo=UTC)
    return at.strftime("%H:%M:%SZ" if at.date() == now.date() else "%Y-%m-%d %H:%MZ")


def age(message: Message, field: str, now: datetime) -> str:
    """How long ago a Timestamp field was."""
    if not message.HasField(field):
        return ABSENT
    at: datetime = getattr(message, field).ToDatetime(tzinfo=UTC)
    return f"{format_span(max(0.0, round((now - at).total_seconds())))} ago"


def span(message: Message, field: str) -> str:
    """A Duration field for people."""
    return format_span(getattr(message, field).ToNanoseconds() / 1e9) if message.HasField(field) else ABSENT


def enum_word(message: Message, field: str) -> str:
    """An enum field without its prefix; UNRECOGNIZED_n for a number that this program does not know yet."""
    descriptor = message.DESCRIPTOR.fields_by_name[field]
    return _enum_word(descriptor, getattr(message, field))


def short_name(name: str, keep: int = 1) -> str:
    """Return the last `keep` ids of a resource name: `edge-1/s19j` of `sites/n/agents/edge-1/banks/s19j` with keep 2."""
    return unquote("/".join(name.split("/")[1::2][-keep:]))


def to_json(message: Message) -> dict[str, Any]:
    """Return a message as JSON values: proto names, canonical units, nothing left out.

    Timestamps are RFC 3339 text in UTC, Durations numbers of seconds under `{name}_s`, enums their words without prefix, absent values
    null.
    """
    table: dict[str, Any] = {}
    fields: Any = message.DESCRIPTOR.fields
    for field in fields:
        value = getattr(message, field.name)
        is_message = field.message_type is not None
        if is_message and field.message_type.GetOptions().map_entry:
            held = field.message_type.fields_by_name["value"]
            table[field.name] = {str(key): _scalar(held, value[key]) for key in sorted(value)}
        elif is_message and field.message_type.full_name == Duration.DESCRIPTOR.full_name:
            table[f"{field.name}_s"] = value.ToNanoseconds() / 1e9 if message.HasField(field.name) else None
        elif field.is_repeated:
            table[field.name] = [_scalar(field, item) for item in value]
        elif field.has_presence and not message.HasField(field.name):
            table[field.name] = None
        else:
            table[field.name] = _scalar(field, value)
    return table


def _scalar(field: Any, value: Any) -> Any:
    if isinstance(value, Timestamp):
        return value.ToDatetime(tzinfo=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, Message):
        return to_json(value)
    if field.enum_type is not None:
        return _enum_word(field, value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        return value.hex()
    return value


def _enum_word(field: Any, number: int) -> str:
    value = field.enum_type.values_by_number.get(number)
    if value is None:
        return f"UNRECOGNIZED_{number}"
    prefix = "".join("_" + c if c.isupper() else c for c in field.enum_type.name).lstrip("_").upper() + "_"
    word: str = value.name.removeprefix(prefix)
    return word


def print_json(value: object, stream: TextIO) -> None:
    """Print JSON values."""
    stream.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
