"""The fleet as it was last heard: agents, banks, meters, and what the meters see that no device admits to.

Decides liveness, feeder sums and `unattributed`. Refuses to know: grants, files, the wire. One task owns it; it changes only by
`take_*`. Invariant: nothing here turns silence into a number: a device that did not answer adds nothing to a sum, an agent that
is dark keeps its last reading with its age, and watts of unknown banks are never attributed.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from swingbus_controller.domain.fleet.frames import AgentInventory, BankFrame, BankInventory, BatchFrame
from swingbus_controller.domain.fleet.meter_view import MeterView
from swingbus_controller.domain.fleet.orders import AgentReport
from swingbus_controller.domain.site.sitefile import SiteFile

HISTORY_MAX = 256
NEAREST_S = 15.0
# Words of agent events that name a device, and what it is then called.
ACCUSATIONS: Mapping[str, str] = {
    "device_self_woke": "self_woke",
    "write_ignored": "ignored_write",
}


class Liveness(StrEnum):
    """Whether an agent is heard."""

    LIVE = "live"
    DARK = "dark"
    NEVER_SEEN = "never_seen"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Newest:
    """The newest batch seen of a spool: what is older than that is backlog."""

    sequence: int = 0
    boot_id: str = ""
    sample_boottime_s: float = 0.0
    sample_unix_s: float = 0.0

    def is_before(self, *, sequence: int, boot_id: str, sample_boottime_s: float, sample_unix_s: float) -> bool:
        """Tell whether a batch is newer than this one: by the boot's own clock, else by its number or the agent's wall clock."""
        if boot_id == self.boot_id:
            return sample_boottime_s > self.sample_boottime_s
        return sequence > self.sequence or sample_unix_s > self.sample_unix_s


@dataclass(frozen=True, slots=True, kw_only=True)
class BankReading:
    """What the sums of one bank frame are: None where no device of it said that."""

    power_w: float | None
    hashrate_ths: float | None
    answered_count: int


class PowerHistory:
    """The newest watts of a bank and when they came (controller's clock), to compare with a meter's window.

    Two columns of plain numbers: as a tuple for each reading they would be seven times as large, for every bank of a site.
    """

    __slots__ = ("_times_s", "_watts")

    def __init__(self) -> None:
        self._times_s = array("d")
        self._watts = array("d")

    def add(self, at_s: float, watts: float) -> None:
        """Take a reading in, which is newer than those before."""
        self._times_s.append(at_s)
        self._watts.append(watts)
        if len(self._times_s) > HISTORY_MAX:
            del self._times_s[0], self._watts[0]

    def mean_w(self, start_s: float, end_s: float) -> float | None:
        """Return the mean of readings within [start, end], else the nearest to its end, None where that is too far."""
        total_w, count = 0.0, 0
        # Newest first: windows are recent, so the walk is short.
        for at_s, watts in zip(reversed(self._times_s), reversed(self._watts), strict=True):
            if at_s < start_s:
                break
            if at_s <= end_s:
                total_w, count = total_w + watts, count + 1
        if count:
            return total_w / count
        nearest = min(range(len(self._times_s)), key=lambda at: abs(self._times_s[at] - end_s), default=None)
        # Banks are read every few seconds, windows may be shorter than that.
        if nearest is None or abs(self._times_s[nearest] - end_s) > NEAREST_S:
            return None
        return self._watts[nearest]


@dataclass(slots=True)
class BankView:
    """One bank behind one agent."""

    agent: str
    inventory: BankInventory
    is_managed: bool
    frame: BankFrame | None = None
    reading: BankReading | None = None
    sample_boottime_s: float = 0.0
    sample_unix_s: float = 0.0
    received_s: float | None = None
    history: PowerHistory = field(default_factory=PowerHistory)


@dataclass(slots=True)
class AgentView:
    """One agent, declared by the site file or not."""

    agent: str
    is_declared: bool
    inventory: AgentInventory | None = None
    banks: dict[str, BankView] = field(default_factory=dict)
    instance_uid: str = ""
    spool_uid: str = ""
    boot_id: str = ""
    heard_s: float | None = None  # controller's clock, of anything from it
    stored_unix_s: float | None = None
    acked_sequence: int = 0
    sample_count: int = 0
    newest_sequence: int = 0
    sample_boottime_s: float | None = None
    period_s: float = 0.0
    host_values: Sequence[float] = ()  # as they came: NaN where a reading is missing
    certificate_expire_unix_s: float | None = None
    refusal: str = ""
    report: AgentReport | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FeederReading:
    """What a feeder's meter and the devices below it say about the same stretch of time."""

    meter: str
    meter_state: str  # live, frozen, dead, disagrees, none
    metered_w: float | None
    age_s: float | None
    attributed_w: float | None

    @property
    def unattributed_w(self) -> float | None:
        """Return metered less attributed, None without a live meter."""
        if self.metered_w is None or self.meter_state != "live" or self.attributed_w is None:
            return None
        return self.metered_w - self.attributed_w


class Fleet:
    """Everything heard at one site."""

    def __init__(self, site: SiteFile, *, period_s: float) -> None:
        self.site = site
        self._period_s = period_s
        self.agents: dict[str, AgentView] = {
            name: AgentView(agent=name, is_declared=True, period_s=period_s) for name in site.agents()
        }
        self.meters: dict[str, MeterView] = {}
        for feeder, note in site.feeder_notes.items():
            spec = site.tree.feeder(feeder).meter
            if spec is not None:
                self.meters[note.meter] = MeterView(meter=note.meter, feeder=feeder, agent=note.meter_agent, spec=spec)
        self.accusations: dict[tuple[str, str, str], set[str]] = {}

    def agent(self, name: str) -> AgentView:
        """Return an agent's view, making one for an agent that the site file does not know."""
        view = self.agents.get(name)
        if view is None:
            view = self.agents[name] = AgentView(agent=name, is_declared=False, period_s=self._period_s)
        return view

    def meter_feeder(self, agent: str, meter: str) -> str:
        """Return the feeder that an agent's reading of a meter counts for; empty where the site file says otherwise."""
        view = self.meters.get(meter)
        return view.feeder if view is not None and view.agent == agent else ""

    def take_inventory(self, inventory: AgentInventory) -> None:
        """Take what an agent has; frames of devices that are still in the same rows are kept."""
        view = self.agent(inventory.agent)
        view.inventory = inventory
        banks: dict[str, BankView] = {}
        for bank in inventory.banks:
            old = view.banks.get(bank.bank)
            is_managed = self.site.bank(inventory.agent, bank.bank) is not None
            if old is not None and _has_same_rows(old.inventory, bank):
                old.inventory = bank
                banks[bank.bank] = old
            else:
                banks[bank.bank] = BankView(agent=inventory.agent, inventory=bank, is_managed=is_managed)
        view.banks = banks

    def take_batch(
        self, batch: BatchFrame, readings: Mapping[str, BankReading], *, now_s: float, unix_offset_s: float
    ) -> tuple[float, ...]:
        """Take a batch in; return for each of its meter readings the seconds that only it covers.

        Args:
            readings: sums per bank of this batch.
            now_s: controller's CLOCK_BOOTTIME.
            unix_offset_s: wall clock less this agent's CLOCK_BOOTTIME.
        """
        view = self.agent(batch.agent)
        if not batch.is_live:
            # Backlog changes no state; its readings stand alone.
            return tuple(
                max(0.0, m.window_end_boottime_s - m.window_start_boottime_s) if m.power_w is not None else 0.0
                for m in batch.meters
            )
        offset_s = now_s - batch.sample_boottime_s
        if view.boot_id == batch.boot_id and view.sample_boottime_s is not None:
            gap_s = batch.sample_boottime_s - view.sample_boottime_s
            if batch.sequence == view.newest_sequence + 1:
                view.period_s = min(60.0, max(self._period_s, gap_s))
        view.boot_id = batch.boot_id
        view.heard_s = now_s
        view.newest_sequence = batch.sequence
        view.sample_boottime_s = batch.sample_boottime_s
        view.host_values = batch.host_values
        for frame in batch.banks:
            bank = view.banks.get(frame.bank)
            if bank is None:
                continue
            bank.frame = frame
            bank.reading = readings.get(frame.bank)
            bank.sample_boottime_s = batch.sample_boottime_s
            bank.sample_unix_s = batch.sample_boottime_s + unix_offset_s
            bank.received_s = now_s
            if bank.reading is not None and bank.reading.power_w is not None:
                bank.history.add(now_s, bank.reading.power_w)
        weights: list[float] = []
        for sample in batch.meters:
            meter = self.meters.get(sample.meter)
            known = meter is not None and meter.agent == batch.agent
            weights.append(meter.take(sample, batch.boot_id, now_s, offset_s) if known and meter is not None else 0.0)
        return tuple(weights)

    def restore(
        self,
        batch: BatchFrame,
        readings: Mapping[str, BankReading],
        *,
        received_unix_s: float,
        spool_uid: str,
        sample_count: int,
        acked_sequence: int,
    ) -> None:
        """Take the newest stored batch in after a restart: known, but not heard."""
        view = self.agent(batch.agent)
        view.spool_uid = spool_uid
        view.stored_unix_s = received_unix_s
        view.sample_count = sample_count
        view.acked_sequence = acked_sequence
        view.newest_sequence = batch.sequence
        view.boot_id = batch.boot_id
        view.sample_boottime_s = batch.sample_boottime_s
        view.host_values = batch.host_values
        for frame in batch.banks:
            bank = view.banks.get(frame.bank)
            if bank is not None:
                bank.frame = frame
                bank.reading = readings.get(frame.bank)
                bank.sample_boottime_s = batch.sample_boottime_s
                bank.sample_unix_s = batch.sample_unix_s

    def take_report(self, report: AgentReport, now_s: float) -> None:
        """Take what an agent says about control; it is heard by that too."""
        view = self.agent(report.agent)
        view.report = report
        view.heard_s = now_s

    def accuse(self, agent: str, bank: str, device: str, kind: str) -> str | None:
        """Note an agent's event against a device; return the accusation if it is a new one."""
        word = ACCUSATIONS.get(kind)
        if word is None or not device:
            return None
        words = self.accusations.setdefault((agent, bank, device), set())
        if word in words:
            return None
        words.add(word)
        return word

    def liveness(self, agent: AgentView, now_s: float) -> Liveness:
        """Return whether an agent is heard: dark after three missed periods of its own."""
        if agent.refusal:
            return Liveness.REFUSED
        if agent.heard_s is None:
            return Liveness.NEVER_SEEN if agent.stored_unix_s is None else Liveness.DARK
        missed_s = self.site.protocol.dark_periods * max(agent.period_s, self._period_s)
        return Liveness.LIVE if now_s - agent.heard_s <= missed_s else Liveness.DARK

    def live_count(self, now_s: float) -> int:
        """Return how many agents are heard."""
        return sum(self.liveness(agent, now_s) is Liveness.LIVE for agent in self.agents.values())

    def banks(self) -> Iterable[BankView]:
        """Yield all banks in name order."""
        for name in sorted(self.agents):
            banks = self.agents[name].banks
            for bank in sorted(banks):
                yield banks[bank]

    def attributed_w(self, feeder: str, start_s: float, end_s: float) -> float | None:
        """Return the sum of device readings below a feeder over [start, end] of the controller's clock, losses included.

        None where no bank below it has a reading then.
        """
        total_w: float | None = None
        for declared in self.site.banks_below(feeder):
            view = self.agents.get(declared.agent)
            bank = view.banks.get(declared.bank) if view is not None else None
            mean_w = bank.history.mean_w(start_s, end_s) if bank is not None else None
            if mean_w is not None:
                total_w = (total_w or 0.0) + mean_w * self.site.tree.loss_factor(declared.feeder, feeder)
        return total_w

    def feeder_reading(self, feeder: str, now_s: float) -> FeederReading:
        """Return a feeder's newest reading with the devices' sum over the same window."""
        meter = self.meters.get(self.site.feeder_notes[feeder].meter)
        newest = meter.newest() if meter is not None else None
        if meter is None or newest is None:
            return FeederReading(
                meter=self.site.feeder_notes[feeder].meter,
                meter_state="none" if meter is None else meter.state(now_s, self.site.protocol),
                metered_w=None,
                age_s=None,
                attributed_w=self.attributed_w(feeder, now_s - 5.0, now_s),
            )
        state = meter.state(now_s, self.site.protocol)
        return FeederReading(
            meter=meter.meter,
            meter_state=state,
            metered_w=newest.power_w if state != "dead" else None,
            age_s=meter.age_s(now_s),
            attributed_w=self.attributed_w(
                feeder,
                newest.window_start_boottime_s + meter.offset_s,
                newest.window_end_boottime_s + meter.offset_s,
            ),
        )


def _has_same_rows(old: BankInventory, new: BankInventory) -> bool:
    return (
        old.value_fields == new.value_fields
        and old.counter_fields == new.counter_fields
        and [d.device for d in old.devices] == [d.device for d in new.devices]
    )
