"""What pods shall do, for any node: no call asks for more than is wished and free, and calls end where the wishes are.

The world below is Kubernetes as it may behave: calls are lost or carried out, pods end late, processes outlive their pods, kubelet gives
any free GPU, people delete pods, the agent tells what it saw a moment ago.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from swingbus_controller.domain.cluster.facts import PodRef
from swingbus_controller.domain.cluster.pod_moves import (
    DeleteMiner,
    EvictPod,
    LiftGate,
    MakeMiner,
    NodePod,
    PodMove,
    UnitWish,
    pod_moves,
)
from swingbus_controller.domain.flips.unit_roles import find_swaps
from swingbus_controller.domain.planning.points import Mode

TENANTS = (Mode.MINING, Mode.INFERENCE, Mode.STANDBY)


def ref(name: str, namespace: str = "inference") -> PodRef:
    """Return a life of a pod."""
    return PodRef(namespace=namespace, name=name, uid=f"uid-{name}")


@st.composite
def nodes(draw: st.DrawFn) -> tuple[list[UnitWish], list[NodePod], int, int | None]:
    """Return any wishes and any pods of a node, whether they fit together or not."""
    unit_size = draw(st.sampled_from([1, 4, 8]))
    waiting = [ref(f"w{n}") for n in range(draw(st.integers(1, 3)))]
    running = [ref(f"p{n}", draw(st.sampled_from(["mining", "inference"]))) for n in range(draw(st.integers(0, 5)))]
    wishes = []
    for unit in range(draw(st.integers(1, 8))):
        tenant = draw(st.sampled_from(TENANTS))
        is_freed = tenant is Mode.STANDBY and draw(st.booleans())
        may_name = running if is_freed else waiting if tenant is Mode.INFERENCE else []
        wishes.append(
            UnitWish(
                unit=unit,
                tenant=tenant,
                may_start=draw(st.sampled_from([True, True, True, False])),
                is_freed=is_freed,
                flip=draw(st.sampled_from(["", "f-1", "f-2"])),
                pod=draw(st.sampled_from([None, *may_name])),
            )
        )
    sizes = st.sampled_from([1, unit_size, 2 * unit_size])
    pods = [
        NodePod(ref=each, tenant=Mode.INFERENCE, gpu_count=draw(sizes), is_gated=True, is_leaving=draw(st.booleans()))
        for each in waiting
    ]
    units = st.frozensets(st.integers(0, len(wishes) - 1), max_size=2)
    for number, each in enumerate(running):
        is_miner = each.namespace == "mining"
        pods.append(
            NodePod(
                ref=each,
                tenant=Mode.MINING if is_miner else Mode.INFERENCE,
                gpu_count=unit_size if is_miner else draw(sizes),
                units=draw(units),
                is_leaving=draw(st.booleans()),
                priority=draw(st.integers(-1, 1)),
                slot=number if is_miner and draw(st.sampled_from([True, True, False])) else None,
            )
        )
    return wishes, pods, unit_size, draw(st.none() | st.integers(0, len(wishes) * unit_size))


@settings(max_examples=1000)
@given(nodes())
def test_no_call_asks_for_more_than_is_wished_and_free(
    node: tuple[list[UnitWish], list[NodePod], int, int | None],
) -> None:
    """Who comes fits what is wished for its tenant, what the node offers, and what evidence shows free beside who is on the way."""
    wishes, pods, unit_size, offered = node
    moves = pod_moves(wishes, pods, unit_size=unit_size, gpu_count=offered)
    by_ref = {pod.ref: pod for pod in pods}
    held = [pod for pod in pods if not pod.is_gated]
    lifted = [by_ref[move.pod] for move in moves if isinstance(move, LiftGate)]
    made_count = sum(isinstance(move, MakeMiner) for move in moves)
    for tenant, coming in ((Mode.INFERENCE, sum(p.gpu_count for p in lifted)), (Mode.MINING, made_count * unit_size)):
        wanted = sum(wish.tenant is tenant for wish in wishes) * unit_size
        assert not coming or coming + sum(p.gpu_count for p in held if p.tenant is tenant) <= wanted
    coming = sum(p.gpu_count for p in lifted) + made_count * unit_size
    offered_count = len(wishes) * unit_size if offered is None else offered
    assert coming <= max(0, offered_count - sum(pod.gpu_count for pod in held))
    on_the_way = sum(max(0, pod.gpu_count - len(pod.units) * unit_size) for pod in held)
    assert coming <= max(0, sum(wish.may_start for wish in wishes) * unit_size - on_the_way)
    assert made_count <= sum(w.tenant is Mode.MINING and w.may_start for w in wishes)


@settings(max_examples=1000)
@given(nodes())
def test_each_call_means_somebody_it_may_mean(node: tuple[list[UnitWish], list[NodePod], int, int | None]) -> None:
    """Only a named pod is let go, only miners of ours are deleted, only who is on a freed unit, or named by it, is evicted."""
    wishes, pods, unit_size, offered = node
    moves = pod_moves(wishes, pods, unit_size=unit_size, gpu_count=offered)
    by_ref = {pod.ref: pod for pod in pods}
    for move in moves:
        match move:
            case LiftGate(pod=pod, flip=flip):
                naming = [wish for wish in wishes if wish.pod == pod and not wish.is_freed]
                assert naming and all(wish.may_start for wish in naming) and flip in {w.flip for w in naming}
                assert len(naming) * unit_size >= by_ref[pod].gpu_count
                assert by_ref[pod].is_gated and not by_ref[pod].is_leaving
            case DeleteMiner(pod=pod):
                assert by_ref[pod].slot is not None and not by_ref[pod].is_leaving
            case EvictPod(pod=pod, flip=flip):
                assert by_ref[pod].tenant is Mode.INFERENCE
                assert not by_ref[pod].is_leaving and not by_ref[pod].is_gated
                freeing = [w for w in wishes if w.is_freed and (w.pod == pod or w.unit in by_ref[pod].units)]
                assert flip in {wish.flip for wish in freeing}
            case MakeMiner(slot=slot):
                assert slot not in {pod.slot for pod in pods}
    assert max(Counter(map(repr, moves)).values(), default=1) == 1


@settings(max_examples=1000)
@given(nodes())
def test_as_many_leave_as_have_to_and_no_more(node: tuple[list[UnitWish], list[NodePod], int, int | None]) -> None:
    """After the deletions mining holds what it shall, as far as the miners are ours; whoever a flip frees a unit of is asked to go."""
    wishes, pods, unit_size, offered = node
    moves = pod_moves(wishes, pods, unit_size=unit_size, gpu_count=offered)
    wanted = sum(wish.tenant is Mode.MINING for wish in wishes)
    staying = [pod for pod in pods if pod.tenant is Mode.MINING and not pod.is_leaving]
    ours = sum(pod.slot is not None for pod in staying)
    deleted = {move.pod for move in moves if isinstance(move, DeleteMiner)}
    least = min(ours, max(0, len(staying) - wanted))
    # Beyond that only from units that flips free, where others who stay have places of miners.
    others = {u for p in pods if p.tenant is not Mode.MINING and not (p.is_leaving or p.is_gated) for u in p.units}
    taken = sum(wish.tenant is Mode.MINING and wish.unit in others for wish in wishes)
    freed_units = {wish.unit for wish in wishes if wish.is_freed}
    on_freed = sum(pod.ref in deleted and bool(pod.units & freed_units) for pod in staying)
    assert least <= len(deleted) <= least + min(taken, on_freed)
    freed = [wish for wish in wishes if wish.is_freed]
    due = {
        pod.ref
        for pod in pods
        if pod.tenant is Mode.INFERENCE and not pod.is_gated and not pod.is_leaving
        if any(wish.pod == pod.ref or wish.unit in pod.units for wish in freed)
    }
    assert {move.pod for move in moves if isinstance(move, EvictPod)} == due


def test_who_is_in_anothers_place_leaves_first_then_the_least_then_the_newest() -> None:
    """A unit goes from mining to rest: the miner on it leaves, not its neighbour; where nothing is known the newest does."""
    wishes = [UnitWish(unit=0, tenant=Mode.MINING), UnitWish(unit=1, tenant=Mode.STANDBY)]
    m0, m1 = ref("m0", "mining"), ref("m1", "mining")
    pods = [
        NodePod(ref=each, tenant=Mode.MINING, gpu_count=1, units=frozenset({n}), made_s=-n, slot=n)
        for n, each in enumerate((m0, m1))
    ]
    assert pod_moves(wishes, pods, unit_size=1) == (DeleteMiner(m1),)
    unknown = [replace(pod, units=frozenset()) for pod in pods]
    assert pod_moves(wishes, unknown, unit_size=1) == (DeleteMiner(m0),)
    dear = [replace(unknown[0], priority=1), unknown[1]]
    assert pod_moves(wishes, dear, unit_size=1) == (DeleteMiner(m1),)


def test_a_customer_in_a_miners_place_is_not_evicted_for_it() -> None:
    """Nobody is evicted but from a unit that a flip frees: a place that is merely meant for others is no reason."""
    there = NodePod(ref=ref("a"), tenant=Mode.INFERENCE, gpu_count=1, units=frozenset({0}))
    for tenant in (Mode.MINING, Mode.STANDBY):
        assert pod_moves([UnitWish(unit=0, tenant=tenant, may_start=True)], [there], unit_size=1) == ()
    freed = UnitWish(unit=0, tenant=Mode.STANDBY, is_freed=True, flip="f")
    assert pod_moves([freed], [there], unit_size=1) == (EvictPod(ref("a"), "f"),)


def test_who_is_on_the_way_takes_one_of_the_free_units() -> None:
    """The miner made for unit 0 is not seen by the agent yet, unit 1's pod still leaves: there is no second free unit."""
    wishes = [
        UnitWish(unit=0, tenant=Mode.MINING, may_start=True),
        UnitWish(unit=1, tenant=Mode.MINING, may_start=False),
    ]
    old = NodePod(ref=ref("a"), tenant=Mode.INFERENCE, gpu_count=1, units=frozenset({1}), is_leaving=True)
    assert pod_moves(wishes, [old], unit_size=1) == (MakeMiner(0, ""),)
    made = NodePod(ref=ref("m0", "mining"), tenant=Mode.MINING, gpu_count=1, slot=0)
    assert pod_moves(wishes, [old, made], unit_size=1) == ()


def test_nobody_comes_to_a_node_where_a_process_has_outlived_its_pod() -> None:
    """Kubelet takes both units for free, the agent sees somebody at work on unit 1: whoever came might be given that one."""
    waiting = NodePod(ref=ref("w"), tenant=Mode.INFERENCE, gpu_count=1, is_gated=True)
    wishes = [
        UnitWish(unit=0, tenant=Mode.INFERENCE, may_start=True, flip="f", pod=waiting.ref),
        UnitWish(unit=1, tenant=Mode.MINING, may_start=False),
    ]
    assert pod_moves(wishes, [waiting], unit_size=1) == ()
    ended = [wishes[0], replace(wishes[1], may_start=True)]
    assert pod_moves(ended, [waiting], unit_size=1) == (LiftGate(waiting.ref, "f"), MakeMiner(0, ""))


def test_the_one_gpu_that_is_offered_is_not_given_to_both_tenants() -> None:
    """Of two GPUs one has failed and is offered to nobody: the pod that waits comes, no miner beside it."""
    waiting = NodePod(ref=ref("w"), tenant=Mode.INFERENCE, gpu_count=1, is_gated=True)
    wishes = [
        UnitWish(unit=0, tenant=Mode.INFERENCE, may_start=True, flip="f", pod=waiting.ref),
        UnitWish(unit=1, tenant=Mode.MINING, may_start=True),
    ]
    assert pod_moves(wishes, [waiting], unit_size=1, gpu_count=1) == (LiftGate(waiting.ref, "f"),)


@dataclass(slots=True)
class World:
    """A node: pods in the API, processes on GPUs, what its agent last told, and calls that may get lost."""

    rng: random.Random
    unit_count: int
    pods: dict[PodRef, NodePod] = field(default_factory=dict)
    gpus: dict[int, PodRef] = field(default_factory=dict)  # GPU to the pod whose process is on it
    told: dict[int, PodRef] = field(default_factory=dict)  # the same, a moment ago
    leavers: set[PodRef] = field(default_factory=set)
    made: int = 0

    def holders(self) -> Counter[Mode]:
        """Return how many pods of each tenant have a GPU or are on their way to one, those that leave among them."""
        return Counter(pod.tenant for pod in self.pods.values() if not pod.is_gated)

    def as_told(self) -> list[NodePod]:
        """Return the pods with the units that the agent last told."""
        units: dict[PodRef, set[int]] = {}
        for gpu, each in self.told.items():
            units.setdefault(each, set()).add(gpu)
        return [replace(pod, units=frozenset(units.get(pod.ref, ()))) for pod in self.pods.values()]

    def carry_out(self, moves: tuple[PodMove, ...]) -> None:
        """Do what the calls ask, but for those that get lost."""
        for move in moves:
            if isinstance(move, EvictPod):
                assert move.pod in self.leavers
            if self.rng.random() < 0.2:
                continue
            match move:
                case DeleteMiner(pod=pod) | EvictPod(pod=pod):
                    self.pods[pod] = replace(self.pods[pod], is_leaving=True)
                case LiftGate(pod=pod):
                    self.pods[pod] = replace(self.pods[pod], is_gated=False)
                case MakeMiner(slot=slot):
                    if not any(pod.slot == slot for pod in self.pods.values()):
                        self.add(Mode.MINING, slot=slot)

    def add(self, tenant: Mode, *, slot: int | None = None, is_gated: bool = False) -> NodePod:
        """Make a pod of one GPU."""
        self.made += 1
        uid = f"u{self.made}"
        made = (
            PodRef(namespace="inference", name=uid, uid=uid)
            if slot is None
            else PodRef(namespace="mining", name=f"miner-{slot}", uid=uid)
        )
        pod = NodePod(ref=made, tenant=tenant, gpu_count=1, is_gated=is_gated, made_s=self.made, slot=slot)
        self.pods[made] = pod
        return pod

    def pass_time(self) -> None:
        """Pods start on any GPU that no pod has and end late; their processes end later still. The agent tells what was before."""
        self.told = dict(self.gpus)
        for each, pod in list(self.pods.items()):
            if pod.is_leaving and self.rng.random() < 0.5:
                del self.pods[each]
            elif not pod.is_gated and not pod.is_leaving and each not in self.gpus.values():
                free = [gpu for gpu in range(self.unit_count) if gpu not in self.gpus]
                assert free, "it was let go where nothing is free"
                if self.rng.random() < 0.7:
                    self.gpus[self.rng.choice(free)] = each
        for gpu, each in list(self.gpus.items()):
            if each not in self.pods and self.rng.random() < 0.5:
                del self.gpus[gpu]

    def somebody_deletes(self) -> None:
        """Somebody deletes a pod, whoever's it is."""
        there = [pod for pod in self.pods.values() if not pod.is_gated]
        if there and self.rng.random() < 0.05:
            chosen = self.rng.choice(there)
            self.pods[chosen.ref] = replace(chosen, is_leaving=True)

    def staying(self) -> list[NodePod]:
        """Return pods of inference that are here to stay."""
        return [
            pod
            for each, pod in self.pods.items()
            if pod.tenant is Mode.INFERENCE and not pod.is_gated and not pod.is_leaving and each not in self.leavers
        ]

    def wishes(self, roles: list[Mode]) -> list[UnitWish]:
        """Return the wishes that lead to these roles; they change places where kubelet chose another GPU than was meant."""
        there = {unit: self.pods[each] for unit, each in self.told.items() if each in self.pods}
        stays = {unit: pod.tenant for unit, pod in there.items() if not pod.is_leaving}
        bare = [UnitWish(unit=unit, tenant=role) for unit, role in enumerate(roles)]
        for one, two in find_swaps(bare, stays, held_units=self.told.keys()):
            roles[one], roles[two] = roles[two], roles[one]
        missing = max(0, roles.count(Mode.INFERENCE) - len(self.staying()))
        waiting = [pod for pod in self.pods.values() if pod.is_gated]
        waiting += [self.add(Mode.INFERENCE, is_gated=True) for _ in range(missing - len(waiting))]
        empty = [u for u, role in enumerate(roles) if role is Mode.INFERENCE and stays.get(u) is not Mode.INFERENCE]
        lets_in = dict(zip(empty, waiting[:missing], strict=False))
        wishes = {
            unit: UnitWish(
                unit=unit,
                tenant=role,
                may_start=unit not in self.told,
                flip=f"f{unit}",
                pod=lets_in[unit].ref if unit in lets_in else None,
            )
            for unit, role in enumerate(roles)
        }
        held = {each: unit for unit, each in self.told.items()}
        for each in sorted(self.leavers & self.pods.keys(), key=lambda each: each.uid):
            unit = held.get(each)
            if unit is None:
                unit = next(u for u, w in wishes.items() if not w.is_freed)
            named = None if each in held and self.rng.random() < 0.5 else each
            wishes[unit] = UnitWish(unit=unit, tenant=Mode.STANDBY, is_freed=True, flip=f"out{unit}", pod=named)
        return [wishes[unit] for unit in range(self.unit_count)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_calls_end_where_the_wishes_are_whatever_gets_lost(seed: int) -> None:
    """Wishes change now and then; whenever they stand still for long, each tenant holds exactly its units, and no call is left."""
    rng = random.Random(seed)
    world = World(rng, unit_count=rng.randint(1, 8))
    for _ in range(4):
        tenants = [rng.choice(TENANTS) for _ in range(world.unit_count)]
        surplus = max(0, len(world.staying()) - tenants.count(Mode.INFERENCE))
        world.leavers |= {pod.ref for pod in rng.sample(world.staying(), surplus)}
        moves: tuple[PodMove, ...] = ()
        roles = list(tenants)
        for turn in range(160):
            if turn < 40:
                world.somebody_deletes()
            wishes = world.wishes(roles)
            moves = pod_moves(wishes, world.as_told(), unit_size=1)
            before = world.holders()
            world.carry_out(moves)
            after = world.holders()
            assert all(after[t] <= max(before[t], tenants.count(t)) for t in (Mode.MINING, Mode.INFERENCE)), seed
            assert after.total() <= max(before.total(), world.unit_count), seed
            world.pass_time()
        assert moves == (), (seed, moves)
        seen = world.holders()
        assert seen[Mode.MINING] == tenants.count(Mode.MINING), seed
        assert seen[Mode.INFERENCE] == tenants.count(Mode.INFERENCE), seed
