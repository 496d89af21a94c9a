"""An agent under orders: real loops, real miner protocols, a scripted controller over real gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from swingbus.link.v1alpha import link_pb2
from swingbus_agent.running import Agent
from swingbus_sim.ports import AsicState, NetworkFault
from tests.fakes.agent_site import (
    BANK,
    adoption,
    bank_desired,
    counted_grant_w,
    running_agent,
    served_miners,
    settings_for,
)
from tests.fakes.miners import FakeAsic
from tests.fakes.scripted_controller import ScriptedController, desired_state, until


@dataclass
class Site:
    """Everything that a test looks at."""

    controller: ScriptedController
    asics: dict[str, FakeAsic]
    hosts: dict[str, str]
    folder: Path

    def states(self) -> list[AsicState]:
        """Return what the miners really do."""
        return [asic.state for asic in self.asics.values()]

    def resting(self) -> int:
        """Return how many miners sleep."""
        return self.states().count(AsicState.SLEEPING)

    def instance(self) -> str:
        """Return the run of the agent that reports."""
        return self.controller.newest.instance_uid

    @asynccontextmanager
    async def agent(self, **extra: object) -> AsyncIterator[Agent]:
        """Run the agent."""
        settings = settings_for(self.folder, self.controller.endpoint, self.hosts, **extra)  # type: ignore[arg-type]
        async with running_agent(settings) as agent:
            yield agent

    async def adopted(self, epoch: int = 1) -> None:
        """Adopt the agent and wait until it has counted its bank."""
        self.controller.adopt = adoption(epoch)
        self.controller._wake.set()
        await until(
            lambda: (
                bool(self.controller.reports)
                and self.controller.newest.epoch == epoch
                and bool(self.controller.newest.banks)
                and self.controller.bank(BANK).counted_power_w > 0
            ),
            "the agent adopts and counts",
        )

    def want(self, generation: int, *, epoch: int = 1, ttl_s: float = 20.0, **bank: object) -> None:
        """Send an order for the bank."""
        desired = bank_desired(generation=generation, for_instance=self.instance(), **bank)  # type: ignore[arg-type]
        self.controller.send(desired_state([desired], epoch=epoch, generation=generation, ttl_s=ttl_s))

    async def applied(self, generation: int) -> None:
        """Wait for Applied."""
        await until(
            lambda: self.controller.bank(BANK).applied_generation == generation, f"generation {generation} is applied"
        )


@asynccontextmanager
async def a_site(folder: Path, count: int = 4) -> AsyncIterator[Site]:
    """Serve miners and a controller."""
    async with served_miners(count) as (asics, hosts), ScriptedController().serve() as controller:
        yield Site(controller, asics, hosts, folder)


async def test_adoption_fences_the_agent_and_changes_no_watts(tmp_path: Path) -> None:
    """After Adopt the epoch is durable, every miner hashes on and the bank is counted."""
    async with a_site(tmp_path) as site, site.agent():
        await site.adopted(epoch=7)
        assert site.controller.newest.fence_instance == "ctl-1"
        assert site.controller.bank(BANK).is_lost
        assert all(not asic.commands for asic in site.asics.values())
        assert b'"fence_epoch": 7' in (tmp_path / "agent" / "grants.json").read_bytes()


async def test_order_rests_the_ordered_number_and_is_applied(tmp_path: Path) -> None:
    """Two of four shall rest: exactly two sleep, Applied comes from readings, counted watts fit the grant."""
    async with a_site(tmp_path) as site, site.agent():
        await site.adopted()
        site.want(1, full=2, rest=2)
        await site.applied(1)
        assert site.resting() == 2
        bank = site.controller.bank(BANK)
        assert bank.held_count == 4 and not bank.stragglers and not bank.has_in_flight
        assert bank.counted_power_w <= counted_grant_w(full=2, rest=2)
        assert {(point.point, point.count) for point in bank.observed} == {("default", 2), ("standby", 2)}
        assert site.controller.newest.refusal == ""
        site.want(2, full=3, rest=1)
        await site.applied(2)
        assert site.resting() == 1
        assert sum(len(asic.commands) for asic in site.asics.values()) == 3  # nobody was moved in vain


async def test_profile_is_set_and_read_back(tmp_path: Path) -> None:
    """A lower operating point is a profile of the firmware, held when the miner names it."""
    async with a_site(tmp_path, count=2) as site, site.agent():
        await site.adopted()
        site.want(1, low=2)
        await site.applied(1)
        assert [asic.profile for asic in site.asics.values()] == ["410MHz", "410MHz"]


async def test_liar_is_named_and_another_rests_in_its_place(tmp_path: Path) -> None:
    """A miner that says yes and hashes on is named after three tries; the ordered number rests all the same."""
    async with a_site(tmp_path) as site, site.agent():
        site.asics["m1"].ignores_sleep = True
        await site.adopted()
        site.want(1, full=1, rest=3)
        await until(lambda: site.resting() == 3, "three others rest")
        await site.applied(1)
        assert site.asics["m1"].state is AsicState.MINING
        events = [e for batch in site.controller.batches.values() for e in batch.events if e.kind == "write_ignored"]
        assert {event.device for event in events} <= {"m1"}
        # Only if m1 was among the chosen does it have a chance to lie.
        assert bool(events) == (len(site.asics["m1"].commands) > 0)


async def test_self_waker_is_caught_again_and_named(tmp_path: Path) -> None:
    """A miner that wakes without being asked is put back to rest and named."""
    async with a_site(tmp_path) as site, site.agent():
        await site.adopted()
        site.want(1, full=2, rest=2)
        await site.applied(1)
        sleeper = next(asic for asic in site.asics.values() if asic.state is AsicState.SLEEPING)
        sleeper.wake(0.0)
        sleeper.commands.clear()
        await until(lambda: "sleep" in sleeper.commands, "it is put back to rest")
        await until(
            lambda: any(
                event.kind == "device_self_woke" and event.device == sleeper.name
                for batch in site.controller.batches.values()
                for event in batch.events
            ),
            "it is named",
        )
        await site.applied(1)


async def test_bad_orders_are_refused_and_the_good_one_stays(tmp_path: Path) -> None:
    """A wrong hash, a wrong count and an unknown bank are refused with reasons; the session goes on."""
    async with a_site(tmp_path) as site, site.agent():
        await site.adopted()
        site.want(1, full=3, rest=1)
        await site.applied(1)
        broken = desired_state(
            [bank_desired(generation=2, for_instance=site.instance(), full=0, rest=4)], epoch=1, generation=2
        )
        broken.hash = "0" * 64
        site.controller.send(broken)
        await until(lambda: "hash" in site.controller.newest.refusal, "the hash is refused")
        site.want(3, full=1, rest=1)
        await until(lambda: "4" in site.controller.newest.refusal, "the count is refused")
        stranger = link_pb2.BankDesired(bank="elsewhere", generation=4)
        site.controller.send(desired_state([stranger], epoch=1, generation=4))
        await until(lambda: "elsewhere" in site.controller.newest.refusal, "the bank is refused")
        assert site.resting() == 1 and site.controller.newest.generation == 1
        site.want(5, full=2, rest=2)
        await site.applied(5)
        assert site.controller.newest.refusal == ""


async def test_older_epoch_is_not_obeyed(tmp_path: Path) -> None:
    """After a newer epoch the older controller's orders change nothing."""
    async with a_site(tmp_path) as site, site.agent():
        await site.adopted(epoch=5)
        site.want(1, epoch=4, rest=4)
        await until(lambda: "epoch 5" in site.controller.newest.refusal, "the old epoch is refused")
        assert site.resting() == 0


async def test_grant_that_nobody_renews_falls_to_the_safe_share(tmp_path: Path) -> None:
    """When renewals stay unanswered the bank rests by itself down to its safe share, and no further."""
    async with a_site(tmp_path) as site, site.agent():
        site.controller.ttl_s = 3.0
        await site.adopted()
        site.want(1, ttl_s=3.0, full=4, safe_share_w=counted_grant_w(full=1, rest=3))
        await site.applied(1)
        site.controller.answers_renewals = False
        await until(lambda: site.resting() == 3, "three rest by themselves")
        await until(lambda: site.controller.bank(BANK).is_lapsed, "the lapse is told")
        site.controller.answers_renewals = True
        await until(lambda: site.controller.renewals > 3, "renewals go on")
        assert site.resting() == 3  # an answer to an old grant lifts nothing
        site.want(2, full=4)
        await site.applied(2)
        assert site.resting() == 0


async def test_restart_keeps_the_order_and_writes_nothing(tmp_path: Path) -> None:
    """An agent that comes back holds its epoch, generation and targets, and sends no command."""
    async with a_site(tmp_path) as site:
        async with site.agent():
            await site.adopted()
            site.want(1, full=2, rest=2)
            await site.applied(1)
        for asic in site.asics.values():
            asic.commands.clear()
        count = len(site.controller.reports)
        async with site.agent():
            await until(lambda: len(site.controller.reports) > count + 3, "it reports again")
            await until(lambda: site.controller.newest.generation == 1, "the order is remembered")
            await site.applied(1)
            assert not site.controller.bank(BANK).is_lost
            assert [asic.commands for asic in site.asics.values()] == [[], [], [], []]
            sleeper = next(asic for asic in site.asics.values() if asic.state is AsicState.SLEEPING)
            sleeper.wake(0.0)
            await until(lambda: sleeper.state is AsicState.SLEEPING, "it still re-catches")


async def test_lockout_is_remembered_and_told(tmp_path: Path) -> None:
    """What was locked out is off, is told as locked out also by the next run, and no longer once an order lifts it."""
    async with a_site(tmp_path) as site:
        async with site.agent():
            await site.adopted()
            assert not site.controller.bank(BANK).locked_out
            site.want(1, rest=4, locked_out=True, locked_devices=["m2"])
            await until(lambda: site.controller.bank(BANK).locked_out, "the lockout is told")
        site.controller.desired = None
        before = site.instance()
        async with site.agent():
            await until(lambda: site.instance() != before and bool(site.controller.newest.banks), "it reports again")
            assert site.controller.bank(BANK).locked_out
            assert list(site.controller.bank(BANK).locked_devices) == ["m2"]
            site.want(2, full=4)
            await until(lambda: not site.controller.bank(BANK).locked_out, "it is lifted")
            assert not site.controller.bank(BANK).locked_devices


async def test_torn_state_raises_nothing_until_granted_anew(tmp_path: Path) -> None:
    """With torn records the agent says so, touches nothing, and takes only a grant made for this run."""
    async with a_site(tmp_path) as site:
        async with site.agent():
            await site.adopted()
            site.want(1, full=2, rest=2)
            await site.applied(1)
        for name in ("grants.json", "order.json"):
            path = tmp_path / "agent" / name
            path.write_bytes(path.read_bytes()[:-20])
        for asic in site.asics.values():
            asic.commands.clear()
        before = site.instance()
        site.controller.desired = None
        async with site.agent():
            await until(lambda: site.instance() != before and bool(site.controller.newest.banks), "it reports again")
            assert site.controller.bank(BANK).is_lost
            old_run = bank_desired(generation=9, for_instance=before, full=4)
            site.controller.send(desired_state([old_run], epoch=1, generation=9))
            await until(
                lambda: "not-for-this-run" in site.controller.newest.refusal, "a grant for another run is refused"
            )
            assert [asic.commands for asic in site.asics.values()] == [[], [], [], []]
            await until(lambda: site.controller.bank(BANK).HasField("reported_w"), "it says what it holds")
            site.want(10, full=3, rest=1)
            await site.applied(10)
            assert site.resting() == 1


async def test_hung_miner_counts_at_its_ceiling_and_is_named(tmp_path: Path) -> None:
    """A miner that does not answer is a straggler with its reason; its ceiling is counted."""
    async with a_site(tmp_path) as site, site.agent():
        await site.adopted()
        site.want(1, full=2, rest=2)
        await site.applied(1)
        before_w = site.controller.bank(BANK).counted_power_w
        site.asics["m2"].set_weather(NetworkFault.HUNG)
        await until(lambda: site.controller.bank(BANK).counted_power_w > before_w, "it counts at its ceiling")
        await until(lambda: any(s.device == "m2" for s in site.controller.bank(BANK).stragglers), "it is named")
        straggler = next(s for s in site.controller.bank(BANK).stragglers if s.device == "m2")
        assert straggler.reason in ("hung", "unreachable")


async def test_agent_without_writes_refuses_orders(tmp_path: Path) -> None:
    """`writes = false` in the agent's own file beats every controller."""
    async with a_site(tmp_path, count=2) as site, site.agent(writes=False):
        await site.adopted()
        site.want(1, rest=2)
        await until(lambda: "writes = false" in site.controller.newest.refusal, "it refuses")
        assert all(not asic.commands for asic in site.asics.values())
