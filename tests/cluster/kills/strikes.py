"""What is to be killed when: files that a test writes and the controller under test reads, and one that says what was struck.

A step is a record (`flip_draining`, `grant_grow`) or the name of a call (`LiftGate`). Strikes are used up one after the other, each by
the first such step after the one before it has struck.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CONTROLLER, AGENT = "controller", "agent"


@dataclass(frozen=True, slots=True)
class Strike:
    """Kill the controller, or the agent of the bank that a step is about, when the step was done."""

    victim: str
    step: str


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
    """These files, in one folder."""

    def __init__(self, folder: Path) -> None:
        self._armed, self._struck, self._agents = (folder / f"{name}.json" for name in ("armed", "struck", "agents"))

    def arm(self, strikes: Sequence[Strike]) -> None:
        """Have these strike; what was struck before is forgotten."""
        self._struck.unlink(missing_ok=True)
        _write(self._armed, [asdict(strike) for strike in strikes])

    def name_agents(self, pids: Mapping[str, int]) -> None:
        """Say which process each agent is now."""
        _write(self._agents, dict(pids))

    def disarm(self) -> None:
        """Have nothing strike any more."""
        self._armed.unlink(missing_ok=True)

    def struck(self) -> list[Struck]:
        """Return what was struck since it was armed, oldest first."""
        return [Struck(**each) for each in _read(self._struck, [])]

    def strike_if_armed(self, step: str, *, agent: str, subject: str, revision: int = 0) -> None:
        """Kill whom this step shall kill; where that is this process it does not return."""
        armed = [Strike(**each) for each in _read(self._armed, [])]
        if not armed or armed[0].step != step:
            return
        victim = armed[0].victim
        pid = os.getpid() if victim == CONTROLLER else _read(self._agents, {})[agent]
        struck = Struck(step=step, victim=victim, pid=pid, agent=agent, subject=subject, revision=revision)
        _write(self._struck, [*(asdict(each) for each in self.struck()), asdict(struck)])
        _write(self._armed, [asdict(left) for left in armed[1:]])
        os.kill(pid, signal.SIGKILL)


def _read(path: Path, otherwise: Any) -> Any:
    return json.loads(path.read_text()) if path.exists() else otherwise


def _write(path: Path, value: object) -> None:
    """Write whole or not at all: who writes it may be killed at any moment."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(value))
    new.replace(path)
