"""What an agent keeps of a controller's word: the fence, the grant and how long it lasts; pure.

Decides which messages are obeyed and what the bank may draw. Knows no GPUs and no wire. Invariants, as the real agent has them: only the
newest epoch and instance are obeyed; a grant lasts from when its ticket was issued; without a living grant nothing rises; a grant that was
lost is only replaced by one made for this run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_TTL_MAX_S = 3600.0
_MARKERS_KEPT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Watts at the feeder, and who gave them."""

    epoch: int
    generation: int
    grant_w: float


class Holding:
    """One agent's word of honour. It outlives a restart (`restart`), as a disk would let it."""

    def __init__(self, instance_uid: str) -> None:
        self.instance_uid = instance_uid
        self.epoch = 0
        self.fence_instance = ""
        self.grant: Grant | None = None
        self.accepted_s = -math.inf
        self.safe_share_w = math.inf  # nobody has set one yet
        self.lease_until_s = -math.inf
        self.refusal = ""
        self.marker = 0
        self._fallen_w = math.inf
        self._fallen_s = math.inf
        self._is_lost = True
        self._tickets: dict[str, float] = {}
        self._ticket_count = 0
        self._markers: list[tuple[float, int, int]] = []

    def restart(self, instance_uid: str) -> None:
        """Begin a new run in a new boot: the grant is kept, its lease counts on a clock that is gone."""
        self.instance_uid = instance_uid
        self.lease_until_s = -math.inf
        self._tickets.clear()
        self._markers.clear()

    @property
    def is_lost(self) -> bool:
        """Whether no grant is held, so that only one made for this run is taken."""
        return self._is_lost

    def issue_ticket(self, now_s: float) -> str:
        """Return a new ticket; an answer to it is dated by now."""
        self._ticket_count += 1
        ticket = f"{self.instance_uid}.{self._ticket_count}"
        self._tickets[ticket] = now_s
        for old in [name for name, sent_s in self._tickets.items() if sent_s < now_s - 2 * _TTL_MAX_S]:
            del self._tickets[old]
        if len(self._tickets) > 1000:
            del self._tickets[next(iter(self._tickets))]
        return ticket

    def obeys(self, epoch: int, instance: str) -> bool:
        """Tell whether a controller may be obeyed, without taking it as the newest."""
        return epoch > self.epoch or (epoch == self.epoch and instance in (self.fence_instance, ""))

    def adopt(self, epoch: int, instance: str, marker: int, now_s: float) -> bool:
        """Take a controller as the newest; refuse an older one, or another of the same epoch."""
        if epoch < self.epoch or (epoch == self.epoch and instance != self.fence_instance):
            self.refusal = f"epoch {epoch} of {instance} is refused: this agent obeys epoch {self.epoch}"
            return False
        self.epoch, self.fence_instance, self.refusal = epoch, instance, ""
        self.note_marker(epoch, marker, now_s)
        return True

    def take_grant(self, grant: Grant, *, ticket: str, ttl_s: float, for_instance: str, now_s: float) -> str:
        """Take a grant of the epoch in force; return why it is refused, empty where it is taken or known already."""
        have = self.grant
        number = (grant.epoch, grant.generation)
        sent_s = self._tickets.get(ticket)
        if sent_s is None:
            return "unknown ticket"
        if have is not None and number < (have.epoch, have.generation):
            return "an older generation"
        until_s = sent_s + min(ttl_s, _TTL_MAX_S)
        if have is not None and number == (have.epoch, have.generation):
            if have.grant_w != grant.grant_w:
                return "the same generation with other watts"
            if not self.is_lapsed(now_s):
                self.lease_until_s = max(self.lease_until_s, until_s)
            return ""
        if self._is_lost and for_instance != self.instance_uid:
            return "not for this run"
        if until_s <= now_s:
            return "its time is over already"
        # Who decided this before hearing that the grant was over meant no raise: it stays over.
        is_blind = not self._is_lost and self.is_lapsed(now_s) and sent_s < self._fallen_s < math.inf
        self.grant, self.accepted_s, self._is_lost = grant, now_s, False
        if is_blind:
            self._fallen_w = min(self._fallen_w, grant.grant_w)
        else:
            self.lease_until_s = until_s
            self._fallen_w = self._fallen_s = math.inf
        return ""

    def renew(self, epoch: int, ticket: str, ttl_s: float, now_s: float) -> None:
        """Let the grant live longer; what is over stays over."""
        sent_s = self._tickets.get(ticket)
        if epoch == self.epoch and sent_s is not None and self.grant is not None and not self.is_lapsed(now_s):
            self.lease_until_s = max(self.lease_until_s, sent_s + min(ttl_s, _TTL_MAX_S))

    def is_lapsed(self, now_s: float) -> bool:
        """Tell whether no grant lives."""
        return self.grant is None or self._fallen_w < math.inf or now_s >= self.lease_until_s

    def allowed_w(self, now_s: float, known_w: float | None) -> float:
        """Return what the bank may draw at its feeder: its grant, or what it fell to, which never rises by itself."""
        if not self.is_lapsed(now_s):
            assert self.grant is not None
            return self.grant.grant_w
        grant_w = math.inf if self.grant is None else self.grant.grant_w
        fallen_w = min(grant_w, self.safe_share_w, math.inf if known_w is None else known_w)
        if fallen_w < self._fallen_w:
            self._fallen_s = now_s
            self._fallen_w = fallen_w
        return self._fallen_w

    def note_marker(self, epoch: int, marker: int, now_s: float) -> None:
        """Remember when a control message came in."""
        if epoch == self.epoch:
            self.marker = max(self.marker, marker) if self._markers and self._markers[-1][1] == epoch else marker
            self._markers.append((now_s, epoch, marker))
            del self._markers[:-_MARKERS_KEPT]

    def marker_before(self, begun_s: float) -> int:
        """Return the newest marker of this epoch that had come in by a moment; 0 where none had."""
        for received_s, epoch, marker in reversed(self._markers):
            if received_s <= begun_s and epoch == self.epoch:
                return marker
        return 0
