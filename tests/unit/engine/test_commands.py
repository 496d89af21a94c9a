"""Orders of people: flips by hand, repeats, checks without effect, authority."""

from __future__ import annotations

import pytest

from swingbus.faults import AlreadyExists, Forbidden, InvalidInput, NotFound, OverBudget, WrongState
from swingbus_controller.app.commands import Order
from swingbus_controller.domain.fleet.orders import Mode as Wire
from swingbus_controller.domain.flips.flip import Phase
from swingbus_controller.domain.planning.plan import Authority
from swingbus_controller.domain.planning.points import Mode
from tests.fakes.site import VirtualSite, settled_site
from tests.fakes.site_clock import BOOTTIME_ZERO_S
from tests.fakes.site_files import make_site

GPU = "gpu1/gpus"


def ask(site: VirtualSite, id: str, *, count: int = 8, bank: str = GPU, validate_only: bool = False) -> str:
    """Request a flip of mining GPUs to inference; return its name."""
    order = site.order(id, validate_only=validate_only)
    return site.commands.request_flip(order, bank=bank, count=count, from_mode=Mode.MINING, to_mode=Mode.INFERENCE).id


def test_requested_flip_is_carried_out_and_recorded() -> None:
    """A flip by hand ends ACTIVE with its author and reason."""
    site = settled_site()
    site.market.demand = None
    name = ask(site, "by-hand")
    assert site.run(120, lambda: site.state.flips[name].is_over), site.explain()
    flip = site.state.flips[name]
    assert (flip.phase, flip.author, flip.reason) == (Phase.ACTIVE, "ada", "test")
    assert site.count(GPU, Wire.INFERENCE) == 8
    site.verdicts.assert_clean()


def test_repeated_request_answers_with_the_same_flip_also_after_a_restart() -> None:
    """The same id and content: the same flip, nothing new."""
    site = settled_site()
    name = ask(site, "r-1")
    assert ask(site, "r-1") == name
    site.restart_controller()
    assert ask(site, "r-1") == name
    assert len([f for f in site.state.flips.values() if f.author == "ada"]) == 1


def test_request_id_with_other_content_is_refused() -> None:
    """An id answers for one content only."""
    site = settled_site()
    ask(site, "r-1")
    with pytest.raises(AlreadyExists) as refused:
        site.commands.set_pin(site.order("r-1", digest="other"), bank=GPU, pinned=True, duration_s=None)
    assert refused.value.reason == "REQUEST_ID_REUSED"


def test_request_ids_that_begin_alike_make_two_flips() -> None:
    """Ticket numbers share their first characters; no flip may take another's place."""
    site = settled_site()
    first, second = ask(site, "ticket-1001"), ask(site, "ticket-1002", bank="gpu2/gpus")
    assert first != second
    assert site.state.flips[first].bank == GPU


def test_checked_flip_changes_nothing() -> None:
    """With validate_only every check is made and nothing is recorded."""
    site = settled_site()
    revision = site.journal.newest_revision()
    ask(site, "dry", validate_only=True)
    site.commands.start_curtailment(
        site.order("dry-c", validate_only=True), feeder="grid", limit_w=50_000.0, notice_s=10.0, ramp_s=0.0,
        duration_s=60.0, window_s=0.0, payment="", penalty="",
    )  # fmt: skip
    site.commands.set_feeder_limit(site.order("dry-l", validate_only=True), feeder="grid", limit_w=1.0)
    site.commands.set_pin(site.order("dry-p", validate_only=True), bank=GPU, pinned=True, duration_s=None)
    site.commands.set_lockout(site.order("dry-o", validate_only=True), bank=GPU, locked_out=True, cleared_by="")
    site.commands.set_authority(site.order("dry-a", validate_only=True), authority=Authority.OBSERVE)
    assert site.journal.newest_revision() == revision
    with pytest.raises(OverBudget):
        ask(site, "dry", count=64, validate_only=True)


@pytest.mark.parametrize(
    ("count", "bank", "fault", "reason"),
    [
        (0, GPU, InvalidInput, "NOT_WHOLE_UNITS"),
        (-8, GPU, InvalidInput, "NOT_WHOLE_UNITS"),
        (7, GPU, InvalidInput, "NOT_WHOLE_UNITS"),
        (24, GPU, OverBudget, "NOT_ENOUGH_DEVICES"),
        (8, "gpu9/gpus", NotFound, "NO_SUCH_BANK"),
        (1, "edge1/asics", InvalidInput, "NO_SUCH_POINT"),
    ],
)
def test_impossible_flip_is_refused_with_its_reason(count: int, bank: str, fault: type[Exception], reason: str) -> None:
    """Half units, too many, no such bank, ASICs that should serve."""
    site = settled_site()
    with pytest.raises(fault) as refused:
        ask(site, "bad", count=count, bank=bank)
    assert getattr(refused.value, "reason", "") == reason


def test_flip_by_hand_is_refused_under_pin_lockout_and_silence() -> None:
    """Pinned, locked out, dark: each is told by its own reason."""
    site = settled_site()
    site.commands.set_pin(site.order("pin"), bank=GPU, pinned=True, duration_s=None)
    with pytest.raises(WrongState) as pinned:
        ask(site, "a")
    assert pinned.value.reason == "PINNED"
    site.commands.set_lockout(site.order("lock"), bank="gpu2/gpus", locked_out=True, cleared_by="")
    with pytest.raises(Forbidden) as locked:
        ask(site, "b", bank="gpu2/gpus")
    assert locked.value.reason == "LOCKED_OUT"
    site.commands.set_pin(site.order("unpin"), bank=GPU, pinned=False, duration_s=None)
    site.agents["gpu1"].is_alive = False
    site.run(10)
    with pytest.raises(WrongState) as dark:
        ask(site, "c")
    assert dark.value.reason == "BANK_UNAVAILABLE"


def test_flip_by_hand_inside_the_dwell_is_refused() -> None:
    """S4 binds people too: a unit that has just moved stays for its dwell."""
    site = settled_site()
    site.market.demand = None
    name = ask(site, "go")
    assert site.run(120, lambda: site.state.flips[name].is_over), site.explain()
    with pytest.raises(WrongState) as refused:
        site.commands.request_flip(site.order("back"), bank=GPU, count=8, from_mode=Mode.INFERENCE, to_mode=Mode.MINING)
    assert refused.value.reason == "DWELL"
    site.run(12)
    site.commands.request_flip(site.order("back"), bank=GPU, count=8, from_mode=Mode.INFERENCE, to_mode=Mode.MINING)


@pytest.mark.parametrize("seconds", [0, 2, 8, 20])
def test_cancelled_flip_goes_back_wherever_it_is(seconds: int) -> None:
    """Cancelled early or late: ROLLED_BACK and mining as before, or refused because it is over."""
    site = settled_site()
    site.market.demand = None
    name = ask(site, "go")
    site.run(seconds)
    assert not site.state.flips[name].is_over
    site.commands.cancel_flip(site.order("stop"), flip=name)
    assert site.commands.cancel_flip(site.order("stop"), flip=name).id == name
    assert site.run(120, lambda: site.state.flips[name].is_over), site.explain()
    assert site.state.flips[name].phase is Phase.ROLLED_BACK
    assert site.run(60, lambda: site.count(GPU, Wire.MINING) == 16), site.explain()
    with pytest.raises(WrongState) as over:
        site.commands.cancel_flip(site.order("again"), flip=name)
    assert over.value.reason == "FLIP_OVER"
    site.verdicts.assert_clean()


def test_authority_falls_and_rises_within_the_site_file() -> None:
    """Below CONTROL nothing is journaled or sent and the grants run out; CONTROL fences everybody anew and goes on as after a start."""
    site = settled_site()
    mining, epoch = site.count("edge1/asics", Wire.MINING), site.state.ledger.epoch
    for authority in (Authority.ADVISE, Authority.OBSERVE):
        site.commands.set_authority(site.order(authority.value), authority=authority)
        revision = site.journal.newest_revision()
        markers = {name: agent.markers[-1] for name, agent in site.agents.items()}
        site.run(60)
        assert site.journal.newest_revision() == revision
        assert {name: agent.markers[-1] for name, agent in site.agents.items()} == markers
        assert all(site.agents[b.site.agent].is_lapsed(b) for b in site.banks.values())
        with pytest.raises(Forbidden) as refused:
            ask(site, "no")
        assert refused.value.reason == "NO_AUTHORITY"
        assert site.engine.plan is not None
    site.commands.set_authority(site.order("up"), authority=Authority.CONTROL)
    site.run(3)
    assert {agent.fence[0] for agent in site.agents.values()} == {epoch + 1}
    assert site.run(200, lambda: site.count("edge1/asics", Wire.MINING) == mining and site.is_quiet()), site.explain()
    site.verdicts.assert_clean()


def test_agents_that_came_below_control_are_fenced_when_it_rises() -> None:
    """Connected under ADVISE they are told nothing, not even the epoch; once an admin allows it each is fenced, adopted, granted."""
    site = VirtualSite(mining=10)
    site.start_controller()
    site.commands.set_authority(site.order("down"), authority=Authority.ADVISE)
    site.run(60)
    assert all(agent.fence == (0, "") and not agent.markers for agent in site.agents.values())
    site.commands.set_authority(site.order("dry", validate_only=True), authority=Authority.CONTROL)
    site.commands.set_authority(site.order("same"), authority=Authority.ADVISE)
    assert site.state.ledger.epoch == 1
    site.commands.set_authority(site.order("up"), authority=Authority.CONTROL)
    assert all(site.engine.renew(name, 1, site.clock.s) is None for name in site.agents)
    site.run(3)
    assert {agent.fence[0] for agent in site.agents.values()} == {2}
    assert site.run(300, lambda: site.clock.s > BOOTTIME_ZERO_S + 120 and site.is_quiet()), site.explain()
    assert not site.flips(Phase.FAILED)
    site.verdicts.assert_clean()


def test_authority_above_the_site_file_is_refused() -> None:
    """The file is the ceiling: nobody raises it by RPC."""
    site = VirtualSite(make_site(authority="advise"), mining=10)
    site.start_controller()
    with pytest.raises(Forbidden) as refused:
        site.commands.set_authority(site.order("up"), authority=Authority.CONTROL)
    assert refused.value.reason == "ABOVE_SITE_FILE"
    assert site.state.authority is Authority.ADVISE


def test_advise_shows_plans_and_touches_nothing() -> None:
    """Under ADVISE the plan says what would be done: no grant, no flip, no order, no fence."""
    site = VirtualSite(make_site(authority="advise"), mining=10)
    site.start_controller()
    site.run(60)
    assert site.engine.plan is not None and site.engine.plan.moves
    assert not site.state.flips and not site.state.holdings
    assert all(site.engine.order_for(agent) is None for agent in site.agents)
    assert {r.entry.kind for r in site.journal.read()} == {"controller_started"}
    assert all(agent.fence == (0, "") and not agent.markers for agent in site.agents.values())
    assert site.count("edge1/asics", Wire.MINING) == 10


def test_pin_with_an_end_ends() -> None:
    """A pin for a minute binds for a minute."""
    site = settled_site()
    site.commands.set_pin(site.order("pin"), bank="edge1/asics", pinned=True, duration_s=60.0)
    site.market.power = 90.0
    site.run(50)
    assert site.count("edge1/asics", Wire.MINING) > 0
    assert site.run(120, lambda: site.count("edge1/asics", Wire.MINING) == 0), site.explain()
    with pytest.raises(InvalidInput):
        site.commands.set_pin(site.order("never"), bank="edge1/asics", pinned=True, duration_s=0.0)


def test_operator_limit_can_never_raise_a_declared_one() -> None:
    """Higher than the contract changes nothing; nonsense is refused."""
    site = settled_site()
    site.commands.set_feeder_limit(site.order("high"), feeder="grid", limit_w=900_000.0)
    assert site.state.ledger.limit_w("grid", site.clock.s) == 145_000.0
    for number, watts in enumerate((-1.0, float("nan"), float("inf"))):
        with pytest.raises(InvalidInput):
            site.commands.set_feeder_limit(site.order(f"bad-{number}"), feeder="grid", limit_w=watts)
    with pytest.raises(NotFound):
        site.commands.set_feeder_limit(site.order("nowhere"), feeder="moon", limit_w=1.0)


def test_orders_without_id_or_reason_are_refused() -> None:
    """Both are kept on the record, so both are needed."""
    for request_id, reason, word in (
        ("", "why", "BAD_REQUEST_ID"),
        ("x" * 65, "why", "BAD_REQUEST_ID"),
        ("x", " ", "BAD_REASON"),
    ):
        with pytest.raises(InvalidInput) as refused:
            Order(author="ada", request_id=request_id, reason=reason, digest="d", validate_only=False)
        assert refused.value.reason == word
