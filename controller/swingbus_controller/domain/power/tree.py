"""The power tree: feeders, what they carry, what they lose, and which of them have a meter.

Decides: who lies above whom and how many watts at a feeder one watt below it becomes. Refuses to know: readings, grants.
Invariant: one root, no cycle, every parent known; checked once, when the tree is built.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from swingbus.faults import InvalidInput, NotFound
from swingbus_controller.domain.power.limits import Limit


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterSpec:
    """What a feeder's meter can be trusted with.

    Attributes:
        reader: name of the agent that reads it and stamps its windows.
        error_ratio, quantum_w: a reading m lies within m(1 - e) - q and m(1 + e) + q.
        lag_s, averaging_s: a window that starts at t may show the power of t - lag - averaging.
        energy_count_j: one count of its energy counter.
    """

    reader: str
    error_ratio: float = 0.01
    quantum_w: float = 1.0
    lag_s: float = 0.0
    averaging_s: float = 0.0
    energy_count_j: float = 3600.0

    def upper_w(self, mean_w: float) -> float:
        """Return the most watts that this reading can stand for."""
        return mean_w * (1.0 + self.error_ratio) + self.quantum_w

    def lower_w(self, mean_w: float) -> float:
        """Return the least watts that this reading can stand for (never below 0)."""
        return max(0.0, mean_w * (1.0 - self.error_ratio) - self.quantum_w)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feeder:
    """A node of the power tree.

    Attributes:
        losses_ratio: watts at the parent = watts here x (1 + losses_ratio).
        theta_ratio, theta_s: the overload this feeder bears and for how long (I2, I3).
        uncontrolled_max_w: rating of loads that hang on this very feeder without an agent.
        uncontrolled_step_w: dU, the largest of them that can start within T_r.
        measures_uncontrolled: whether U may come down from U_max here to what the meter leaves over: somebody vouches that
            no such load below follows what the banks do (cooling does).
    """

    name: str
    parent: str | None = None
    losses_ratio: float = 0.0
    theta_ratio: float = 1.0
    theta_s: float = 0.0
    limits: tuple[Limit, ...] = ()
    meter: MeterSpec | None = None
    uncontrolled_max_w: float = 0.0
    uncontrolled_step_w: float = 0.0
    measures_uncontrolled: bool = False


class PowerTree:
    """An immutable tree of feeders with its paths worked out."""

    def __init__(self, feeders: Iterable[Feeder]) -> None:
        self.feeders: dict[str, Feeder] = {}
        for feeder in feeders:
            if feeder.name in self.feeders:
                raise InvalidInput(f"feeder {feeder.name!r} is given twice.", reason="FEEDER_TWICE")
            if feeder.losses_ratio < 0.0 or feeder.uncontrolled_max_w < 0.0 or feeder.theta_ratio < 1.0:
                raise InvalidInput(
                    f"feeder {feeder.name!r}: losses and uncontrolled watts are 0 or more, theta 1 or more.",
                    reason="BAD_FEEDER",
                )
            self.feeders[feeder.name] = feeder
        roots = [f.name for f in self.feeders.values() if f.parent is None]
        if len(roots) != 1:
            raise InvalidInput(
                f"a power tree has one root, this one has {len(roots)} ({', '.join(roots) or 'none'}). "
                "Leave out `parent` on the grid feeder only.",
                reason="NOT_ONE_ROOT",
            )
        self.root: str = roots[0]
        # Per feeder: itself and its ancestors, each with the factor that turns watts here into watts there.
        self._paths: dict[str, tuple[tuple[str, float], ...]] = {name: self._walk_up(name) for name in self.feeders}
        self._subtrees: dict[str, frozenset[str]] = {
            name: frozenset(n for n, path in self._paths.items() if any(up == name for up, _ in path))
            for name in self.feeders
        }

    def _walk_up(self, name: str) -> tuple[tuple[str, float], ...]:
        path: list[tuple[str, float]] = []
        factor = 1.0
        here: str | None = name
        while here is not None:
            feeder = self.feeders.get(here)
            if feeder is None:
                raise InvalidInput(f"feeder {name!r}: {here!r} above it is not in the tree.", reason="UNKNOWN_PARENT")
            if any(here == up for up, _ in path):
                raise InvalidInput(f"feeder {name!r} lies above itself.", reason="FEEDER_CYCLE")
            path.append((here, factor))
            factor *= 1.0 + feeder.losses_ratio
            here = feeder.parent
        return tuple(path)

    def feeder(self, name: str) -> Feeder:
        """Return one feeder by name."""
        try:
            return self.feeders[name]
        except KeyError:
            raise NotFound(
                f"no feeder {name!r}; the tree has {', '.join(sorted(self.feeders))}.", reason="NO_SUCH_FEEDER"
            ) from None

    def path(self, name: str) -> tuple[tuple[str, float], ...]:
        """Return (feeder, loss factor) for the feeder itself, then each ancestor up to the root."""
        self.feeder(name)
        return self._paths[name]

    def subtree(self, name: str) -> frozenset[str]:
        """Return the feeder and everything below it."""
        self.feeder(name)
        return self._subtrees[name]

    def loss_factor(self, below: str, above: str) -> float:
        """Return how many watts at `above` one watt at `below` becomes."""
        for name, factor in self.path(below):
            if name == above:
                return factor
        raise InvalidInput(f"feeder {above!r} does not lie above {below!r}.", reason="NOT_AN_ANCESTOR")

    def nearest_meter(self, name: str) -> str | None:
        """Return the nearest feeder at or above this one that has a meter."""
        for up, _ in self.path(name):
            if self.feeders[up].meter is not None:
                return up
        return None

    def uncontrolled_max_w(self, name: str) -> float:
        """Return U_max seen at a feeder: the ratings of all loads below it that no agent holds, with losses."""
        total_w = 0.0
        for below in self._subtrees[name]:
            rating_w = self.feeders[below].uncontrolled_max_w
            if rating_w > 0.0:
                total_w += rating_w * self.loss_factor(below, name)
        return total_w

    def uncontrolled_step_w(self, name: str) -> float:
        """Return dU seen at a feeder: the largest uncontrolled start below it, with losses."""
        return max(
            (self.feeders[n].uncontrolled_step_w * self.loss_factor(n, name) for n in self._subtrees[name]), default=0.0
        )
