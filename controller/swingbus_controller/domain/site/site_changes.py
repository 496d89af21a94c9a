"""What a changed site file means for a site that runs: which limits are others now, which of them count already, what waits for a start.

Refuses to know files. Invariants: a limit that did not come from a site file (an operator's, a curtailment's) is never touched; while
anything that a limit leans on waits for a start, limits only fall.
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
    before: Limit | None = None

    @property
    def is_stricter(self) -> bool:
        """Whether it can only lower what a feeder may carry: a new one, or fewer watts over no longer a window."""
        if self.limit is None or self.before is None:
            return self.limit is not None
        return self.limit.limit_w <= self.before.limit_w and self.limit.window_s <= self.before.window_s


# What a limit leans on: loads and losses below it, who stands there, how they are counted, how far meters are believed.
_BASIS = frozenset({"banks", "classes", "feeder_notes", "feeders", "protocol"})


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
            LimitChange(feeder=name, name=limit.name, limit=limit, before=now.get(limit.name))
            for limit in declared.values()
            if now.get(limit.name) != limit
        ]
        changes += [
            LimitChange(feeder=name, name=gone, limit=None, before=now[gone]) for gone in now if gone not in declared
        ]
    return changes


def counting_now(
    changes: Iterable[LimitChange], running: SiteFile, changed: SiteFile, waiting: Collection[str]
) -> list[LimitChange]:
    """Return which changes count while the site runs as it was started.

    No change does where the file lacks a feeder or bank that runs: it may have been cut off. Only stricter ones do where a limit's basis
    changed too: more watts could be those that a load needs which is not counted yet.

    Args:
        waiting: the parts that wait for a start (`needs_start`).
    """
    banks = {(bank.agent, bank.bank) for bank in changed.banks}
    if not set(running.tree.feeders) <= set(changed.tree.feeders) or any(
        (bank.agent, bank.bank) not in banks for bank in running.banks
    ):
        return []
    is_basis_other = not _BASIS.isdisjoint(waiting)
    return [change for change in changes if change.is_stricter or not is_basis_other]


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
