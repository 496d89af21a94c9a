"""What a changed site file means for a site that runs: which limits are other ones now, and what only a new start can take.

Decides nothing about when. Refuses to know files. Invariant: a limit that did not come from a site file (an operator's, a curtailment's) is
never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, fields, replace

from swingbus_controller.domain.power.limits import Limit
from swingbus_controller.domain.power.tree import Feeder
from swingbus_controller.domain.site.sitefile import SiteFile


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitChange:
    """A limit of a feeder is this one from now on; None: there is none of that name any more."""

    feeder: str
    name: str
    limit: Limit | None


def limit_changes(
    site: SiteFile, feeders: Collection[str], in_force: Callable[[str], Iterable[Limit]], *, others: Collection[str]
) -> list[LimitChange]:
    """Return how the limits in force come to be those that a site file declares.

    Args:
        feeders: the feeders of the site that runs; what the file says of any other one counts at the next start.
        in_force: the limits of a feeder now.
        others: names of limits that no site file set.
    """
    changes: list[LimitChange] = []
    for name in feeders:
        if name not in site.tree.feeders:
            continue
        declared = {limit.name: limit for limit in site.tree.feeder(name).limits}
        now = {limit.name: limit for limit in in_force(name) if limit.name not in others}
        changes += [
            LimitChange(feeder=name, name=limit.name, limit=limit)
            for limit in declared.values()
            if now.get(limit.name) != limit
        ]
        changes += [LimitChange(feeder=name, name=gone, limit=None) for gone in now if gone not in declared]
    return changes


def needs_start(running: SiteFile, changed: SiteFile) -> tuple[str, ...]:
    """Return the parts of a changed file that only a new start takes, as the file names them."""
    parts = [
        field.name
        for field in fields(SiteFile)
        if field.compare and field.name != "tree" and getattr(running, field.name) != getattr(changed, field.name)
    ]
    if _without_limits(running) != _without_limits(changed):
        parts.append("feeders")
    return tuple(sorted(parts))


def _without_limits(site: SiteFile) -> dict[str, Feeder]:
    return {name: replace(feeder, limits=()) for name, feeder in site.tree.feeders.items()}
