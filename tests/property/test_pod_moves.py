"""What pods shall do, for any node: no call asks for more than is wished and free, and calls end where the wishes are.

The world below is Kubernetes as it may behave: calls are lost or carried out, pods end late, processes outlive their pods, kubelet gives
any free GPU, people delete pods.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from swingbus_controller.domain.cluster.pod_moves import (
    DeleteMiner,
    EvictPod,
    LiftGate,
    MakeMiner,
    NodePod,
    UnitWish,
    pod_moves,
)
from swingbus_controller.domain.planning.points import Mode

TENANTS = (Mode.MINING, Mode.INFERENCE, Mode.STANDBY)


def nodes() -> st.SearchStrategy[tuple[list[UnitWish], list[NodePod], int]]:
    """Return any wishes and any pods of a node, whether they fit together or not."""

    @st.composite
    def drawn(draw: st.DrawFn) -> tuple[list[UnitWish], list[NodePod], int]:
        unit_size = draw(st.sampled_from([1, 4, 8]))
        waiting = [("inference", f"w{n}") for n in range(draw(st.integers(1, 3)))]
        wishes = []
        for unit in range(draw(st.integers(1, 8))):
            tenant = draw(st.sampled_from(TENANTS))
            is_named = tenant is Mode.INFERENCE and draw(st.sampled_from([True, True, False]))
            wishes.append(
                UnitWish(
                    unit=unit,
                    tenant=tenant,
                    may_start=draw(st.sampled_from([True, True, True, False])),
                    flip=draw(st.sampled_from(["", "f-1", "f-2"])),
                    pod=draw(st.sampled_from(waiting)) if is_named else None,
                )
            )
        pods = [
            NodePod(
                key=key,
                uid=f"uid-{key[1]}",
                tenant=Mode.INFERENCE,
                gpu_count=draw(st.sampled_from([1, unit_size])),
                is_gated=True,
            )
            for key in waiting
        ]
        units = st.frozensets(st.integers(0, len(wishes) - 1), max_size=2)
        for number in range(draw(st.integers(0, 4))):
            is_miner = draw(st.booleans())
            pods.append(
                NodePod(
                    key=("mining" if is_miner else "inference", f"p{number}"),
                    uid=f"uid-{number}",
                    tenant=Mode.MINING if is_miner else Mode.INFERENCE,
                    gpu_count=unit_size if is_miner else draw(st.sampled_from([1, unit_size])),
                    units=draw(units),
                    is_leaving=draw(st.booleans()),
                    priority=draw(st.integers(-1, 1)),
                    slot=number if is_miner else None,
                )
            )
        return wishes, pods, unit_size

    return drawn()


@settings(max_examples=500)
@given(nodes())
def test_no_call_asks_for_more_than_is_wished_and_free(node: tuple[list[UnitWish], list[NodePod], int]) -> None:
    """The promises of the room, for states that no order of events need have led to."""
    wishes, pods, unit_size = node
    moves = pod_moves(wishes, pods, unit_size=unit_size)
    by_key = {pod.key: pod for pod in pods}
    held = [pod for pod in pods if not pod.is_gated]
    lifted = [by_key[move.key] for move in moves if isinstance(move, LiftGate)]
    made_count = sum(isinstance(move, MakeMiner) for move in moves)
    # Nobody gets more than is wished for the tenant, nor more GPUs than nobody has.
    for tenant, coming in ((Mode.INFERENCE, sum(p.gpu_count for p in lifted)), (Mode.MINING, made_count * unit_size)):
        wanted = sum(wish.tenant is tenant for wish in wishes) * unit_size
        assert not coming or coming + sum(p.gpu_count for p in held if p.tenant is tenant) <= wanted
    free_count = len(wishes) * unit_size - sum(pod.gpu_count for pod in held)
    assert sum(p.gpu_count for p in lifted) + made_count * unit_size <= max(0, free_count)
    assert made_count <= sum(w.tenant is Mode.MINING and w.may_start for w in wishes)
    # Only what a flip names is let go, and only where all its units may start.
    for move in moves:
        match move:
            case LiftGate(key=key, flip=flip):
                naming = [wish for wish in wishes if wish.pod == key]
                assert naming and all(wish.may_start for wish in naming) and flip in {w.flip for w in naming}
                assert by_key[key].is_gated and not by_key[key].is_leaving
            case DeleteMiner(key=key):
                assert by_key[key].tenant is Mode.MINING and not by_key[key].is_leaving
            case EvictPod(key=key):
                assert by_key[key].tenant is Mode.INFERENCE
                assert not by_key[key].is_leaving and not by_key[key].is_gated
            case MakeMiner(slot=slot):
                assert slot not in {pod.slot for pod in held}
    assert max(Counter(map(repr, moves)).values(), default=1) == 1


def test_who_is_in_anothers_place_leaves_first_then_the_least_then_the_newest() -> None:
    """A unit goes from mining to rest: the miner on it leaves, not its neighbour; where nothing is known the newest does."""
    wishes = [UnitWish(unit=0, tenant=Mode.MINING), UnitWish(unit=1, tenant=Mode.STANDBY)]
    pods = [
        NodePod(
            key=("mining", f"m{n}"),
            uid=f"u{n}",
            tenant=Mode.MINING,
            gpu_count=1,
            units=frozenset({n}),
            made_s=-n,
            slot=n,
        )
        for n in range(2)
    ]
    assert pod_moves(wishes, pods, unit_size=1) == (DeleteMiner(("mining", "m1"), "u1"),)
    unknown = [replace(pod, units=frozenset()) for pod in pods]
    assert pod_moves(wishes, unknown, unit_size=1) == (DeleteMiner(("mining", "m0"), "u0"),)
    dear = [replace(unknown[0], priority=1), unknown[1]]
    assert pod_moves(wishes, dear, unit_size=1) == (DeleteMiner(("mining", "m1"), "u1"),)


@dataclass(slots=True)
class World:
    """A node: pods in the API, processes on GPUs, and calls that may get lost."""

    rng: random.Random
    unit_count: int
    pods: dict[str, NodePod] = field(default_factory=dict)
    gpus: dict[int, str] = field(default_factory=dict)  # GPU to the uid whose process is on it
    made: int = 0

    def holders(self) -> Counter[Mode]:
        """Return how many pods of each tenant have a GPU or are on their way to one, those that leave among them."""
        return Counter(pod.tenant for pod in self.pods.values() if not pod.is_gated)

    def carry_out(self, moves: tuple[object, ...]) -> None:
        """Do what the calls ask, but for those that get lost."""
        for move in moves:
            if self.rng.random() < 0.2:
                continue
            match move:
                case DeleteMiner(uid=uid) | EvictPod(uid=uid):
                    self.pods[uid] = replace(self.pods[uid], is_leaving=True)
                case LiftGate(uid=uid):
                    self.pods[uid] = replace(self.pods[uid], is_gated=False)
                case MakeMiner(slot=slot):
                    if not any(pod.slot == slot for pod in self.pods.values()):
                        self.add(Mode.MINING, slot=slot)

    def add(self, tenant: Mode, *, slot: int | None = None, is_gated: bool = False) -> NodePod:
        """Make a pod of one GPU."""
        self.made += 1
        uid = f"u{self.made}"
        key = ("mining", f"miner-{slot}") if slot is not None else ("inference", uid)
        pod = NodePod(key=key, uid=uid, tenant=tenant, gpu_count=1, is_gated=is_gated, made_s=self.made, slot=slot)
        self.pods[uid] = pod
        return pod

    def pass_time(self) -> None:
        """Pods start on any free GPU and end late; their processes end later still."""
        for uid, pod in list(self.pods.items()):
            if pod.is_leaving and self.rng.random() < 0.5:
                del self.pods[uid]
            elif not pod.is_gated and not pod.is_leaving and uid not in self.gpus.values():
                free = [gpu for gpu in range(self.unit_count) if gpu not in self.gpus]
                if free and self.rng.random() < 0.7:
                    gpu = self.rng.choice(free)
                    self.gpus[gpu] = uid
                    self.pods[uid] = replace(pod, units=frozenset({gpu}))
        for gpu, uid in list(self.gpus.items()):
            if uid not in self.pods and self.rng.random() < 0.5:
                del self.gpus[gpu]


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_calls_end_where_the_wishes_are_whatever_gets_lost(seed: int) -> None:
    """Wishes change now and then; whenever they stand still for long, each tenant holds exactly its units, and no call is left."""
    rng = random.Random(seed)
    world = World(rng, unit_count=rng.randint(1, 8))
    for _ in range(4):
        tenants = [rng.choice(TENANTS) for _ in range(world.unit_count)]
        running = [p for p in world.pods.values() if p.tenant is Mode.INFERENCE and not p.is_leaving and not p.is_gated]
        needed = max(0, tenants.count(Mode.INFERENCE) - len(running))
        named = [world.add(Mode.INFERENCE, is_gated=True) for _ in range(needed)]
        coming = iter(named)
        lets_in = dict(zip((u for u, t in enumerate(tenants) if t is Mode.INFERENCE), coming, strict=False))
        moves: tuple[object, ...] = ()
        for _ in range(120):
            wishes = [
                UnitWish(
                    unit=unit,
                    tenant=tenant,
                    may_start=len(world.gpus) < world.unit_count,  # kubelet gives any that is free
                    flip=f"f{unit}",
                    pod=lets_in[unit].key if unit in lets_in else None,
                )
                for unit, tenant in enumerate(tenants)
            ]
            moves = pod_moves(wishes, world.pods.values(), unit_size=1)
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
