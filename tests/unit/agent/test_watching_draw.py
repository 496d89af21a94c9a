"""What a bank draws by its devices' own word, held against its grant: never a ramp or a late report, always a real excess."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from swingbus_agent.adapters.state_store import FileStateStore
from swingbus_agent.app.steward import Steward, StewardSettings
from swingbus_agent.domain.counting import device_counted_w, feeder_w
from swingbus_agent.domain.orders import AdoptOrder, AgentOrder, BankCounting, BankOrder, Mode, PointOrder
from swingbus_agent.domain.readings import BankRound, BankSpec, Condition, DeviceSpec, Kind, PointSpec
from swingbus_agent.domain.views import DeviceView, ExecutionTimes, Verb
from swingbus_agent.ports.bank import BankReading, Taking, WriteAnswer
from tests.fakes.site_clock import VirtualClock

FULL_W, REST_W, QUARANTINE_S = 2794.0, 25.0, 60.0
NAMES = tuple(f"m{number}" for number in range(8))
SPEC = BankSpec(
    bank="asics", kind=Kind.ASIC, device_class="s19k", unit_size=1, value_fields=(), counter_fields=(), meter="",
    devices=tuple(
        DeviceSpec(device=name, model="", firmware="", serial_number="", address="", unsupported_fields=(), unit=0)
        for name in NAMES
    ),
    points=(PointSpec(point="standby", mode=Mode.STANDBY, power_w=0.0), PointSpec(point="full", mode=Mode.MINING, power_w=FULL_W)),
    workloads=(),
)  # fmt: skip
COUNTING = BankCounting(
    bank="asics", gpu_limit_ratio=1.0, asic_target_ratio=1.1, asic_boot_w=0.0, rest_w=REST_W, device_ceiling_w=3300.0,
    cooling_ratio=0.05, losses_ratio=0.01, fixed_w=500.0,
)  # fmt: skip


class Container:
    """Eight miners that obey at once and report their watts `late_s` late, and the steward of their bank."""

    def __init__(self, folder: Path, *, late_s: float = 0.0) -> None:
        self.clock = VirtualClock()
        self.late_s = late_s
        self.rests = dict.fromkeys(NAMES, False)
        self.rested_s = dict.fromkeys(NAMES, 0.0)
        self.extra_w = dict.fromkeys(NAMES, 0.0)
        self.notices: list[str] = []
        self.steward = Steward(
            StewardSettings(
                times=ExecutionTimes(verify_s=4.0, boot_s=60.0, attempts=3, backoff_max_s=10.0),
                quarantine_s=QUARANTINE_S,
                writes=True,
                shed_kw_per_s={},
            ),
            clock=self.clock,
            store=FileStateStore(folder),
            boot_id="boot-1",
        )
        self.generation = 0

    async def start(self) -> None:
        """Adopt it and let it settle with all eight mining."""
        self.look()
        await self.steward.take_adopt(
            AdoptOrder(epoch=1, controller_instance="c", marker=1, counting=(COUNTING,), ticket=self._ticket())
        )
        self.look()  # counted from here on; a ticket of before would know nothing of it
        self.clock.s += 2.0
        await self.order(full=8)
        await self.pass_s(90.0)
        assert self.is_applied() and self.allowance() == "granted"
        assert self.notices == []

    async def order(self, *, full: int) -> None:
        """Order so many to mine and the others to rest, with the grant that this needs."""
        self.generation += 1
        points = (
            PointOrder(point="full", mode=Mode.MINING, power_w=FULL_W, count=full),
            PointOrder(point="standby", mode=Mode.STANDBY, power_w=0.0, count=8 - full),
        )
        counted_w = [device_counted_w(COUNTING, Kind.ASIC, p.mode, p.power_w) for p in points for _ in range(p.count)]
        grant_w = feeder_w(COUNTING, counted_w)
        bank = BankOrder(
            bank="asics", generation=self.generation, grant_w=grant_w, device_budget_w=grant_w, points=points,
            for_instance=self.steward.instance_uid,
        )  # fmt: skip
        self.newest = AgentOrder(
            epoch=1, controller_instance="c", generation=self.generation, hash=str(self.generation), banks=(bank,),
            marker=1, ttl_s=120.0, ticket=self._ticket(),
        )  # fmt: skip
        await self.steward.take_order(self.newest)

    def _ticket(self) -> str:
        return self.steward.issue_ticket()

    def is_applied(self) -> bool:
        """Tell whether everything of the newest grant is read back."""
        return self.steward.report().banks[0].applied_generation == self.generation

    def look(self) -> None:
        """Read the bank once."""
        now_s = self.clock.s
        views = tuple(
            DeviceView(
                device=name, unit=0, condition=Condition.OK, mode=Mode.STANDBY if self.rests[name] else Mode.MINING,
                enforced_w=FULL_W, read_started_s=now_s,
                power_w=self.extra_w[name]
                + (REST_W if self.rests[name] and now_s >= self.rested_s[name] + self.late_s else FULL_W),
            )
            for name in NAMES
        )  # fmt: skip
        round_ = BankRound(bank_index=0, values=(), counters=(), conditions=(), modes=(), read_boottime_ns=())
        told = self.steward.observe(BankReading(spec=SPEC, round=round_, views=views))
        self.notices += [notice.kind for notice in told]

    async def pass_s(self, span_s: float) -> None:
        """Let time pass: a reading every 2 s, writes as planned."""
        for _ in range(int(span_s / 2.0)):
            await self.steward.take_order(replace(self.newest, ticket=self._ticket()))
            for write in self.steward.plan("asics"):
                if await self.steward.begin_write("asics", write):
                    self.rests[write.device] = write.verb is Verb.SLEEP
                    self.rested_s[write.device] = self.clock.s
                    self.steward.end_write("asics", write, WriteAnswer(taking=Taking.TAKEN))
            self.clock.s += 2.0
            self.look()

    def allowance(self) -> str:
        """Return why the bank may draw what it may."""
        return self.steward.governor.allowance("asics", self.clock.s).why


async def test_watts_reported_late_after_a_large_shed_are_not_held_against_the_bank(tmp_path: Path) -> None:
    """Seven of eight rest at once and still report full watts for 20 s: that is the past, not disobedience."""
    site = Container(tmp_path, late_s=20.0)
    await site.start()
    await site.order(full=1)
    await site.pass_s(120.0)
    assert site.is_applied()
    assert site.notices == [] and site.allowance() == "granted"


async def test_machine_that_rests_by_its_word_only_is_seen_when_its_delay_is_over(tmp_path: Path) -> None:
    """It says standby and draws on: two readings after the firmware's longest delay the bank sheds unasked."""
    site = Container(tmp_path)
    await site.start()
    site.extra_w["m7"] = FULL_W - REST_W
    await site.order(full=1)
    await site.pass_s(QUARANTINE_S - 4.0)
    assert site.notices == []
    await site.pass_s(10.0)
    assert site.notices == ["bank_shed_unasked"]
    assert site.allowance() == "trimmed"


async def test_machine_that_draws_more_without_being_written_to_is_seen_in_two_readings(tmp_path: Path) -> None:
    """Nothing was asked of it: no delay excuses it."""
    site = Container(tmp_path)
    await site.start()
    site.extra_w = dict.fromkeys(NAMES, 300.0)
    site.look()
    assert site.notices == []
    site.clock.s += 2.0
    site.look()
    assert site.notices == ["bank_shed_unasked"]


async def test_writes_to_others_do_not_hide_who_draws_more(tmp_path: Path) -> None:
    """Just after a shed of one machine the others are still taken at their word."""
    site = Container(tmp_path)
    await site.start()
    await site.order(full=7)
    await site.pass_s(4.0)
    assert site.is_applied() and site.notices == []
    site.extra_w = {name: 0.0 if site.rests[name] else 300.0 for name in NAMES}
    await site.pass_s(4.0)
    assert site.notices == ["bank_shed_unasked"]


async def test_one_reading_above_is_noise(tmp_path: Path) -> None:
    """A single spike sheds nothing."""
    site = Container(tmp_path)
    await site.start()
    for _ in range(3):
        site.extra_w = dict.fromkeys(NAMES, 300.0)
        await site.pass_s(2.0)
        site.extra_w = dict.fromkeys(NAMES, 0.0)
        await site.pass_s(2.0)
    assert site.notices == [] and site.allowance() == "granted"
