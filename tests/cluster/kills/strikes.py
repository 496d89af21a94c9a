"""What is to be killed when: a file that a test writes and the controller under test reads, and one that says what was struck.

A step is a record (`flip_draining`, `grant_grow`) or the name of a call (`LiftGate`). Strikes are used up one after the other, each by
the first such step after the one before it has struck.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

CONTROLLER, AGENT = "controller", "agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """Kill one of them when a step was done.

    Attributes:
        agents: pid by agent, for a strike at the agent of the flip's bank.
    """

    step: str
    victim: str
    agents: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Struck:
    """What was killed, and when.

    Attributes:
        agent: of the bank that it was about.
        subject: of the record; `namespace/name` of the pod that a call was about.
        revision: the record's, 0 for a call.
    """

    step: str
    victim: str
    pid: int
    agent: str
    subject: str
    revision: int


class Strikes:
    """Both files, in one folder."""

    def __init__(self, folder: Path) -> None:
        self._armed, self._struck = folder / "armed.json", folder / "struck.json"

    def arm(self, strikes: Sequence[Strike]) -> None:
        """Have these strike; what was struck before is forgotten."""
        self._struck.unlink(missing_ok=True)
        _write(self._armed, [asdict(strike) for strike in strikes])

    def disarm(self) -> None:
        """Have nothing strike any more."""
        self._armed.unlink(missing_ok=True)

    def struck(self) -> list[Struck]:
        """Return what was struck since it was armed, oldest first."""
        return [Struck(**each) for each in _read(self._struck)]

    def strike_if_armed(self, step: str, *, agent: str, subject: str, revision: int = 0) -> None:
        """Kill whom this step shall kill; where that is this process it does not return."""
        armed = [Strike(**each) for each in _read(self._armed)]
        if not armed or armed[0].step != step:
            return
        strike = armed[0]
        pid = os.getpid() if strike.victim == CONTROLLER else strike.agents[agent]
        struck = Struck(step=step, victim=strike.victim, pid=pid, agent=agent, subject=subject, revision=revision)
        _write(self._struck, [*(asdict(each) for each in self.struck()), asdict(struck)])
        _write(self._armed, [asdict(left) for left in armed[1:]])
        os.kill(pid, signal.SIGKILL)


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = json.loads(path.read_text())
    except FileNotFoundError:
        return []
    return found


def _write(path: Path, value: object) -> None:
    """Write whole or not at all: who writes it may be killed at any moment."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(value))
    new.replace(path)
