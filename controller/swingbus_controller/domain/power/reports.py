"""What agents and meters tell the ledger: observations, never journaled, forgotten at a crash.

Decides: nothing. Refuses to know: the wire. Invariant: every time in here is on the clock of the host named by
`boot_id`; the ledger compares it only with times of the same boot.
"""

from __future__ import annotations

from dataclasses import dataclass

# A marker names a moment of the controller: (epoch, count). A meter's agent echoes the newest one that it had received
# before the power behind a window began (start less lag and averaging).
Marker = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """The agent read back every device of the bank, after its last write, and they count within the grant.

    Attributes:
        at_s: when the read-back was complete, on the agent's CLOCK_BOOTTIME.
        counted_w: watts at the feeder with each device at what is enforced, unheld ones at their ceiling.
        unheld_count: devices not read back (hung, quarantined): counted at their ceiling.
    """

    epoch: int
    generation: int
    at_s: float
    counted_w: float
    unheld_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BankReport:
    """One bank in one report of its agent.

    Attributes:
        instance: names one run of the agent; `sequence` rises within it.
        fence_epoch, fence_instance: the newest controller that the agent obeys (0 and "": none yet).
        grant_epoch, grant_generation, grant_w: its durable grant (0, 0, None where it has none).
        reported_w: the most it may draw without hearing from us again; None while it does not know yet.
        is_lapsed: the grant is over or from before its loss of memory: it sheds to its safe share, never upward.
        is_lost: its durable state was missing or torn at start and no newer grant has replaced it.
        applied: None until everything is read back and no write is open.
    """

    bank: str
    agent: str
    instance: str
    sequence: int
    boot_id: str
    fence_epoch: int
    fence_instance: str
    grant_epoch: int
    grant_generation: int
    grant_w: float | None
    reported_w: float | None
    is_lapsed: bool = False
    is_lost: bool = False
    applied: Applied | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterWindow:
    """One reading of a feeder's meter, as its reader stamped it.

    Attributes:
        boot_id, start_s, end_s: the window on the reader's CLOCK_BOOTTIME.
        mean_w: mean watts over the window.
        energy_start_j, energy_end_j: the meter's own counter at both ends; None where it has none (never settles).
        product_w: V x I x pf summed over the phases, None where the meter does not tell.
        marker: newest marker received before the power behind this window began.
    """

    feeder: str
    reader: str
    boot_id: str
    start_s: float
    end_s: float
    mean_w: float
    energy_start_j: float | None
    energy_end_j: float | None
    product_w: float | None = None
    marker: Marker | None = None
