"""How commands that have something half done end at a signal: by an exception, so that it is removed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from swingbus.faults import SwingbusError


@contextmanager
def leaving_at_sigterm() -> Iterator[None]:
    """Leave by SystemExit at SIGTERM, so that what is half done is removed."""
    if threading.current_thread() is not threading.main_thread():  # in a test: signals are not ours
        yield
        return
    is_told = False

    def leave(number: int, frame: FrameType | None) -> None:
        nonlocal is_told
        is_told = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would end the removing
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except SwingbusError as error:
        if is_told:  # SQLite swallowed it, and says that it was interrupted
            raise SystemExit(128 + signal.SIGTERM) from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
