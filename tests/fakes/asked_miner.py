"""A bank of one miner in virtual time: what execution asks of it, and what an honest, slow or lying one makes of that."""

from __future__ import annotations

from swingbus_agent.domain.execution import BankExecution
from swingbus_agent.domain.orders import BankCounting, Mode
from swingbus_agent.domain.readings import BankSpec, Condition, DeviceSpec, Kind, PointSpec
from swingbus_agent.domain.selection import Target
from swingbus_agent.domain.views import DeviceView, ExecutionTimes, Notice, Verb

FULL = Target(point="full", mode=Mode.MINING, power_w=2794.0)
LOW = Target(point="low", mode=Mode.MINING, power_w=1657.0)
REST = Target(point="standby", mode=Mode.STANDBY, power_w=0.0)
TIMES = ExecutionTimes(verify_s=15.0, boot_s=120.0, attempts=3, backoff_max_s=60.0)
_ANSWER_S = 0.1  # a write takes its time: a reading that began with it is not later
_COUNTING = BankCounting(
    bank="asics", gpu_limit_ratio=1.0, asic_target_ratio=1.1, asic_boot_w=0.0, rest_w=25.0, device_ceiling_w=3300.0,
    cooling_ratio=0.0, losses_ratio=0.0, fixed_w=0.0,
)  # fmt: skip


class AskedMiner:
    """One miner and the execution that asks it, ticked once a second and read every `period_s`.

    Args:
        sleep_s: from an answered sleep to rest; None: it says yes and hashes on.
        boot_s: from an answered wake to hashing.
        set_s: from an answered profile to its being in force.
        period_s: between two readings.
    """

    def __init__(
        self, *, sleep_s: float | None = 3.0, boot_s: float = 60.0, set_s: float = 2.0, period_s: float = 5.0
    ) -> None:
        self.sleep_s, self.boot_s, self.set_s, self.period_s = sleep_s, boot_s, set_s, period_s
        self.mode = Mode.MINING
        self.power_w = FULL.power_w
        self.asked: list[tuple[float, Verb]] = []
        self.notices: list[Notice] = []
        self.now_s = 100.0
        self._booted_s = 0.0
        self._has_restarted = False
        self._coming: dict[str, tuple[float, Mode | float]] = {}
        spec = BankSpec(
            bank="asics", kind=Kind.ASIC, device_class="s19k", unit_size=1, value_fields=(), counter_fields=(), meter="",
            devices=(DeviceSpec(device="m", model="", firmware="", serial_number="", address="", unsupported_fields=(), unit=0),),
            points=tuple(PointSpec(point=t.point, mode=t.mode, power_w=t.power_w) for t in (REST, LOW, FULL)), workloads=(),
        )  # fmt: skip
        self.execution = BankExecution(spec, TIMES)
        self._look()

    @property
    def named(self) -> list[str]:
        """Return the kinds of what was told."""
        return [notice.kind for notice in self.notices]

    def restart(self) -> None:
        """Let its uptime start over."""
        self._has_restarted = True
        self._coming.clear()

    def order(self, target: Target | None, lasts_s: int) -> None:
        """Ask for a target for so long."""
        for _ in range(lasts_s):
            self.execution.aim({} if target is None else {"m": target})
            for write in self.execution.plan(_COUNTING, self.now_s):
                self.asked.append((self.now_s, write.verb))
                self.execution.note_sent(write)
                self._take(write.verb, write.target)
                answered_s = self.now_s + _ANSWER_S
                self.notices += self.execution.note_answered(write, was_taken=True, now_s=answered_s)
            self.now_s += 1.0
            self._move()
            if self.now_s % self.period_s < 1.0:
                self._look()

    def _take(self, verb: Verb, target: Target) -> None:
        if verb is Verb.SLEEP and self.sleep_s is not None:
            self._coming["mode"] = (self.now_s + self.sleep_s, Mode.STANDBY)
        elif verb is Verb.WAKE:
            self._coming.pop("mode", None)
            self.mode, self._booted_s = Mode.MINING, self.now_s + self.boot_s
        elif verb is Verb.SET_POWER:
            self._coming["watts"] = (self.now_s + self.set_s, target.power_w)

    def _move(self) -> None:
        for what, (due_s, value) in list(self._coming.items()):
            if self.now_s >= due_s:
                del self._coming[what]
                if isinstance(value, Mode):
                    self.mode = value
                else:
                    self.power_w = value

    def _look(self) -> None:
        view = DeviceView(
            device="m", unit=0, condition=Condition.OK, mode=self.mode, enforced_w=self.power_w,
            read_started_s=self.now_s, is_booting=self.mode is Mode.MINING and self.now_s < self._booted_s,
            has_restarted=self._has_restarted,
        )  # fmt: skip
        self._has_restarted = False
        self.notices += self.execution.observe([view], [], self.now_s)
