"""How lists and watts are put into sentences that an operator reads."""

from __future__ import annotations

from collections.abc import Sequence

_SHOWN_COUNT = 3


def some(names: Sequence[str], one: str, many: str) -> str:
    """Return names, of many only the first.

    >>> some(["b", "a"], "pod", "pods"), some(list("abcde"), "pod", "pods")
    ('pods b, a', '5 pods, a, b, c among them')
    """
    if len(names) > _SHOWN_COUNT:
        return f"{len(names)} {many}, {', '.join(names[:_SHOWN_COUNT])} among them"
    return f"{one if len(names) == 1 else many} {', '.join(names)}"


def kilowatts(watts: float) -> str:
    """Return watts for people.

    >>> kilowatts(1260.0)
    '1.3 kW'
    """
    return f"{watts / 1000:.1f} kW"
