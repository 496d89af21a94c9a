"""Plays one scenario with the real programs and a controller of the caller's choice; hands back what the judge said.

Uses the demo's runner. The judge's command line is the same whoever controls. Leaves no process, whatever happens.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swingbus_sim.demo.controller import SERVER
from swingbus_sim.demo.processes import Processes
from swingbus_sim.demo.story import Run, Story, read_json
from swingbus_sim.scenario_file import load_scenario

SCENARIOS = Path(__file__).parent / "scenarios"
RIGHT = ("-m", "swingbus_controller.main")
OVERHEAD_S = 110.0  # keys, certificates, starts and ends on a busy machine; about 20 s on an idle one


def wrong(bug: str) -> tuple[str, ...]:
    """Return the arguments of Python that start a controller with this bug planted."""
    return ("-m", "tests.e2e.wrong_controller", bug)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One run as the judge saw it, with what helps to understand it."""

    verdict: dict[str, Any]
    diary: tuple[str, ...]
    records: tuple[str, ...]
    controller_log: str
    wall_s: float

    @property
    def authorised_ws(self) -> float:
        """Return the watt-seconds over a limit that nothing but the controller explains."""
        found: float = self.verdict["over_cap_ws"]["authorised"]
        return found

    def count(self, kind: str) -> int:
        """Return how many records of a kind the controller published."""
        return sum(f"  {kind}: " in record for record in self.records)

    def told(self) -> str:
        """Return the run in words, for a failed assertion."""
        words = [f"{self.verdict.get('verdict')} after {self.wall_s:.0f} s", *map(str, self.verdict.get("reasons", []))]
        return "\n".join([*words, *self.diary, *self.records[-80:]])


async def play(
    scenario: str,
    controller: Sequence[str],
    folder: Path,
    *,
    shift: int,
    disturb: Callable[[Story], Awaitable[None]] | None = None,
) -> Judged:
    """Play tests/e2e/scenarios/SCENARIO.toml in `folder`.

    Args:
        controller: Python's arguments that start the controller.
        shift: moves every loopback address, so that runs can share the machine.
        disturb: what happens beside the scenario's own events.
    """
    began_s = time.monotonic()
    path = str(SCENARIOS / f"{scenario}.toml")
    run = Run(
        scenario=load_scenario(path, shift=shift),
        scenario_name=path,
        folder=folder / "run",
        data=None,
        shift=shift,
        processes=Processes(folder / "logs"),
    )
    story = Story(run, command=[sys.executable, *controller])
    try:
        async with asyncio.timeout(run.scenario.duration_s + OVERHEAD_S):
            await story.prepare()
            await story.start()
            async with asyncio.TaskGroup() as group:
                disturbing = [] if disturb is None else [group.create_task(_disturb(disturb, story))]
                await story.play()
                for task in disturbing:
                    task.cancel()
            await story.finish()
    finally:
        await story.close()
    assert story.watcher is not None
    left = run.processes.names()
    assert not left, f"still running: {left}"
    return Judged(
        verdict=read_json(run.folder / "verdict.json"),
        diary=tuple(f"{at_s:6.1f} s  {text}" for at_s, text in sorted(run.diary)),
        records=tuple(f"{at_s:6.1f} s  {event.kind}: {event.message}" for at_s, event in story.watcher.seen.events),
        controller_log=run.processes.log(SERVER).read_text(errors="replace"),
        wall_s=time.monotonic() - began_s,
    )


async def _disturb(disturb: Callable[[Story], Awaitable[None]], story: Story) -> None:
    await disturb(story)


async def kill_controller_after_curtailment(story: Story) -> None:
    """SIGKILL the controller one second after it answered `curtail start`; start it again on its journal."""
    while not any("curtail start" in text for _, text in story.run.diary):
        await asyncio.sleep(0.05)
    await asyncio.sleep(1.0)
    await story.controller.kill()
    story.run.note("controller killed a second after its answer")
    await asyncio.sleep(1.0)
    await story.controller.come_back()
    story.run.note("controller restarted on its journal")
