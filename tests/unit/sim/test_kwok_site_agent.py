"""The agents of simulated nodes: what they obey, write and report, in virtual time; and the site file that goes with them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swingbus.faults import InvalidInput
from swingbus.link.v1alpha import link_pb2
from swingbus_controller.domain.power.bank import ceiling_w, idle_w
from swingbus_controller.settings import load_configuration
from swingbus_sim.kwok_site import wire
from swingbus_sim.kwok_site.agent import BankOrder, Counting, NodeAgent, UnitOrder
from swingbus_sim.kwok_site.holding import Grant, Holding
from swingbus_sim.kwok_site.plan import LIMIT_FACTOR, SitePlan
from swingbus_sim.kwok_site.site_file import write_site
from tests.unit.sim.test_kwok_site_nodes import Node, pod

COUNTING = Counting(
    gpu_limit_ratio=LIMIT_FACTOR, device_ceiling_w=700.0, cooling_ratio=0.08, losses_ratio=0.06, fixed_w=1300.0
)
WORKLOADS = {"mining": "miner", "inference": "llm"}
REST = UnitOrder(point="standby", mode="standby", power_w=200.0, workload="")
MINE = UnitOrder(point="mine", mode="mining", power_w=500.0, workload="miner")
SERVE = UnitOrder(point="serve", mode="inference", power_w=700.0, workload="llm")


class Driven:
    """An agent of a node of four GPUs, adopted by epoch 1."""

    def __init__(self, *, boot_limit_w: float = 200.0, seed: int = 3) -> None:
        self.node = Node(boot_limit_w=boot_limit_w, seed=seed)
        self.agent = NodeAgent(self.node.kubelet, workloads=WORKLOADS, random=Random(seed))
        self.agent.read(self.node.now_s)
        self.agent.holding.adopt(1, "c", 1, self.node.now_s)
        self.agent.counting = COUNTING
        self.generation = 0

    def order(self, units: tuple[UnitOrder, ...], *, grant_w: float | None = None, ttl_s: float = 60.0) -> None:
        """Give an order, with just the grant that it needs unless another is named."""
        self.generation += 1
        now_s = self.node.now_s
        order = BankOrder(
            generation=self.generation,
            grant_w=COUNTING.feeder_w([u.power_w for u in units]) if grant_w is None else grant_w,
            safe_share_w=COUNTING.feeder_w([200.0] * 4),
            units=units,
            ticket=self.agent.holding.issue_ticket(now_s),
            ttl_s=ttl_s,
            for_instance=self.agent.holding.instance_uid,
        )
        self.agent.take_order(1, self.generation, "hash", order, now_s)

    def rounds(self, count: int) -> None:
        for _ in range(count):
            self.node.wait(1.0)
            self.agent.read(self.node.now_s)

    def limits(self) -> list[float]:
        return [gpu.enforced_w for gpu in self.node.server.gpus]

    def report(self) -> link_pb2.BankEffective:
        return wire.effective(self.agent, 1, self.node.now_s).banks[0]


def test_order_is_applied_only_after_its_limits_were_read_back() -> None:
    """Applied names the grant's generation and comes with a reading after the last write, never with the write."""
    driven = Driven()
    driven.order((REST, REST, REST, SERVE))

    assert driven.report().applied_generation == 0 and driven.report().has_in_flight
    driven.rounds(2)

    assert driven.limits() == [200.0, 200.0, 200.0, 700.0]
    report = driven.report()
    assert (report.applied_generation, report.has_in_flight) == (1, False)
    assert report.counted_power_w <= report.grant_w + 1e-6


def test_limit_rises_only_on_a_unit_that_is_free_or_holds_who_shall_have_it() -> None:
    """While the miner is there its GPU keeps its limit and the order is not applied; once it has ended, the limit rises."""
    driven = Driven()
    driven.order((MINE, MINE, MINE, MINE))
    for uid in "abcd":
        driven.node.see(pod(uid))
    driven.rounds(3)
    (unit,) = driven.node.held("a")
    units = tuple(SERVE if u == unit else MINE for u in range(4))

    driven.order(units)
    driven.rounds(3)
    assert driven.limits()[unit] == 500.0
    assert driven.report().applied_generation == 0
    assert unit not in driven.report().released_units

    driven.node.see(pod("a", is_deleting=True))
    driven.node.wait(2.0)
    driven.node.kubelet.gone("a", driven.node.now_s)
    driven.rounds(3)
    assert unit in driven.report().released_units
    assert driven.limits()[unit] == 700.0
    assert driven.report().applied_generation == 2


def test_process_without_a_pod_is_not_released_and_says_so() -> None:
    """A process that outlives its pod keeps the unit: no holder, has_process, and no released unit."""
    from swingbus_sim.kwok_site.kubelet import PodFaults

    driven = Driven()
    driven.node.kubelet.set_faults(PodFaults(outlive_s=60.0), driven.node.now_s)
    driven.order((MINE, MINE, MINE, MINE))
    driven.node.see(pod("a"))
    driven.rounds(2)
    (unit,) = driven.node.held("a")
    driven.node.see(pod("a", is_deleting=True))
    driven.node.wait(2.0)
    driven.node.kubelet.gone("a", driven.node.now_s)
    driven.rounds(2)

    report = driven.report()
    assert unit not in report.released_units
    held = report.unit_holdings[unit]
    assert (list(held.holders), held.workload, held.has_process) == ([], "", True)
    assert "processes on its GPU: 1" in held.reason


def test_holder_is_told_by_namespace_and_name_with_its_workload() -> None:
    """As PodResources says it, as soon as the kubelet gave the GPU away; readiness of the unit with it."""
    driven = Driven()
    driven.node.see(pod("p", tenant="inference"))
    driven.rounds(1)
    (unit,) = driven.node.held("p")

    report = driven.report()

    held = report.unit_holdings[unit]
    assert (list(held.holders), held.workload, held.has_process) == (["ns/p"], "llm", True)
    assert list(report.ready_workloads) == [f"{unit}:llm"]


def test_grant_that_is_over_falls_to_the_safe_share_and_rises_no_more() -> None:
    """Nobody renews: limits go down to what the safe share carries and stay there, although the order asks for more."""
    driven = Driven()
    driven.order((SERVE, SERVE, SERVE, SERVE), ttl_s=10.0)
    driven.rounds(3)
    assert driven.limits() == [700.0] * 4

    driven.rounds(12)

    assert driven.limits() == pytest.approx([200.0] * 4, abs=1.0)
    report = driven.report()
    assert report.is_lapsed
    assert report.reported_w <= COUNTING.feeder_w([200.0] * 4) + 1e-6


def test_after_a_reboot_nothing_rises_until_a_new_grant_and_high_limits_come_down() -> None:
    """The driver's default is above the grant: the agent lowers it under the grant that is over, and says it lapsed."""
    driven = Driven(boot_limit_w=700.0)
    driven.order((MINE, MINE, MINE, MINE))
    driven.rounds(3)
    boot_id = driven.agent.boot_id

    driven.node.kubelet.reboot(driven.node.now_s)
    driven.agent.restart()
    assert driven.limits() == [700.0] * 4
    driven.rounds(4)

    assert driven.agent.boot_id != boot_id
    assert driven.report().is_lapsed and not driven.report().is_lost
    assert driven.limits() == pytest.approx([200.0] * 4, abs=1.0)


POINTS = st.sampled_from([REST, MINE, SERVE])
ORDERS = st.lists(st.tuples(st.tuples(POINTS, POINTS, POINTS, POINTS), st.floats(0.3, 1.2)), min_size=1, max_size=6)


@given(orders=ORDERS, seed=st.integers(0, 50), pods=st.lists(st.booleans(), max_size=4))
def test_enforced_limits_never_count_above_a_grant_that_they_once_fitted(
    orders: list[tuple[tuple[UnitOrder, UnitOrder, UnitOrder, UnitOrder], float]], seed: int, pods: list[bool]
) -> None:
    """Whatever is ordered and whoever holds what: limits in force, and limits on their way, fit the grant once they fitted it."""
    driven = Driven(seed=seed)
    for number, is_miner in enumerate(pods):
        driven.node.see(pod(f"p{number}", tenant="mining" if is_miner else "inference"))
    for units, share in orders:
        grant_w = COUNTING.feeder_w([u.power_w for u in units]) * share
        driven.order(units, grant_w=grant_w)
        fitted = False
        for _ in range(40):
            driven.node.wait(0.1)
            if round(driven.node.now_s * 10) % 10 == 0:
                driven.agent.read(driven.node.now_s)
            counted_w = COUNTING.feeder_w(driven.limits())
            fitted = fitted or counted_w <= grant_w + 1e-6
            assert not fitted or counted_w <= grant_w + 1e-6


def test_fence_keeps_older_controllers_and_impostors_out() -> None:
    """Only the newest epoch is adopted; the same epoch of another instance is not."""
    holding = Holding("run-1")
    assert holding.adopt(5, "a", 1, 0.0)

    assert not holding.adopt(4, "old", 1, 1.0)
    assert not holding.adopt(5, "b", 1, 1.0)
    assert "epoch 5 of b is refused" in holding.refusal
    assert holding.adopt(6, "b", 1, 2.0)
    assert (holding.epoch, holding.fence_instance) == (6, "b")


def test_grant_counts_from_its_ticket_and_a_renewal_keeps_it() -> None:
    """A slow answer shortens a grant; what is over is not renewed."""
    holding = Holding("run-1")
    holding.adopt(1, "c", 1, 0.0)
    ticket = holding.issue_ticket(0.0)
    grant = Grant(epoch=1, generation=1, grant_w=9000.0)

    assert holding.take_grant(grant, ticket="strange", ttl_s=60.0, for_instance="run-1", now_s=1.0) == "unknown ticket"
    assert holding.take_grant(grant, ticket=ticket, ttl_s=60.0, for_instance="run-0", now_s=1.0) == "not for this run"
    assert holding.take_grant(grant, ticket=ticket, ttl_s=60.0, for_instance="run-1", now_s=20.0) == ""
    assert not holding.is_lapsed(59.0)
    assert holding.is_lapsed(61.0)

    later = holding.issue_ticket(50.0)
    holding.renew(1, later, 60.0, 51.0)
    assert not holding.is_lapsed(100.0)
    assert holding.is_lapsed(111.0)
    holding.renew(1, holding.issue_ticket(112.0), 60.0, 112.0)
    assert holding.is_lapsed(113.0)


def test_grant_decided_before_the_lapse_was_told_does_not_lift_it() -> None:
    """An answer to a ticket from before the fall meant no raise: the agent stays down until a later one."""
    holding = Holding("run-1")
    holding.adopt(1, "c", 1, 0.0)
    first = holding.issue_ticket(0.0)
    holding.take_grant(
        Grant(epoch=1, generation=1, grant_w=9000.0), ticket=first, ttl_s=10.0, for_instance="run-1", now_s=0.0
    )
    early = holding.issue_ticket(9.0)
    holding.safe_share_w = 3000.0
    assert holding.allowed_w(12.0, 8000.0) == 3000.0

    newer = Grant(epoch=1, generation=2, grant_w=8000.0)
    holding.take_grant(newer, ticket=early, ttl_s=60.0, for_instance="run-1", now_s=13.0)
    assert holding.is_lapsed(13.0) and holding.allowed_w(13.0, 8000.0) == 3000.0

    late = holding.issue_ticket(14.0)
    newest = Grant(epoch=1, generation=3, grant_w=8000.0)
    holding.take_grant(newest, ticket=late, ttl_s=60.0, for_instance="run-1", now_s=15.0)
    assert not holding.is_lapsed(15.0) and holding.allowed_w(15.0, 8000.0) == 8000.0


def test_marker_before_a_moment_is_the_newest_that_had_come_in() -> None:
    """A meter window carries only markers that it can have been drawn after, and none of another epoch."""
    holding = Holding("run-1")
    holding.adopt(1, "c", 1, 10.0)
    holding.note_marker(1, 2, 20.0)

    assert [holding.marker_before(at_s) for at_s in (9.0, 10.0, 19.0, 20.0)] == [0, 1, 1, 2]
    holding.adopt(2, "d", 1, 30.0)
    assert holding.marker_before(25.0) == 0
    assert holding.marker_before(30.0) == 1


def test_order_with_a_wrong_hash_or_a_missing_unit_is_refused() -> None:
    """Nothing of it is taken."""
    desired = link_pb2.DesiredState(
        banks=[link_pb2.BankDesired(bank="gpus", points=[link_pb2.PointCount(point="standby", count=1, units=[0])])]
    )
    desired.hash = "0" * 64
    with pytest.raises(InvalidInput, match="hash"):
        wire.order_of(desired, 1)

    import hashlib

    desired.hash = hashlib.sha256(
        link_pb2.DesiredState(banks=desired.banks).SerializeToString(deterministic=True)
    ).hexdigest()
    assert wire.order_of(desired, 1) is not None
    with pytest.raises(InvalidInput, match="units"):
        wire.order_of(desired, 2)


@pytest.mark.parametrize(("node_count", "nodes_per_meter", "limit_ratio"), [(1, 1, 1.0), (7, 3, 0.9), (50, 1, 0.8)])
def test_site_file_counts_as_the_plan_does(
    tmp_path: Path, node_count: int, nodes_per_meter: int, limit_ratio: float
) -> None:
    """The controller reads the file, and its own sums are the plan's: nameplate, limit, the static limit's worst case."""
    plan = SitePlan(node_count=node_count, nodes_per_meter=nodes_per_meter, limit_ratio=limit_ratio)
    path = tmp_path / "site.toml"
    path.write_text(write_site(plan), encoding="utf-8")

    site = load_configuration(path, environment={}).site

    assert sum(ceiling_w(bank.spec) for bank in site.banks) == pytest.approx(plan.nameplate_w, rel=1e-6)
    assert site.tree.feeder("grid").limits[0].limit_w == pytest.approx(plan.limit_w, abs=1.0)
    assert len({bank.feeder for bank in site.banks}) == -(-node_count // nodes_per_meter)
    assert all(site.feeder_notes[bank.feeder].meter_agent == bank.feeder for bank in site.banks)
    assert all(bank.spec.safe_share_w == pytest.approx(idle_w(bank.spec), abs=1.0) for bank in site.banks)
    assert node_count * plan.node_counted_w(plan.static_limit_w()) == pytest.approx(plan.limit_w, rel=1e-6)


def test_banks_of_pods_name_their_node_and_pool() -> None:
    """The keys that the pod mover reads, on every bank."""
    plan = SitePlan(node_count=2)

    banks = tomllib.loads(write_site(plan, pool="c07-h100"))["bank"]

    assert [(b["workloads"], b["node"], b["pool"]) for b in banks] == [
        ("kubernetes", name, "c07-h100") for name in plan.nodes
    ]


def test_inference_may_have_a_lower_limit_beside_the_full_one(tmp_path: Path) -> None:
    """Its throughput is the catalogue's; without one the controller knows a single limit for inference."""
    plan = SitePlan(node_count=1)
    path = tmp_path / "site.toml"
    found = []
    for low_serve_w in (None, 500.0):
        path.write_text(write_site(plan, low_serve_w=low_serve_w), encoding="utf-8")
        (gpus,) = load_configuration(path, environment={}).site.classes.values()
        found.append({p.power_w: p.throughput_ratio for p in gpus.points if p.mode.value == "inference"})
    assert found == [{700.0: 1.0}, {700.0: 1.0, 500.0: pytest.approx(plan.gpu.throughput_ratio(500.0), abs=1e-3)}]
