"""The agent's governor: what it takes, what it stores first, when it falls, and what Applied means."""

from __future__ import annotations

import pytest

from swingbus.faults import InvalidInput
from swingbus_agent.domain.governor import GovernedBank, Governor, GovernorSettings, Verdict
from swingbus_agent.domain.grant import (
    BankGrant,
    Desired,
    DurableState,
    MarkerLog,
    SafeShareStep,
    from_record,
    safe_share_w,
    to_record,
)

DEVICES = ("d0", "d1")


class AgentDriver:
    """One agent with one bank of two 100 W devices, its disk, and a controller of epoch 1 to talk to it."""

    def __init__(self, *, safe_share_w: float = 60.0, schedule: tuple[SafeShareStep, ...] = ()) -> None:
        self.shape = GovernedBank(
            name="b", devices=DEVICES, device_ceiling_w=100.0, safe_share_w=safe_share_w, schedule=schedule
        )
        self.disk: DurableState | None = None
        self.boot_id = "boot-1"
        self.run = 0
        self.governor = self.restart(10.0)

    def restart(self, now_s: float) -> Governor:
        """Start a new run from what is on disk."""
        self.run += 1
        self.governor = Governor(
            settings=GovernorSettings(ttl_max_s=120.0, quarantine_s=62.0, refresh_s=30.0),
            banks=(self.shape,),
            durable=self.disk,
            boot_id=self.boot_id,
            instance=f"run-{self.run}",
            now_s=now_s,
        )
        return self.governor

    def grant(
        self,
        watts: float,
        generation: int,
        now_s: float,
        *,
        epoch: int = 1,
        controller: str = "one",
        ticket: str | None = None,
        store: bool = True,
        for_instance: str | None = None,
    ) -> Verdict:
        """Deliver a grant that answers a ticket of this moment (or `ticket`) and store what it asks for."""
        desired = Desired(
            epoch=epoch,
            controller_instance=controller,
            ticket=ticket or self.governor.issue_ticket(now_s),
            ttl_s=120.0,
            grants=(
                BankGrant(
                    bank="b",
                    generation=generation,
                    grant_w=watts,
                    for_instance=f"run-{self.run}" if for_instance is None else for_instance,
                ),
            ),
        )
        outcome = self.governor.receive(desired, now_s)
        if outcome.persist is not None and store:
            self.disk = outcome.persist
            self.governor.confirm(outcome.persist, now_s)
        return outcome.banks[0][1] if outcome.banks else outcome.epoch_verdict

    def watts(self, now_s: float) -> float:
        """Return the allowance."""
        return self.governor.allowance("b", now_s).watts

    def sweep(self, d0_w: float | None, d1_w: float | None, now_s: float) -> float | None:
        """Read back both devices; return when Applied came true, if it is."""
        applied = self.governor.observe(
            "b", counted_w={"d0": d0_w, "d1": d1_w}, base_w=10.0, begun_s=now_s, now_s=now_s
        )
        return None if applied is None else applied.at_s


def test_nothing_is_in_force_before_it_is_on_disk() -> None:
    """An accepted grant waits for `confirm`; a crash before that leaves the old one."""
    agent = AgentDriver()
    assert agent.grant(200.0, 1, 20.0, store=False) is Verdict.ACCEPTED
    assert not agent.governor.allowance("b", 20.0).may_raise
    again = agent.governor.due_refresh(21.0)
    assert again is not None
    agent.governor.confirm(again, 21.0)
    assert agent.watts(21.0) == 200.0


def test_an_older_generation_or_epoch_is_refused() -> None:
    """Only what is newer than the durable pair is taken; the same generation never with other watts."""
    agent = AgentDriver()
    agent.grant(200.0, 2, 20.0, epoch=3)
    assert agent.grant(300.0, 1, 21.0, epoch=3) is Verdict.OLD_GENERATION
    assert agent.grant(300.0, 2, 21.0, epoch=3) is Verdict.CHANGED
    assert agent.grant(300.0, 9, 21.0, epoch=2) is Verdict.OLD_EPOCH
    assert agent.grant(300.0, 9, 21.0, epoch=3, controller="other") is Verdict.OTHER_INSTANCE
    assert agent.watts(22.0) == 200.0


def test_what_is_being_stored_already_refuses_what_is_older() -> None:
    """Two messages within one fsync cannot put the older one on disk last."""
    agent = AgentDriver()
    agent.grant(200.0, 5, 20.0, store=False)
    assert agent.grant(300.0, 4, 20.0, store=False) is Verdict.OLD_GENERATION


def test_an_answer_to_nobody_is_refused() -> None:
    """A grant without a known ticket has no age: another run's answers are worthless."""
    agent = AgentDriver()
    ticket = agent.governor.issue_ticket(20.0)
    agent.restart(30.0)
    assert agent.grant(200.0, 1, 31.0, ticket=ticket) is Verdict.UNKNOWN_TICKET


def test_time_counts_from_when_the_renewal_was_sent() -> None:
    """A slow answer shortens the grant, never the other way round."""
    agent = AgentDriver()
    ticket = agent.governor.issue_ticket(20.0)
    agent.grant(200.0, 1, 100.0, ticket=ticket)
    assert agent.watts(139.0) == 200.0
    assert agent.watts(140.0) == 60.0
    assert not agent.governor.allowance("b", 140.0).may_raise


def test_a_renewal_prolongs_and_a_lapse_is_final_for_this_grant() -> None:
    """Once over, the same generation cannot bring it back; a newer one can."""
    agent = AgentDriver()
    agent.grant(200.0, 1, 20.0)
    assert agent.grant(200.0, 1, 100.0) is Verdict.RENEWED
    assert agent.watts(219.0) == 200.0
    assert agent.watts(220.0) == 60.0
    assert agent.grant(200.0, 1, 221.0) is Verdict.LAPSED
    assert agent.grant(200.0, 2, 222.0) is Verdict.ACCEPTED
    assert agent.watts(223.0) == 200.0


def test_a_grant_decided_before_the_lapse_was_told_lifts_nothing() -> None:
    """Its sender thought of a shrink; for us it would be a raise."""
    agent = AgentDriver()
    agent.grant(200.0, 1, 20.0)
    ticket = agent.governor.issue_ticket(139.0)
    assert agent.watts(141.0) == 60.0
    assert agent.grant(150.0, 2, 142.0, ticket=ticket) is Verdict.ACCEPTED
    assert agent.watts(143.0) == 60.0
    assert agent.governor.report("b", 143.0).is_lapsed


def test_what_was_shed_after_a_lapse_is_not_raised_by_a_grant_that_knew_nothing_of_it() -> None:
    """The allowance follows what is read back downwards, and each step down outdates the answers to earlier tickets."""
    agent = AgentDriver(safe_share_w=100.0)
    agent.grant(200.0, 1, 20.0)
    agent.sweep(90.0, 90.0, 130.0)
    assert agent.governor.report("b", 141.0).reported_w == 100.0
    ticket = agent.governor.issue_ticket(141.0)
    agent.sweep(20.0, 20.0, 142.0)
    assert agent.watts(142.0) == 50.0
    assert agent.grant(100.0, 2, 143.0, ticket=ticket) is Verdict.ACCEPTED
    assert agent.watts(143.0) == 50.0
    assert not agent.governor.allowance("b", 143.0).may_raise
    agent.grant(50.0, 3, 144.0)
    assert agent.governor.allowance("b", 144.0).may_raise


def test_a_device_not_read_this_time_counts_as_last_read() -> None:
    """One missed read must not make the whole bank shed."""
    agent = AgentDriver(safe_share_w=100.0)
    agent.grant(200.0, 1, 20.0)
    agent.sweep(40.0, 40.0, 141.0)
    agent.sweep(40.0, None, 142.0)
    assert agent.watts(142.0) == 90.0


def test_the_safe_share_never_raises() -> None:
    """Neither above the grant, nor when its schedule rises, nor after a restart."""
    steps = (SafeShareStep(from_s=0.0, watts=50.0), SafeShareStep(from_s=300.0, watts=500.0))
    agent = AgentDriver(schedule=steps)
    agent.grant(40.0, 1, 20.0)
    assert agent.watts(200.0) == 40.0
    assert agent.watts(301.0) == 40.0
    agent.restart(302.0)
    assert agent.watts(303.0) == 40.0
    assert not agent.governor.allowance("b", 303.0).may_raise


def test_safe_share_schedule_picks_the_last_step_begun() -> None:
    """Before the first step the default holds."""
    steps = (SafeShareStep(from_s=10.0, watts=5.0), SafeShareStep(from_s=20.0, watts=3.0))
    assert [safe_share_w(steps, 9.0, at) for at in (5.0, 10.0, 25.0)] == [9.0, 5.0, 3.0]


def test_a_safe_share_schedule_is_acknowledged_once_it_is_on_disk() -> None:
    """Until then the old one counts; after a reboot only its lowest step is sure."""
    agent = AgentDriver(safe_share_w=60.0)
    agent.grant(200.0, 1, 20.0)
    steps = (SafeShareStep(from_s=0.0, watts=55.0), SafeShareStep(from_s=100.0, watts=35.0))
    outcome = agent.governor.receive(
        Desired(
            epoch=1,
            controller_instance="one",
            ticket=agent.governor.issue_ticket(21.0),
            ttl_s=120.0,
            safe_shares={"b": steps, "stranger": steps},
        ),
        21.0,
    )
    assert agent.governor.safe_shares("b") == ()
    assert outcome.persist is not None
    agent.governor.confirm(outcome.persist, 21.0)
    assert agent.governor.safe_shares("b") == steps
    agent.disk = from_record(to_record(outcome.persist))
    assert agent.disk == outcome.persist
    assert agent.watts(150.0) == 35.0
    agent.boot_id = "boot-2"
    agent.restart(5.0)
    assert agent.watts(6.0) == 35.0


def test_a_restart_in_the_same_boot_keeps_the_living_grant() -> None:
    """No flapping of miners when the agent is updated; the lease on disk lags by at most `refresh_s`."""
    agent = AgentDriver()
    agent.grant(200.0, 1, 20.0)
    agent.grant(200.0, 1, 60.0)
    lazy = agent.governor.due_refresh(60.0)
    assert lazy is not None
    agent.disk = lazy
    agent.restart(61.0)
    assert agent.watts(62.0) == 200.0
    assert agent.watts(180.0) == 60.0


def test_after_a_reboot_no_lease_counts() -> None:
    """CLOCK_BOOTTIME began anew: the old lease would mean nothing or far too much."""
    agent = AgentDriver()
    agent.grant(200.0, 1, 20.0)
    agent.boot_id = "boot-2"
    agent.restart(1.0)
    assert agent.watts(2.0) == 60.0
    refreshed = agent.governor.due_refresh(3.0)
    assert refreshed is None or refreshed.grants["b"].lease_until_s == 0.0


def test_lost_memory_raises_nothing_and_tells_what_it_reads() -> None:
    """Safe share at most, no raise, and no report of watts before the first read-back."""
    agent = AgentDriver()
    agent.grant(200.0, 1, 20.0)
    agent.disk = None
    agent.restart(30.0)
    assert agent.governor.report("b", 30.0).reported_w is None
    agent.sweep(20.0, None, 31.0)
    report = agent.governor.report("b", 31.0)
    assert report.is_lost
    assert report.is_lapsed
    assert report.reported_w == 30.0
    assert not agent.governor.allowance("b", 31.0).may_raise


def test_lost_memory_takes_only_a_grant_made_for_this_run() -> None:
    """An outdated controller repeats what it gave to the run before; it cannot journal one for this run."""
    agent = AgentDriver()
    agent.disk = None
    agent.restart(30.0)
    assert agent.grant(200.0, 7, 31.0, for_instance="run-1") is Verdict.NOT_FOR_THIS_RUN
    assert agent.grant(200.0, 8, 32.0) is Verdict.ACCEPTED
    assert not agent.governor.report("b", 33.0).is_lost


def settle_quarantine(agent: AgentDriver) -> None:
    """Grant 150 W and wait out the quarantine of a first start."""
    agent.grant(150.0, 1, 80.0)
    assert agent.sweep(70.0, 70.0, 80.0) is not None


def test_a_first_start_counts_every_device_at_its_ceiling_until_late_writes_cannot_land() -> None:
    """Nobody knows which writes of the run before are still on their way."""
    agent = AgentDriver()
    agent.grant(150.0, 1, 20.0)
    assert agent.sweep(10.0, 10.0, 21.0) is None
    assert agent.governor.counted_w("b") == 210.0
    assert agent.sweep(10.0, 10.0, 73.0) == 73.0


def test_one_write_per_device_is_in_flight() -> None:
    """A second one waits for the first one's answer; Applied waits for a read-back after it."""
    agent = AgentDriver()
    settle_quarantine(agent)
    assert agent.governor.start_write("b", "d0", raises=False, now_s=81.0).may_write
    assert not agent.governor.start_write("b", "d0", raises=False, now_s=82.0).may_write
    assert agent.sweep(10.0, 10.0, 82.0) is None
    agent.governor.finish_write("b", "d0", 83.0)
    assert agent.sweep(10.0, 10.0, 82.5) is None
    assert agent.sweep(10.0, 10.0, 84.0) == 84.0


def test_a_timed_out_write_keeps_its_device_at_the_ceiling() -> None:
    """It may land later: 70 + 100 + 10 does not fit 150 until the quarantine is over."""
    agent = AgentDriver()
    settle_quarantine(agent)
    agent.governor.start_write("b", "d0", raises=False, now_s=81.0)
    agent.governor.time_out_write("b", "d0", 85.0)
    assert agent.sweep(10.0, 70.0, 90.0) is None
    assert not agent.governor.start_write("b", "d0", raises=True, now_s=91.0).may_write
    assert agent.governor.start_write("b", "d0", raises=False, now_s=91.0).may_write
    agent.governor.finish_write("b", "d0", 92.0)
    assert agent.sweep(10.0, 70.0, 148.0) == 148.0


def test_the_first_raise_after_a_quiet_spell_is_stored_first() -> None:
    """So that a crash with it in flight is known to the next run, which then trusts no device for a while."""
    agent = AgentDriver()
    settle_quarantine(agent)
    quiet = agent.governor.due_refresh(81.0)
    assert quiet is not None
    assert not quiet.grants["b"].writes_open
    agent.disk = quiet
    agent.governor.confirm(quiet, 81.0)
    start = agent.governor.start_write("b", "d0", raises=True, now_s=82.0)
    assert start.persist is not None
    assert start.persist.grants["b"].writes_open
    agent.restart(83.0)
    assert agent.sweep(70.0, 70.0, 84.0) == 84.0
    agent.disk = start.persist
    agent.restart(85.0)
    assert agent.sweep(70.0, 70.0, 86.0) is None


def test_a_raise_beyond_the_grant_is_not_dispatched() -> None:
    """70 + 80 + 10 is more than 150."""
    agent = AgentDriver()
    settle_quarantine(agent)
    assert not agent.governor.start_write("b", "d0", raises=True, now_s=81.0, counted_w=80.0).may_write
    agent.sweep(60.0, 70.0, 82.0)
    assert agent.governor.start_write("b", "d0", raises=True, now_s=83.0, counted_w=70.0).may_write


def test_above_its_grant_in_two_samples_it_sheds_unasked() -> None:
    """One sample may be noise; the second lowers the allowance by what it is over."""
    agent = AgentDriver()
    settle_quarantine(agent)
    agent.governor.observe_draw("b", 170.0, 81.0)
    assert agent.watts(81.0) == 150.0
    agent.governor.observe_draw("b", 170.0, 82.0)
    assert agent.watts(82.0) == 130.0
    assert not agent.governor.allowance("b", 82.0).may_raise


def test_a_torn_record_is_lost_and_a_whole_one_is_the_same() -> None:
    """The checksum decides; a torn one is never half believed."""
    agent = AgentDriver()
    agent.grant(200.0, 1, 20.0)
    assert agent.disk is not None
    record = to_record(agent.disk)
    assert from_record(record) == agent.disk
    for torn in (record[:-9], b"", b"garbage", record.replace(b"200", b"900")):
        with pytest.raises(InvalidInput):
            from_record(torn)


def test_a_marker_marks_only_what_began_after_it() -> None:
    """The newest marker received before the power behind a window began."""
    log = MarkerLog()
    log.note((1, 1), 10.0)
    log.note((1, 2), 20.0)
    log.note((1, 1), 30.0)
    assert log.before(9.0) is None
    assert log.before(15.0) == (1, 1)
    assert log.before(40.0) == (1, 2)
