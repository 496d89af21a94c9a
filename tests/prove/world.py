"""One history: a site, its faults and its controllers, from one seed, in virtual time."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from swingbus_agent.domain.governor import Governor
from swingbus_agent.domain.grant import Desired, DurableGrant, DurableState
from swingbus_controller.domain.power.budget_events import (
    BankAdopted,
    BudgetEvent,
    ControllerStarted,
    GrantIssued,
    GrantKind,
    GroupSettled,
    JournalTrust,
    SettledGrant,
)
from tests.prove.agents import AgentModel, Report
from tests.prove.engine import Crashed, Engine, Fenced
from tests.prove.judge import PATHS, Judge
from tests.prove.site import (
    CEILING_W,
    GRID,
    HOMES,
    HOST_W,
    LOWER,
    READERS,
    STEP_S,
    UPPER,
    WRITE_MAX_S,
    Bank,
    Meter,
    Network,
    Write,
    base_w,
    full_w,
)

STEPS = 90
LIMITED = (GRID, UPPER, LOWER)


@dataclass(frozen=True, slots=True)
class Wrong:
    """A planted bug: which real part is replaced by a wrong one."""

    engine: type[Engine] = Engine
    governor: type[Governor] = Governor


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge saw of one history."""

    seed: int
    authorised_ws: float
    false_confirmations: int
    outside_ws: float
    disobedient_ws: float
    growths: int
    settlements: int
    crashes: int
    tightest_ratio: float
    first: str | None

    @property
    def is_guilty(self) -> bool:
        """Tell whether a decision took the site over a limit."""
        return self.authorised_ws > 0.0


@dataclass(slots=True)
class Zombie:
    """A controller that was stopped, goes on, and cannot journal any more: it repeats what it last knew."""

    engine: Engine
    steps_left: int


class World:
    """The site, its weather and the two sides of the protocol."""

    def __init__(self, seed: int, wrong: Wrong | None = None, trace: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.wrong = wrong or Wrong()
        self.trace = trace
        self.rng = rng = random.Random(seed)
        self.now_s = 0.0
        self.banks = {name: Bank(name, rng.randint(1, 3)) for name in ("a", "b", "c", "d")}
        self.meters = {name: Meter(rng) for name in READERS}
        self.network = Network(rng, rng.choice((0.0, 0.1, 0.4)))
        self.writes: list[Write] = []
        self.truths: dict[tuple[str, str, float], float] = {}
        self.judge = Judge()
        self.false_confirmations = 0
        self.growths = 0
        self.settlements = 0
        self.crashes = 0
        self.controller_run = 0
        self.controller_boot = 0
        self.controller_zero_s = -rng.uniform(0.0, 5000.0)
        everything_w = sum(full_w(len(bank.set_w)) for bank in self.banks.values())
        idle_w = sum(base_w(len(bank.set_w)) for bank in self.banks.values())
        self.load_max_w = rng.choice((0.0, 0.0, 60.0))
        self.load_w = self.load_max_w * rng.choice((1.0, 1.0, rng.random()))
        # Demand is 1.2 to 2 times the limit; safe shares fit under the lowest limit that will ever be set (I4).
        span_w = everything_w - idle_w
        self.lowest_w = idle_w * 1.03 + self.load_max_w + span_w * 0.15
        self.limits_w: dict[str, float] = {GRID: idle_w * 1.03 + self.load_max_w + span_w * rng.uniform(0.3, 0.6)}
        for name in (UPPER, LOWER):
            if rng.random() < 0.6:
                below = [self.banks[b] for b in PATHS[name]]
                rest_w = sum(base_w(len(b.set_w)) for b in below) * 1.03
                all_w = sum(full_w(len(b.set_w)) for b in below)
                self.limits_w[name] = rest_w + (all_w - rest_w) * rng.uniform(0.5, 0.9)
        devices = sum(len(bank.set_w) for bank in self.banks.values())
        # Each history has a weather of its own: some calm, some with much of one kind.
        self.death_rate = rng.choice((0.0, 0.004, 0.015))
        self.cut_rate = rng.choice((0.0, 0.006, 0.02))
        self.heal_rate = rng.choice((0.05, 0.2))
        self.dip_rate = rng.choice((0.0, 0.03))
        self.lie_rate = rng.choice((0.0, 0.0, 0.004))
        self.crash_rate = rng.choice((0.0, 0.01, 0.05))
        self.limit_rate = rng.choice((0.01, 0.06, 0.12))
        self.agents: dict[str, AgentModel] = {}
        for bank in self.banks.values():
            share_w = (self.lowest_w - self.load_max_w) / 1.03 * len(bank.set_w) / devices
            safe_w = max(base_w(len(bank.set_w)), share_w * rng.choice((0.0, 0.6, 1.0)))
            self.agents[bank.name] = AgentModel(self, bank, safe_w, self.wrong.governor)
        self.journal: list[BudgetEvent] = []
        self.engine: Engine | None = None
        self.zombie: Zombie | None = None
        self.doomed: tuple[str, float] | None = None  # an agent that dies soon, and when
        self.engine_down_s = 0.0
        self.next_trust = JournalTrust.LOST
        self.next_epoch: int | None = None
        if rng.random() < 0.85:
            self._warm_start()

    def _warm_start(self) -> None:
        """Begin with a running site: an earlier term's grants, proven and on disk, that fit every limit."""
        grants_w = {name: base_w(len(bank.set_w)) for name, bank in self.banks.items()}
        for _ in range(self.rng.randrange(4, 20)):
            name = self.rng.choice(list(grants_w))
            before_w = grants_w[name]
            grants_w[name] = min(full_w(len(self.banks[name].set_w)), before_w + self.rng.uniform(5.0, 60.0))
            if not self._fits(grants_w):
                grants_w[name] = before_w
        self.journal.append(
            ControllerStarted(epoch=1, instance="ctl-0", boot_id="ctl-0", trust=JournalTrust.LOST, at_s=0.0)
        )
        settled: dict[str, list[SettledGrant]] = {}
        for name, watts in grants_w.items():
            agent = self.agents[name]
            grant = GrantIssued(
                bank=name,
                epoch=1,
                generation=1,
                grant_w=watts,
                kind=GrantKind.REGRANT,
                for_instance="",
                reason="warm",
                at_s=0.0,
            )
            self.journal.append(
                BankAdopted(bank=name, reported_w=watts, is_doubtful=False, agent_instance=f"{name}/1", at_s=0.0)
            )
            self.journal.append(grant)
            settled.setdefault(HOMES[name], []).append(SettledGrant(bank=name, epoch=1, generation=1, grant_w=watts))
            agent.disk = DurableState(
                boot_id=f"{name}-0",
                fence_epoch=1,
                fence_instance="ctl-0",
                grants={
                    name: DurableGrant(
                        epoch=1,
                        generation=1,
                        grant_w=watts,
                        lease_until_s=agent.clock_s(0.0) + 20.0,
                        writes_open=False,
                    )
                },
            )
            count = len(agent.bank.set_w)
            for device in range(count):
                self.banks[name].land(Write(bank=name, device=device, watts=(watts - HOST_W) / count, land_s=0.0))
            agent.start(0.0)
        for group, grants in settled.items():
            self.journal.append(GroupSettled(group=group, grants=tuple(grants), windows=(), at_s=0.0))
        self.next_trust = JournalTrust.CURRENT

    def _fits(self, grants_w: dict[str, float]) -> bool:
        for feeder, limit_w in self.limits_w.items():
            load_w = self.load_max_w if feeder == GRID else 0.0
            if sum(grants_w[b] * loss for b, loss in PATHS[feeder].items()) + load_w > limit_w:
                return False
        return True

    def controller_clock_s(self) -> float:
        """Return CLOCK_BOOTTIME of the controller's host."""
        return (self.now_s - self.controller_zero_s) * 1.0002

    def run(self) -> Verdict:
        """Live through the history and return the verdict."""
        tightest = 0.0
        for _ in range(STEPS):
            self.now_s += STEP_S
            self._weather()
            self._deliver()
            self._land_writes()
            for agent in self.agents.values():
                agent.step(self.now_s)
            self._control()
            true_w = {name: bank.true_w() for name, bank in self.banks.items()}
            obedient_w = {name: bank.obedient_w() for name, bank in self.banks.items()}
            for name, meter in self.meters.items():
                load_w = sum(true_w[b] * loss for b, loss in PATHS[name].items())
                meter.step(load_w, self.rng.uniform(-0.001, 0.001))
            loads_w = {name: self.load_w if name == GRID else 0.0 for name in LIMITED}
            self.judge.step(
                self.now_s,
                obedient_w=obedient_w,
                true_w=true_w,
                loads_w=loads_w,
                ratings_w={name: self.load_max_w if name == GRID else 0.0 for name in LIMITED},
                limits_w=self.limits_w,
                potential_w=self.potential_w,
            )
            drawn_w = sum(true_w[b] * loss for b, loss in PATHS[GRID].items()) + self.load_w
            tightest = max(tightest, min(1.0, drawn_w / self.limits_w[GRID]))
        return Verdict(
            seed=self.seed,
            authorised_ws=self.judge.authorised_ws,
            false_confirmations=self.false_confirmations,
            outside_ws=self.judge.outside_ws,
            disobedient_ws=self.judge.disobedient_ws,
            growths=self.growths,
            settlements=self.settlements,
            crashes=self.crashes,
            tightest_ratio=tightest,
            first=self.judge.first,
        )

    # What the judge may ask.

    def potential_w(self) -> dict[str, float]:
        """Return what each bank can reach without any new decision: itself, and messages and writes under way."""
        reach_w = {name: agent.potential_w() for name, agent in self.agents.items()}
        under_way = self.network.under_way()
        if self.zombie is not None:
            under_way += [(agent, self.zombie.engine.desired(agent, "")) for agent in self.zombie.engine.tickets]
        for to, message in under_way:
            if isinstance(message, Desired) and to in reach_w:
                for grant in message.grants:
                    if self._could_take(to, message.epoch, grant.generation):
                        reach_w[to] = max(reach_w[to], grant.grant_w)
        landing: dict[str, dict[int, float]] = {}
        for write in self.writes:
            if write.land_s is not None and write.watts > self.banks[write.bank].set_w[write.device]:
                devices = landing.setdefault(write.bank, {})
                devices[write.device] = max(devices.get(write.device, 0.0), write.watts)
        for name, devices in landing.items():
            bank = self.banks[name]
            risen_w = bank.full_w() + sum(watts - bank.set_w[device] for device, watts in devices.items())
            reach_w[name] = max(reach_w[name], risen_w)
        return reach_w

    def _could_take(self, agent: str, epoch: int, generation: int) -> bool:
        disk = self.agents[agent].disk
        if disk is None:
            return True
        grant = disk.grants.get(agent)
        held = (0, 0) if grant is None else (grant.epoch, grant.generation)
        return epoch >= disk.fence_epoch and (epoch, generation) > held

    def confirm_truth(self, event: GroupSettled) -> None:
        """Hold a settlement against what the meter truly carried in those windows."""
        self.settlements += 1
        bound_w = 0.0
        for grant in event.grants:
            bound_w += grant.grant_w * PATHS[event.group][grant.bank]
        reader = self.agents[READERS[event.group]]
        for window in event.windows:
            truth_w = self.truths.get((event.group, f"{reader.name}-{reader.boot}", round(window.start_s, 6)))
            if truth_w is not None and truth_w > bound_w + 1e-3 and not self.meters[event.group].lag_steps:
                self.false_confirmations += 1
                return

    # The weather.

    def _weather(self) -> None:
        rng = self.rng
        if self.doomed is not None and self.now_s >= self.doomed[1]:
            agent = self.agents[self.doomed[0]]
            self.doomed = None
            if agent.governor is not None:
                agent.die(self.now_s, 80.0)
        for agent in self.agents.values():
            chance = rng.random()
            if chance < self.death_rate:
                if agent.governor is not None:
                    agent.die(self.now_s, rng.choice((2.0, 8.0, 60.0)))
                continue
            chance -= self.death_rate
            if agent.name in self.network.cut:
                if chance < self.heal_rate:
                    self.network.cut.discard(agent.name)
                continue
            if chance < self.cut_rate:
                self.network.cut.add(agent.name)
                continue
            chance -= self.cut_rate
            if chance < self.dip_rate:
                agent.bank.is_dipping = not agent.bank.is_dipping
            elif chance < self.dip_rate + self.lie_rate:
                self._lie_or_wake(agent.bank)
        if rng.random() < 0.006:
            meter = self.meters[rng.choice(tuple(self.meters))]
            meter.frozen = not meter.frozen
        if rng.random() < self.crash_rate:
            self._kill_controller()
        if rng.random() < self.limit_rate:
            self._change_limit()
        if self.load_max_w and rng.random() < 0.1:
            # Within U_max, which the ledger counts in full: no excuse is needed.
            self.load_w = self.load_max_w * rng.choice((1.0, 1.0, rng.random()))
        if rng.random() < 0.004 and self.engine is not None:
            self._guarded(self.engine.note_disturbance)

    def _lie_or_wake(self, bank: Bank) -> None:
        device = self.rng.randrange(len(bank.set_w))
        if self.rng.random() < 0.5:
            bank.liars.symmetric_difference_update({device})
        else:
            bank.true_set_w[device] = CEILING_W

    def _change_limit(self) -> None:
        """Change a limit where the controller hears it: an unheard limit is nobody's promise."""
        engine = self.engine
        if engine is None:
            return
        feeder = self.rng.choice(tuple(self.limits_w))
        before_w = self.limits_w[feeder]
        if feeder == GRID:
            top_w = self.lowest_w * 2.2
            watts = self.rng.uniform(self.lowest_w, top_w)
        else:
            watts = before_w * self.rng.uniform(0.7, 1.25)
        self.limits_w[feeder] = watts
        engine.now_s = self.controller_clock_s()
        if watts < before_w:
            self.judge.outside_event(feeder, self.potential_w())
        self._guarded(lambda: engine.set_limit(feeder, watts))

    # Controllers.

    def _control(self) -> None:
        if self.zombie is not None:
            self._step_zombie(self.zombie)
        if self.engine is None:
            if self.now_s >= self.engine_down_s:
                self._guarded(self._start_engine)
            return
        self._guarded(self.engine.step)

    def _start_engine(self) -> None:
        self.engine = None
        trust, epoch = self.next_trust, self.next_epoch
        self.next_trust, self.next_epoch = JournalTrust.UNPROVEN, None
        self.engine = self.wrong.engine(self, self.journal, trust, epoch)

    def _guarded(self, act: Callable[[], None]) -> None:
        """Run a step of the controller that may die in it or find itself outdated."""
        try:
            act()
        except Crashed:
            self._crash()
        except Fenced as fenced:
            # Our journal is older than the site: begin above the epoch seen, trusting nothing.
            self.engine = None
            self.engine_down_s = self.now_s
            self.next_epoch = int(fenced.args[0]) + 1
            self.next_trust = JournalTrust.LOST

    def _kill_controller(self) -> None:
        """Let the controller die at one of its next checkpoints."""
        if self.engine is not None:
            self.engine.fuse = min(self.engine.fuse, self.rng.randrange(12))

    def _crash(self) -> None:
        self.crashes += 1
        dead = self.engine
        self.engine = None
        self.engine_down_s = self.now_s + self.rng.choice((0.0, 2.0, 10.0, 30.0))
        if dead is not None and self.rng.random() < 0.3:
            dead.fuse = 10**9
            if dead.unapplied is not None:
                dead.ledger.apply(dead.unapplied)
            self.zombie = Zombie(engine=dead, steps_left=self.rng.randrange(2, 15))
        if dead is not None and self.rng.random() < 0.4:
            # What kills a controller may take the agent along that it last gave watts to, a little later.
            grants = [dead.ledger.newest_grant(bank) for bank in self.banks]
            grown = [grant for grant in grants if grant is not None and grant.kind is GrantKind.GROW]
            if grown:
                last = max(grown, key=lambda grant: grant.at_s)
                self.doomed = last.bank, self.now_s + self.rng.choice((6.0, 10.0))
        if self.rng.random() < 0.2:
            self.controller_boot += 1
            self.controller_zero_s = self.now_s
        fate = self.rng.random()
        if fate < 0.12:
            self.journal = []
            self.next_trust = JournalTrust.LOST
        elif fate < 0.32:
            self._restore_old_journal()
            self.next_trust = JournalTrust.UNPROVEN
        else:
            self.journal = list(self.journal)
            self.next_trust = self.rng.choice((JournalTrust.UNPROVEN, JournalTrust.CURRENT))

    def _restore_old_journal(self) -> None:
        """Bring an older copy back; at times one that lacks just one bank's growth, whose agent dies as well.

        Nobody who is left can then tell that the copy is old, and the dead agent's machines hash on.
        """
        begin = len(self.journal)
        witness = None
        for index in range(len(self.journal) - 1, -1, -1):
            event = self.journal[index]
            if isinstance(event, ControllerStarted):
                break
            if isinstance(event, GrantIssued):
                if witness not in (None, event.bank) or event.kind is not GrantKind.GROW:
                    break
                witness, begin = event.bank, index
        if witness is not None and self.rng.random() < 0.7:
            self.journal = self.journal[:begin]
            self.agents[witness].die(self.now_s, 80.0)
        else:
            self.journal = self.journal[: self.rng.randrange(len(self.journal) + 1)]

    def _step_zombie(self, zombie: Zombie) -> None:
        """Let it answer renewals with what it last knew; it can journal nothing.

        Where it has a cut to make it must journal first: that write fails, and it exits before it sends anything.
        """
        zombie.steps_left -= 1
        if not zombie.engine.ledger.i1_holds(self.controller_clock_s()):
            self.zombie = None
            return
        for agent, ticket in zombie.engine.tickets.items():
            self.network.send(self.now_s, agent, zombie.engine.desired(agent, ticket), agent)
        if zombie.steps_left <= 0:
            self.zombie = None

    def _deliver(self) -> None:
        for to, message in self.network.arrived(self.now_s):
            if isinstance(message, Report):
                if self.engine is not None:
                    self.engine.inbox.append(message)
                if self.zombie is not None:
                    self.zombie.engine.tickets[message.agent] = message.ticket
            elif self.agents[to].governor is not None:
                self.agents[to].inbox.append(message)

    def _land_writes(self) -> None:
        still: list[Write] = []
        for write in self.writes:
            if write.land_s is None:
                continue
            if write.land_s <= self.now_s + STEP_S / 2:
                self.banks[write.bank].land(write)
            else:
                still.append(write)
        self.writes = still


def run_history(seed: int, wrong: Wrong | None = None, trace: Callable[[str], None] | None = None) -> Verdict:
    """Return the verdict on one seed; the same seed is the same history to the last bit."""
    return World(seed, wrong, trace).run()


__all__ = ["WRITE_MAX_S", "GrantIssued", "Verdict", "World", "Wrong", "run_history"]
