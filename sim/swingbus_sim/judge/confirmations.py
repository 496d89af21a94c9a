"""Checks what the controller says is proven against what was true at that instant.

A confirmation is one JSON object a line, with `at_s` (scenario seconds) or `boottime_s`, and `kind`:
- "settled": {"node", "claimed_w"}: the group at `node` can draw at most `claimed_w` (the sum of its grants). False if its true 1 s mean
  was above it, or if its machines' present states allow more (a drop that nobody commanded proves nothing).
- "curtailed": {"node", "claimed_w"}: the node's true 1 s mean was at most `claimed_w`.
- "mode": {"group", "mode", "count"}: at least `count` devices of the group (miner group, host or agent) were in MINING, INFERENCE or
  STANDBY.
Machines that began to disobey less than a reaction time ago are not held against it: nobody could have seen them yet. Nor are those whose
supply failed under `UNSEEN_S` before it was said: they count as they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swingbus.faults import InvalidInput

TOLERANCE_RATIO = 0.002
TOLERANCE_W = 20.0
UNSEEN_S = 2.0
"""After a supply fails: one reading of a meter and its way to whoever decides."""
_LETTERS = {"MINING": "MG", "INFERENCE": "I", "STANDBY": "SD"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Second:
    """One second of truth, kept for the confirmations; watts by node."""

    mean_w: tuple[float, ...]
    potential_w: tuple[float, ...]
    young_w: tuple[float, ...]
    states: str
    young_devices: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """Devices that went out together for want of supply: when, and the letter that each had just before."""

    started_s: float
    before: Mapping[int, str]


class ConfirmationCheck:
    """The seconds of one run and the names in its header."""

    def __init__(self, nodes: Sequence[str], groups: Mapping[str, Sequence[int]], t0_boottime_s: float) -> None:
        self._nodes = {name: i for i, name in enumerate(nodes)}
        self._groups = groups
        self._t0_s = t0_boottime_s
        self.seconds: list[Second] = []
        self.last: Second | None = None  # the part of a second that the run ended in; only modes are held against it
        self.outages: list[Outage] = []

    def check(self, raw: Mapping[str, Any], *, line: int) -> str | None:
        """Return why a confirmation is false, None where it is true.

        Raises:
            InvalidInput: a key is missing, unknown or outside the run.
        """
        try:
            at_s = float(raw["at_s"]) if "at_s" in raw else float(raw["boottime_s"]) - self._t0_s
            kind = raw["kind"]
            if kind in ("settled", "curtailed"):
                node = self._nodes[raw["node"]]
                claimed_w = float(raw["claimed_w"])
            elif kind == "mode":
                members = self._groups[raw["group"]]
                letters = _LETTERS[raw["mode"]]
                count = int(raw["count"])
            else:
                raise InvalidInput(f"confirmation {line}: kind {kind!r} is unknown; it is settled, curtailed or mode")
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"confirmation {line}: {error!r} is missing or unknown in {dict(raw)!r}") from error
        index = int(at_s) - 1
        if not 0 <= index < len(self.seconds):
            raise InvalidInput(f"confirmation {line}: {at_s:.1f} s lies outside the run's {len(self.seconds)} s")
        if kind == "mode":
            return self._check_mode(at_s, members, letters, count, str(raw["mode"]))
        return self._check_watts(index, node, claimed_w, str(raw["node"]), counts_potential=kind == "settled")

    def _check_watts(self, index: int, node: int, claimed_w: float, name: str, *, counts_potential: bool) -> str | None:
        second = self.seconds[index]
        allowed_w = claimed_w * (1.0 + TOLERANCE_RATIO) + TOLERANCE_W + second.young_w[node]
        if second.mean_w[node] > allowed_w:
            return f"{name} drew {second.mean_w[node]:.0f} W, claimed {claimed_w:.0f} W"
        if counts_potential and second.potential_w[node] > allowed_w:
            return (
                f"{name} drew {second.mean_w[node]:.0f} W but its machines may draw {second.potential_w[node]:.0f} W, "
                f"claimed {claimed_w:.0f} W"
            )
        return None

    def _check_mode(self, at_s: float, members: Sequence[int], letters: str, count: int, mode: str) -> str | None:
        index, best = int(at_s) - 1, 0
        before: dict[int, str] = {}
        for outage in self.outages:
            if 0.0 <= at_s - outage.started_s < UNSEEN_S:
                before |= outage.before
        seconds = self.seconds[index : index + 3]
        if self.last is not None and len(seconds) < 3:
            seconds.append(self.last)
        for second in seconds:
            found = sum(1 for m in members if before.get(m, second.states[m]) in letters or m in second.young_devices)
            best = max(best, found)
        if best < count:
            return f"{best} of {count} devices were in {mode}"
        return None
