"""A small site for tests: grid over two containers, bank `a` alone on c1, banks `b` and `c` together on c2."""

from __future__ import annotations

from swingbus_controller.domain.power.bank import BankSpec, CountingFactors, DeviceKind
from swingbus_controller.domain.power.budget import Ledger
from swingbus_controller.domain.power.budget_events import ControllerStarted, GrantIssued, JournalTrust
from swingbus_controller.domain.power.decisions import decide_adoption, decide_regrant, decide_settle
from swingbus_controller.domain.power.limits import Limit
from swingbus_controller.domain.power.protocol import ProtocolSettings
from swingbus_controller.domain.power.reports import Applied, BankReport, MeterWindow
from swingbus_controller.domain.power.settle import NotSettled, SettleReason
from swingbus_controller.domain.power.tree import Feeder, MeterSpec, PowerTree

SETTINGS = ProtocolSettings(meter_error_ratio=0.0, margin_device_count=0, margin_device_ratio=0.0, reaction_s=0.0)


def make_tree(*, grid_w: float = 1000.0, losses_ratio: float = 0.0, uncontrolled_w: float = 0.0) -> PowerTree:
    """Return grid > c1, c2; both containers metered, read by agents a and b."""
    return PowerTree(
        [
            Feeder(
                name="grid",
                limits=(Limit(name="contract", limit_w=grid_w, source="test"),),
                uncontrolled_max_w=uncontrolled_w,
            ),
            Feeder(
                name="c1", parent="grid", losses_ratio=losses_ratio, meter=MeterSpec(reader="a", energy_count_j=1.0)
            ),
            Feeder(
                name="c2", parent="grid", losses_ratio=losses_ratio, meter=MeterSpec(reader="b", energy_count_j=1.0)
            ),
        ]
    )


def make_bank(name: str, *, count: int = 5) -> BankSpec:
    """Return a GPU bank of `count` 100 W devices, 20 W host: ceiling 20 + 100 count."""
    return BankSpec(
        name=name,
        agent=name,
        feeder="c1" if name == "a" else "c2",
        kind=DeviceKind.GPU,
        device_count=count,
        device_ceiling_w=100.0,
        device_floor_w=10.0,
        factors=CountingFactors(gpu_limit_ratio=1.0),
        host_w=20.0,
        safe_share_w=50.0,
    )


class SiteDriver:
    """Plays agents and meters of the small site against a ledger, the way an engine would."""

    def __init__(
        self,
        *,
        grid_w: float = 1000.0,
        settings: ProtocolSettings = SETTINGS,
        trust: JournalTrust = JournalTrust.LOST,
        losses_ratio: float = 0.0,
        uncontrolled_w: float = 0.0,
    ) -> None:
        self.tree = make_tree(grid_w=grid_w, losses_ratio=losses_ratio, uncontrolled_w=uncontrolled_w)
        self.banks = [make_bank(name) for name in ("a", "b", "c")]
        self.ledger = Ledger(tree=self.tree, banks=self.banks, settings=settings)
        self.now_s = 100.0
        self.sequence = 0
        self.energy_j = {"c1": 0.0, "c2": 0.0}
        self.wiggle = 0.0
        self.ledger.apply(ControllerStarted(epoch=1, instance="one", boot_id="boot", trust=trust, at_s=self.now_s))

    def report(
        self,
        bank: str,
        *,
        grant: tuple[int, int, float] | None = None,
        reported_w: float | None = 40.0,
        is_lapsed: bool = False,
        is_lost: bool = False,
        applied: bool = False,
        instance: str | None = None,
    ) -> BankReport:
        """Return a report of a bank's agent under our epoch; `applied` says its grant is read back now."""
        self.sequence += 1
        epoch, generation, watts = grant or (0, 0, None)
        return BankReport(
            bank=bank,
            agent=bank,
            instance=instance or f"{bank}/1",
            sequence=self.sequence,
            boot_id=f"{bank}-boot",
            fence_epoch=self.ledger.epoch,
            fence_instance=self.ledger.instance,
            grant_epoch=epoch,
            grant_generation=generation,
            grant_w=watts,
            reported_w=watts if watts is not None and not is_lapsed else reported_w,
            is_lapsed=is_lapsed,
            is_lost=is_lost,
            applied=Applied(epoch=epoch, generation=generation, at_s=self.now_s, counted_w=watts or 0.0)
            if applied
            else None,
        )

    def hear(self, report: BankReport) -> None:
        """Hear a report and do what follows from it."""
        self.ledger.observe_report(report, self.now_s)
        for event in decide_adoption(self.ledger, report.bank, self.now_s):
            self.ledger.apply(event)

    def window(self, meter: str, watts: float, *, length_s: float = 5.0) -> MeterWindow:
        """Let time pass and return the meter's window over it (a hair of noise: live meters never repeat)."""
        start_j = self.energy_j[meter]
        self.wiggle = 0.003 - self.wiggle
        mean_w = watts + self.wiggle
        self.energy_j[meter] += mean_w * length_s
        start_s = self.now_s
        self.now_s += length_s
        return MeterWindow(
            feeder=meter,
            reader="a" if meter == "c1" else "b",
            boot_id="a-boot" if meter == "c1" else "b-boot",
            start_s=start_s,
            end_s=self.now_s,
            mean_w=mean_w,
            energy_start_j=start_j,
            energy_end_j=self.energy_j[meter],
            marker=self.ledger.marker,
        )

    def confirm(self, *banks: str) -> None:
        """Let agents report their newest grants as applied."""
        for bank in banks:
            grant = self.ledger.newest_grant(bank)
            assert grant is not None
            self.hear(self.report(bank, grant=(grant.epoch, grant.generation, grant.grant_w), applied=True))

    def confirm_adopted(self) -> None:
        """Let every agent report what it holds, and regrant whatever is due."""
        for bank in ("a", "b", "c"):
            grant = self.ledger.newest_grant(bank)
            held = (1, 1, 100.0) if grant is None else (grant.epoch, grant.generation, grant.grant_w)
            self.hear(self.report(bank, grant=held))
            event = decide_regrant(self.ledger, bank, self.now_s)
            if isinstance(event, GrantIssued):
                self.ledger.apply(event)

    def measure(self, meter: str, watts: float, *, times: int = 3) -> None:
        """Feed windows of a meter, keeping all agents heard."""
        for _ in range(times):
            self.ledger.observe_window(self.window(meter, watts), self.now_s)

    def hold(self, watts: dict[str, float]) -> None:
        """Adopt, regrant and settle all banks at these watts: HELD."""
        for bank, granted_w in watts.items():
            self.hear(self.report(bank, reported_w=granted_w, is_lapsed=True, is_lost=True))
            event = decide_regrant(self.ledger, bank, self.now_s)
            self.ledger.apply(event)  # type: ignore[arg-type]  # a refusal would fail the test here
        self.prove(watts)

    def prove(self, draws_w: dict[str, float]) -> None:
        """Let every bank apply its newest grant and the meters show these draws, then settle both groups."""
        self.confirm(*draws_w)
        self.measure("c1", 0.9 * draws_w["a"])
        self.measure("c2", 0.9 * (draws_w["b"] + draws_w["c"]))
        self.confirm(*draws_w)
        for group in ("c1", "c2"):
            event = decide_settle(self.ledger, group, self.now_s)
            if isinstance(event, NotSettled) and event.reason is SettleReason.NOTHING_OPEN:
                continue
            self.ledger.apply(event)  # type: ignore[arg-type]  # not settled would fail the test here
