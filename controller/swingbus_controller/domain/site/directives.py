"""What people order beside limits: pins, lockouts, authority, and the answers already given to request ids.

Decides nothing. Invariant: plain values with an author and a reason; a lockout outlives everything but its lifting.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """Stay as is; yields to safety. `expire_unix_s` None: until lifted."""

    bank: str
    author: str
    reason: str
    created_unix_s: float
    expire_unix_s: float | None = None

    def holds(self, now_unix_s: float) -> bool:
        """Tell whether it is still in force."""
        return self.expire_unix_s is None or now_unix_s < self.expire_unix_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Lockout:
    """Hands inside: off, never woken by software."""

    bank: str
    author: str
    reason: str
    created_unix_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A write that was carried out: a repeat with the same id and the same content answers with the same subject."""

    request_id: str
    digest: str
    subject: str
