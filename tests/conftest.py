"""What every test needs set up once."""

from __future__ import annotations

import asyncio


def pytest_configure() -> None:
    """Say that there is no event loop yet.

    Else Python 3.11 makes one as soon as the asyncio plugin asks for the current loop; nobody closes it, and its warning fails
    whichever test runs when it is collected.
    """
    asyncio.set_event_loop(None)
