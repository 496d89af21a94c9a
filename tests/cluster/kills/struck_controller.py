"""`python -m tests.cluster.kills.struck_controller FOLDER ARGS...`: the real controller's program, which kills when a test says so.

It strikes at two places: when a record is durable and nothing followed from it yet, and when the API server has carried out a call and the
mover has not heard of it. Whom it kills (itself or an agent) and at which step, `strikes` in FOLDER says. All else is the real program,
started by its own `main`; SIGKILL lets it do nothing more, as when it is killed from outside.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from swingbus_controller import clustering
from swingbus_controller import main as program
from swingbus_controller.app import engine as engine_module
from swingbus_controller.app.cluster_sights import BankSight
from swingbus_controller.app.pod_mover import PodMover
from swingbus_controller.app.recording import Recorder
from swingbus_controller.domain.cluster.pod_moves import MakeMiner, PodMove
from swingbus_controller.ports.cluster import CallAnswer, CallOutcome
from swingbus_controller.ports.journal import JournalEntry
from tests.cluster.kills.strikes import Strikes


def step_of(entry: JournalEntry, seen: Counter[tuple[str, str]]) -> str:
    """Return the step that a record is, empty for one of something else: `flip_starting`, its second `flip_starting_2`; `grant_grow`.

    Changes of caps are none of this. `seen` counts what each flip has had.
    """
    if entry.kind == "grant_issued":
        return f"grant_{entry.facts['kind']}"
    if not entry.kind.startswith("flip_") or entry.facts.get("is_mode_flip") != "true":
        return ""
    key = (entry.subject, entry.kind)
    seen[key] += 1
    return entry.kind if seen[key] == 1 else f"{entry.kind}_{seen[key]}"


def agent_of(entry: JournalEntry) -> str:
    """Return the agent of the bank that a record is about."""
    if "bank" in entry.facts:
        return entry.facts["bank"].partition("/")[0]
    return entry.subject.partition("/agents/")[2].partition("/")[0]


def plant(strikes: Strikes) -> None:
    """Put the strikes into the program."""
    seen: Counter[tuple[str, str]] = Counter()

    class StrikingRecorder(Recorder):
        def record(self, *entries: JournalEntry) -> int:
            revision = super().record(*entries)
            for entry in entries:
                if step := step_of(entry, seen):
                    strikes.strike_if_armed(step, agent=agent_of(entry), revision=revision, subject=entry.subject)
            return revision

    class StrikingMover(PodMover):
        async def _call(self, sight: BankSight, move: PodMove) -> CallOutcome:
            outcome = await super()._call(sight, move)
            if outcome.answer is CallAnswer.TAKEN:
                strikes.strike_if_armed(
                    type(move).__name__, agent=sight.model.declared.agent, subject=pod_of(sight, move)
                )
            return outcome

    vars(engine_module)["Recorder"] = StrikingRecorder
    vars(clustering)["PodMover"] = StrikingMover


def pod_of(sight: BankSight, move: PodMove) -> str:
    """Return `namespace/name` of the pod that a call is about."""
    if not isinstance(move, MakeMiner):
        return f"{move.pod.namespace}/{move.pod.name}"
    assert sight.pool is not None and sight.node is not None
    return f"{sight.pool.miner_namespace}/miner-{sight.node.name}-{move.slot}"


def main(argv: list[str]) -> int:
    """Plant the strikes, then run the real program with the arguments left."""
    plant(Strikes(Path(argv[0])))
    return program.main(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
