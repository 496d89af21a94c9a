"""The power tree: how devices', cooling's and loads' watts add up, with losses, to what each feeder carries.

Invariant: a node's power is (what hangs on it + its children) x (1 + its loss), taken at its upstream end.
"""

from __future__ import annotations

from collections.abc import Sequence

from swingbus_sim.scenario import Node


class PowerTree:
    """Adds watts up a tree whose nodes are listed parents first."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.names = tuple(n.name for n in nodes)
        self.index = {name: i for i, name in enumerate(self.names)}
        self._parents = tuple(-1 if n.parent is None else self.index[n.parent] for n in nodes)
        self._gains = tuple(1.0 + n.loss_ratio for n in nodes)

    def sum(self, own_w: list[float]) -> list[float]:
        """Return every node's power from what hangs directly on each; `own_w` is used up."""
        for i in range(len(own_w) - 1, -1, -1):
            own_w[i] *= self._gains[i]
            parent = self._parents[i]
            if parent >= 0:
                own_w[parent] += own_w[i]
        return own_w

    def burden(self, name: str) -> tuple[tuple[int, float], ...]:
        """Return (node index, factor) for one watt on node `name`, nearest first: losses make it more than a watt above."""
        result = []
        i = self.index[name]
        factor = 1.0
        while i >= 0:
            factor *= self._gains[i]
            result.append((i, factor))
            i = self._parents[i]
        return tuple(result)

    def below(self, name: str) -> frozenset[int]:
        """Return the indexes of `name` and everything under it."""
        inside = {self.index[name]}
        for i, parent in enumerate(self._parents):
            if parent in inside:
                inside.add(i)
        return frozenset(inside)
