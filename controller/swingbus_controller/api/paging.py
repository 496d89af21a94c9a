"""Pages: stable order, opaque tokens.

Decides where a page begins and ends. Invariant: a token only fits the list and the parent that gave it; a thing added or
removed between two pages never makes another one appear twice or not at all.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from typing import TypeVar

from swingbus.faults import InvalidInput

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
T = TypeVar("T")


def check_page_size(page_size: int) -> int:
    """Return how many to list: 0 means 100, more than 1000 means 1000. Raises InvalidInput for a negative one."""
    if page_size < 0:
        raise InvalidInput(
            f"page_size is {page_size}; give 1 to {MAX_PAGE_SIZE}, or 0 for {DEFAULT_PAGE_SIZE}.",
            reason="BAD_PAGE_SIZE",
            metadata={"field": "page_size"},
        )
    return min(page_size, MAX_PAGE_SIZE) or DEFAULT_PAGE_SIZE


def write_token(scope: str, last_key: str) -> str:
    """Return the token for the page after `last_key` of a list."""
    return base64.urlsafe_b64encode(json.dumps([scope, last_key]).encode()).decode()


def read_token(scope: str, token: str) -> str | None:
    """Return the key that a page starts after, None for the first page. Raises InvalidInput for a foreign token."""
    if not token:
        return None
    try:
        found = json.loads(base64.urlsafe_b64decode(token.encode("ascii")))
    except (ValueError, binascii.Error, RecursionError):
        found = None
    if not isinstance(found, list) or len(found) != 2 or found[0] != scope or not isinstance(found[1], str):
        raise InvalidInput(
            "page_token does not belong to this list; leave it empty to start again.",
            reason="BAD_PAGE_TOKEN",
            metadata={"field": "page_token"},
        )
    return found[1]


def cut_page(
    items: Sequence[T], key: Callable[[T], str], *, scope: str, page_size: int, page_token: str
) -> tuple[list[T], str]:
    """Return one page of items that are sorted by a unique key, and the next token (empty on the last page)."""
    size = check_page_size(page_size)
    after = read_token(scope, page_token)
    rest = [item for item in items if after is None or key(item) > after]
    page = rest[:size]
    return page, write_token(scope, key(page[-1])) if len(rest) > size else ""
