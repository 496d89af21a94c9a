"""Quantities as Kubernetes writes them (`500m`, `8`, `12Ki`, `1e3`) as exact numbers.

Decides what is a quantity. Refuses to know what it counts. Invariant: no rounding; what is no quantity is an InvalidInput, never zero.
"""

from __future__ import annotations

import re
from decimal import Decimal

from swingbus.faults import InvalidInput

_LENGTH_AT_MOST = 64
_QUANTITY = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:[eE]([+-]?[0-9]{1,2})|([KMGTPE]i|[numkMGTPE]))?")
_FACTORS = {
    **{
        suffix: Decimal(10) ** power
        for suffix, power in zip("numkMGTPE", (-9, -6, -3, 3, 6, 9, 12, 15, 18), strict=True)
    },
    **{f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", start=1)},
}
_COUNT_AT_MOST = 10**6


def parse_quantity(text: str | int | float) -> Decimal:
    """Return a quantity's value.

    >>> parse_quantity("1500m"), parse_quantity("2Ki"), parse_quantity("1E2"), parse_quantity("1E") == 10**18
    (Decimal('1.500'), Decimal('2048'), Decimal('100'), True)
    """
    shown = str(text)
    match = _QUANTITY.fullmatch(shown) if len(shown) <= _LENGTH_AT_MOST else None
    if match is None:
        raise InvalidInput(
            f"{shown[:_LENGTH_AT_MOST]!r} is not a quantity: write a number with at most one suffix (500m, 8, 12Ki, 1e3)",
            reason="BAD_QUANTITY",
            metadata={"value": shown[:_LENGTH_AT_MOST]},
        )
    number, exponent, suffix = match.groups()
    value = Decimal(number)
    if exponent is not None:
        return value * Decimal(10) ** int(exponent)
    return value * _FACTORS[suffix] if suffix else value


def parse_count(text: str | int | float) -> int:
    """Return a quantity of whole things (GPUs): half a GPU is an InvalidInput."""
    value = parse_quantity(text)
    if value != value.to_integral_value() or not 0 <= value <= _COUNT_AT_MOST:
        raise InvalidInput(
            f"{str(text)[:_LENGTH_AT_MOST]!r} is not a count: it must be whole and between 0 and {_COUNT_AT_MOST}",
            reason="BAD_QUANTITY",
            metadata={"value": str(text)[:_LENGTH_AT_MOST]},
        )
    return int(value)
