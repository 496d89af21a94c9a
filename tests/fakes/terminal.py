"""A terminal and a clock for tests of swingctl."""

from __future__ import annotations

import asyncio
import io
import json
from datetime import UTC, datetime
from typing import Any, TextIO

from swingbus.clock import SystemClock
from tests.fakes.site_services import NOON


class FakeTerminal:
    """Remembers what was printed and asked; answers questions from a list."""

    def __init__(self, *, width: int | None = None, answers: tuple[str, ...] = ()) -> None:
        self.stdout, self.stderr = io.StringIO(), io.StringIO()
        self.out: TextIO = self.stdout
        self.err: TextIO = self.stderr
        self._width = width
        self._answers = list(answers)
        self.questions: list[str] = []

    @property
    def width(self) -> int | None:
        return self._width

    @property
    def is_interactive(self) -> bool:
        return bool(self._answers)

    def ask(self, question: str) -> str:
        self.questions.append(question)
        return self._answers.pop(0)

    @property
    def json(self) -> Any:
        """What was printed, parsed."""
        return json.loads(self.stdout.getvalue())


class NoonClock(SystemClock):
    """It is always noon; sleeping is short, so that polling tests are."""

    def now(self) -> datetime:
        return datetime.fromtimestamp(NOON, UTC)

    async def sleep(self, span_s: float) -> None:
        await asyncio.sleep(min(span_s, 0.02))
