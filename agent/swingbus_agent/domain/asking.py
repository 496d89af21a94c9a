"""What one device was asked, over all orders, and how often it did not do it.

Decides: when an ask counts as ignored. Refuses to know: what is asked next and when (`execution`). Invariant: an ask counts only
by a reading that began after it had its full time, with no other write and no restart in between; a device seen where it was
asked to be owes nothing for it. So a slow device that is honest is never counted, however briefly its orders last.
"""

from __future__ import annotations

from dataclasses import dataclass

from swingbus_agent.domain.orders import Mode
from swingbus_agent.domain.readings import Kind
from swingbus_agent.domain.selection import Target
from swingbus_agent.domain.views import DeviceView

WATT_TOLERANCE_RATIO = 0.01  # firmwares round what they are asked for
WATT_TOLERANCE_W = 2.0


def is_close(watts: float | None, wanted_w: float) -> bool:
    """Tell whether watts as read back are those that were asked for."""
    return watts is not None and abs(watts - wanted_w) <= max(WATT_TOLERANCE_W, wanted_w * WATT_TOLERANCE_RATIO)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a write asks of one device, whatever order or point it comes from; `mode` None asks for a limit alone."""

    mode: Mode | None
    power_w: float

    def __str__(self) -> str:
        """Return it as a person would say it.

        >>> str(Asked(mode=Mode.STANDBY, power_w=0.0)), str(Asked(mode=Mode.MINING, power_w=2794.0))
        ('standby', 'mining at 2794 W')
        """
        if self.mode is Mode.STANDBY:
            return "standby"
        return f"{'a limit of' if self.mode is None else f'{self.mode.name.lower()} at'} {self.power_w:.0f} W"

    def is_shown(self, view: DeviceView) -> bool:
        """Tell whether a reading shows it done."""
        if self.mode is Mode.STANDBY:
            return view.mode is Mode.STANDBY
        if self.mode is not None and (view.mode is not self.mode or view.is_booting):
            return False
        return is_close(view.enforced_w, self.power_w)

    def is_denied(self, view: DeviceView) -> bool:
        """Tell whether a reading says enough to show that it is not done."""
        if self.is_shown(view) or view.is_booting:
            return False
        if self.mode is not None and view.mode is Mode.UNKNOWN:
            return False
        return self.mode is Mode.STANDBY or view.enforced_w is not None


def asked_of(kind: Kind, target: Target) -> Asked:
    """Return what a target asks of a device itself; a GPU's mode is its workload's story."""
    if kind is Kind.GPU:
        return Asked(mode=None, power_w=target.power_w)
    # Asleep, a miner draws the same at any profile.
    return Asked(mode=target.mode, power_w=0.0 if target.mode is Mode.STANDBY else target.power_w)


class AskLog:
    """The asks of one device that it did not follow, by what was asked."""

    __slots__ = ("_due_s", "_ignored", "_open")

    def __init__(self) -> None:
        self._ignored: dict[Asked, int] = {}
        self._open: Asked | None = None
        self._due_s = 0.0

    def ignored_count(self, asked: Asked) -> int:
        """Return how often this was asked and ignored since it was last seen done."""
        return self._ignored.get(asked, 0)

    def note_asked(self, asked: Asked, due_s: float) -> None:
        """Note the newest write; one before it that had not its time yet says nothing any more."""
        self._open, self._due_s = asked, due_s

    def note_ignored(self, asked: Asked, count: int) -> None:
        """Note asks that had their time in one order: each but the last was asked again because nothing was seen of it."""
        if count > self.ignored_count(asked):
            self._ignored[asked] = count

    def see(self, view: DeviceView) -> dict[Asked, int]:
        """Take in a reading that began after the newest write ended; return what is no longer ignored, with its count."""
        if self._open is not None and view.has_restarted:
            self._open = None  # a restart may lose what was asked
        if self._open is not None and view.read_started_s >= self._due_s and self._open.is_denied(view):
            self._ignored[self._open] = self.ignored_count(self._open) + 1
            self._open = None
        followed = {asked: count for asked, count in self._ignored.items() if asked.is_shown(view)}
        for asked in followed:
            del self._ignored[asked]
        if self._open is not None and self._open.is_shown(view):
            self._open = None
        return followed
