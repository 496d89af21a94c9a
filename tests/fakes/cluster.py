"""A cluster in virtual time: pods, a scheduler that preempts, kubelets that choose GPUs, budgets that refuse. Implements `ports.cluster`.

It behaves as Kubernetes was seen to: a gate holds, a lift is one step, a leaving pod keeps its GPU until it is gone, whoever has more
priority pushes a miner out where nothing is free, workloads make their pods again, processes outlive pods where a test says so. Nothing
here knows flips.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from swingbus.faults import Forbidden, InvalidInput, OverBudget, Unreachable, WrongState
from swingbus_controller.domain.cluster.facts import HOSTNAME_LABEL, ClusterNode, ClusterPod, PodKey, PodRef, Pool
from swingbus_controller.domain.cluster.pool_words import PoolWords, Story
from swingbus_controller.domain.cluster.state import ClusterState
from swingbus_controller.ports.cluster import CallAnswer, CallOutcome
from tests.fakes.memory_journal import Crashed

GRACE_S, START_S, READY_S = 2.0, 1.0, 3.0
TAKEN = CallOutcome(answer=CallAnswer.TAKEN)
GONE = CallOutcome(answer=CallAnswer.GONE)


@dataclass
class Running:
    """A pod on its node: which GPUs the kubelet gave it, when it came, when it was told to go."""

    node: str
    gpus: tuple[int, ...]
    since_s: float
    told_s: float | None = None
    grace_s: float = GRACE_S


@dataclass
class Workload:
    """A ReplicaSet."""

    name: str
    uid: str
    namespace: str
    replicas: int
    gpu_count: int
    priority: int = 0
    min_available: int | None = None  # of its disruption budget
    has_two_budgets: bool = False
    is_gated: bool = True
    selector: dict[str, str] = field(default_factory=dict)


@dataclass
class Process:
    """Something that works on a GPU, whatever anybody says of pods."""

    node: str
    gpu: int
    pod: str  # namespace/name
    uid: str
    is_miner: bool


class FakeCluster:
    """One cluster; `step` lets time pass."""

    def __init__(self, rng: random.Random, now: Callable[[], float], *, miner_namespace: str = "miners") -> None:
        self.rng, self.now = rng, now
        self.state = ClusterState(is_synced=True, permit_left_s=self.may_write_s)
        self.calls = self
        self.miner_namespace = miner_namespace
        self.workloads: dict[str, Workload] = {}
        self.running: dict[PodRef, Running] = {}
        self.processes: list[Process] = []
        self.ended: list[PodRef] = []  # told as ended, not yet forgotten
        self.ends: dict[PodRef, float] = {}  # processes of pods that are gone, and when they end
        self.preempted: list[str] = []
        self.victims: dict[PodRef, list[PodRef]] = {}
        self.evicted: list[str] = []
        self.stories: list[Story] = []  # as they were sent
        self.told: dict[tuple[str, str, str], Story] = {}  # as they stand: each once
        self.words: dict[str, PoolWords] = {}
        self.log: list[str] = []
        self.writes_count = 0
        self.failing: set[str] = set()  # nodes that reject what is sent there
        self.slow_to_end_s: dict[str, float] = {}  # by pod name: how long its processes outlive it
        self.never_ready: set[str] = set()
        self.lost_calls_ratio = 0.0
        self.is_down = False
        self.busy_until_s = float("-inf")  # until then it asks to be left alone
        self.missing_templates: set[str] = set()
        self.missing_classes: set[str] = set()  # of priority
        self.hollow_templates: set[str] = set()  # they have no container
        self.permit_s = 60.0
        self.may_delete_customers = True
        self.dies_after: Callable[[str], bool] | None = None  # whoever calls is killed when such a call was carried out
        self._numbers = itertools.count(1)

    # What tests do.

    def add_node(self, name: str, gpu_count: int, labels: dict[str, str]) -> None:
        self.state.see_node(
            ClusterNode(name=name, uid=f"node-{name}", gpu_count=gpu_count, labels={HOSTNAME_LABEL: name, **labels})
        )

    def deploy(
        self, name: str, replicas: int, *, gpu_count: int = 1, namespace: str = "customers", **more: object
    ) -> None:
        """Make a workload, or scale it."""
        known = self.workloads.get(name)
        if known is None:
            self.workloads[name] = Workload(name, f"uid-{name}", namespace, replicas, gpu_count, **more)  # type: ignore[arg-type]
        else:
            known.replicas = replicas
        self._keep_replicas()

    def pods_of(self, workload: str) -> list[ClusterPod]:
        return [pod for pod in self.state.pods.values() if pod.owner_uid == f"uid-{workload}"]

    def ready_count(self, workload: str) -> int:
        return sum(pod.is_ready and not pod.is_leaving for pod in self.pods_of(workload))

    def miners_on(self, node: str) -> list[ClusterPod]:
        return [pod for pod in self.state.pods_on(node) if pod.namespace == self.miner_namespace]

    def delete_by_hand(self, ref: PodRef, *, disruption: str = "") -> None:
        """Somebody deletes a pod; a reason where Kubernetes has one for it."""
        found = self.state.pod(ref)
        if found is not None:
            self._tell_to_go(found, GRACE_S, disruption)

    def put(self, pod: ClusterPod) -> ClusterPod:
        """Somebody makes a pod that no workload is behind, or changes one; returns it as it is now."""
        if pod.is_over:
            self.running.pop(pod.ref, None)
            self.processes = [p for p in self.processes if p.uid != pod.uid]
        self._see(pod)
        return self.state.pods[pod.key]

    def lift_by_hand(self, ref: PodRef) -> None:
        """Somebody takes our gate away."""
        found = self.state.pod(ref)
        if found is not None:
            self._see(replace(found, is_gated=False))

    def restart_in_place(self, ref: PodRef) -> None:
        """The containers of a pod end and start again: no gate, no scheduler, the same GPUs."""
        run, found = self.running[ref], self.state.pod(ref)
        assert found is not None
        run.since_s = self.now() + 2.0
        self.processes = [p for p in self.processes if p.uid != ref.uid]
        self._see(replace(found, is_ready=False))

    def force_delete(self, ref: PodRef, *, lingers_s: float) -> None:
        """Take the object away while its processes live on."""
        self.slow_to_end_s[ref.name] = lingers_s
        self._remove(ref)

    def holders(self, node: str) -> Iterator[tuple[int, str]]:
        """Return (GPU, namespace/name) as the node's kubelet lists pods."""
        for ref, run in self.running.items():
            if run.node == node:
                for gpu in run.gpus:
                    yield gpu, str(ref)

    # Time.

    def step(self) -> None:
        now_s = self.now()
        while self.ended:
            self.state.lose_pod(self.ended.pop())
        for ref, run in list(self.running.items()):
            pod = self.state.pod(ref)
            if pod is None:
                continue
            if run.told_s is not None and now_s - run.told_s >= run.grace_s:
                self._remove(ref)
            elif run.told_s is None and now_s - run.since_s >= START_S:
                self._work(ref, run)
                is_ready = now_s - run.since_s >= READY_S and ref.name not in self.never_ready
                if is_ready and not pod.is_ready:
                    self._see(replace(pod, is_ready=True))
        for ref, until_s in list(self.ends.items()):
            if now_s >= until_s:
                del self.ends[ref]
                self.processes = [p for p in self.processes if p.uid != ref.uid]
        self._keep_replicas()
        self._schedule()

    def _work(self, ref: PodRef, run: Running) -> None:
        for gpu in run.gpus:
            if not any(p.uid == ref.uid and p.gpu == gpu for p in self.processes):
                is_miner = ref.namespace == self.miner_namespace
                self.processes.append(Process(run.node, gpu, str(ref), ref.uid, is_miner))

    def _remove(self, ref: PodRef) -> None:
        pod = self.state.pod(ref)
        if self.running.pop(ref, None) is None or pod is None or not pod.is_leaving:
            self.state.lose_pod(ref)
        else:  # kubelet tells that it ended before the API forgets it
            self._see(replace(pod, is_over=True, failure="exit code 143"))
            self.ended.append(ref)
        lingers_s = self.slow_to_end_s.pop(ref.name, 0.0)
        if lingers_s > 0.0:
            self.ends[ref] = self.now() + lingers_s
        else:
            self.processes = [p for p in self.processes if p.uid != ref.uid]

    def _keep_replicas(self) -> None:
        for each in self.workloads.values():
            here = [p for p in self.pods_of(each.name) if not p.is_leaving and not p.is_over]
            for _ in range(each.replicas - len(here)):
                number = next(self._numbers)
                self._see(
                    ClusterPod(
                        namespace=each.namespace,
                        name=f"{each.name}-{number}",
                        uid=f"uid-{number}",
                        revision="",
                        gpu_count=each.gpu_count,
                        is_gated=each.is_gated,
                        priority=each.priority,
                        made_unix_s=self.now() + number / 1e6,
                        owner_uid=each.uid,
                        owner_kind="ReplicaSet",
                        node_selector=each.selector,
                    )
                )
            surplus = len(here) - each.replicas
            for pod in sorted(here, key=lambda p: (bool(p.node), p.is_ready, -p.made_unix_s))[: max(0, surplus)]:
                self._tell_to_go(pod, GRACE_S)
            for pod in self.pods_of(each.name):
                if pod.is_over:
                    self._remove(pod.ref)

    def _schedule(self) -> None:
        for pod in sorted(self.state.unbound(), key=lambda pod: pod.rank):
            if pod.is_gated or pod.has_other_gates or pod.is_leaving or pod.is_over:
                continue
            nodes = [n for n in self.state.nodes.values() if self._fits(pod, n)]
            for node in nodes:
                taken = sum(p.gpu_count for p in self.state.pods_on(node.name) if p.node and not p.is_over)
                if node.gpu_count - taken >= pod.gpu_count:
                    self._bind(pod, node)
                    break
            else:
                self._preempt(pod, nodes)

    def _preempt(self, pod: ClusterPod, nodes: list[ClusterNode]) -> None:
        """Push miners out of the first node where that helps; whoever did so waits until they are gone."""
        if pod.namespace == self.miner_namespace or any(self.state.pod(m) for m in self.victims.get(pod.ref, ())):
            return
        for node in nodes:
            there = [p for p in self.state.pods_on(node.name) if p.node and not p.is_over]
            staying = [m for m in there if m.priority < pod.priority and not m.is_leaving]
            missing = pod.gpu_count - (node.gpu_count - sum(p.gpu_count for p in there))
            if missing > sum(m.gpu_count for m in staying):
                continue
            for victim in sorted(staying, key=lambda m: m.key)[:missing]:
                self.preempted.append(f"{victim.name} for {pod.name}")
                self.victims.setdefault(pod.ref, []).append(victim.ref)
                self._tell_to_go(victim, GRACE_S, "PreemptionByScheduler")
            return

    def _fits(self, pod: ClusterPod, node: ClusterNode) -> bool:
        if pod.slot is not None and pod.aimed_at != node.name:
            return False
        return all(node.labels.get(k) == v for k, v in pod.node_selector.items())

    def _bind(self, pod: ClusterPod, node: ClusterNode) -> None:
        if node.name in self.failing:
            self._see(replace(pod, node=node.name, is_over=True, failure="UnexpectedAdmissionError: no device"))
            return
        held = {gpu for gpu, _ in self.holders(node.name)}
        free = [gpu for gpu in range(node.gpu_count) if gpu not in held]
        chosen = tuple(self.rng.sample(free, pod.gpu_count))
        self.running[pod.ref] = Running(node.name, chosen, self.now())
        self._see(replace(pod, node=node.name))

    def _tell_to_go(self, pod: ClusterPod, grace_s: float, disruption: str = "") -> None:
        run = self.running.get(pod.ref)
        if run is None:
            self._remove(pod.ref)
            return
        if run.told_s is not None:
            return
        run.told_s, run.grace_s = self.now(), grace_s
        self._see(replace(pod, is_leaving=True, is_ready=False, disruption=disruption or pod.disruption))

    def _see(self, pod: ClusterPod) -> None:
        self.state.see_pod(replace(pod, revision=str(next(self._numbers))))

    # The port.

    def may_write_s(self) -> float:
        return self.permit_s

    async def wait_changed(self) -> None:
        """Return at once: tests look every second."""

    def _called(self, what: str) -> bool:
        """Note a call; return whether its answer gets lost on the way back."""
        self._reach(what)
        self.writes_count += 1
        self.log.append(what)
        if self.rng.random() < self.lost_calls_ratio:
            if self.rng.random() < 0.5:
                raise OverBudget("busy", metadata={"retry_after_s": "1"})
            return True
        return False

    def _reach(self, what: str) -> None:
        if self.permit_s <= 0:
            raise WrongState(f"cannot {what}: this controller does not hold the lease", reason="NO_WRITE_PERMIT")
        if self.is_down:
            raise Unreachable(f"cannot {what}: the API server is away")
        if (wait_s := self.busy_until_s - self.now()) > 0:
            facts = {"retry_after_s": f"{wait_s:.3f}"}
            raise OverBudget(f"cannot {what}: the API server asks to wait", reason="THROTTLED", metadata=facts)

    def _answered(self, what: str, is_lost: bool) -> CallOutcome:
        """Answer a call that was carried out."""
        if self.dies_after is not None and self.dies_after(what):
            raise Crashed
        if is_lost:
            raise Unreachable("the answer got lost")
        return TAKEN

    async def delete_pod(self, pod: PodRef, *, grace_s: int | None) -> CallOutcome:
        is_lost = self._called(f"delete {pod}")
        found = self.state.pod(pod)
        if found is None:
            return GONE
        if found.slot is None and not self.may_delete_customers:
            raise Forbidden(f"cannot delete pods {pod}: User cannot delete resource", reason="VERB_FORBIDDEN")
        self._tell_to_go(found, GRACE_S if grace_s is None else float(grace_s))
        return self._answered(f"delete {pod}", is_lost)

    async def evict_pod(self, pod: PodRef, *, only_revision: str = "") -> CallOutcome:
        is_lost = self._called(f"evict {pod}")
        found = self.state.pod(pod)
        if found is None:
            return GONE
        if only_revision and found.revision != only_revision:
            return CallOutcome(answer=CallAnswer.STALE)
        owner = next((w for w in self.workloads.values() if w.uid == found.owner_uid), None)
        if owner is not None and owner.has_two_budgets and found.node:
            said = "This pod has more than one PodDisruptionBudget"
            return CallOutcome(answer=CallAnswer.BLOCKED, detail=said, is_for_ever=True)
        if owner is not None and owner.min_available is not None and found.is_ready:
            healthy = self.ready_count(owner.name)
            if healthy <= owner.min_available:
                return CallOutcome(
                    answer=CallAnswer.BLOCKED,
                    detail=f"The disruption budget {owner.name} needs {owner.min_available} healthy pods and has {healthy} currently",
                    budget=owner.name,
                    needed_count=owner.min_available,
                    healthy_count=healthy,
                    retry_after_s=1.0,
                )
        self.evicted.append(pod.name)
        self._tell_to_go(found, GRACE_S, "EvictionByEvictionAPI")
        return self._answered(f"evict {pod}", is_lost)

    async def lift_gate(self, pod: ClusterPod, node: ClusterNode, pool: Pool, *, flip: str) -> CallOutcome:
        is_lost = self._called(f"lift {pod.ref}")
        found = self.state.pod(pod.ref)
        if found is None:
            return GONE
        if found.revision != pod.revision or not found.is_gated:
            return CallOutcome(answer=CallAnswer.STALE)
        self._see(
            replace(
                found,
                is_gated=False,
                aimed_at=node.name,
                flip=flip,
                lifted_unix_s=self.now(),
                node_selector={**pool.node_selector, HOSTNAME_LABEL: node.name, **found.node_selector},
            )
        )
        return self._answered(f"lift {pod.ref}", is_lost)

    async def make_miner(self, pool: Pool, node: ClusterNode, *, slot: int, gpu_count: int, flip: str) -> CallOutcome:
        if pool.miner_template in self.missing_templates:
            said = f"there is no PodTemplate {pool.miner_template} in namespace {pool.miner_namespace}: create it"
            return CallOutcome(answer=CallAnswer.REFUSED, detail=said)
        if pool.miner_template in self.hollow_templates:
            said = f"PodTemplate {pool.miner_namespace}/{pool.miner_template} has no container"
            raise InvalidInput(said, reason="BAD_TEMPLATE")
        is_lost = self._called(f"make miner {node.name} {slot}")
        if pool.miner_priority_class in self.missing_classes:
            said = f"no PriorityClass with name {pool.miner_priority_class} was found"
            return CallOutcome(answer=CallAnswer.REFUSED, detail=said)
        key: PodKey = (pool.miner_namespace, f"miner-{node.name}-{slot}")
        there = self.state.pods.get(key)
        if there is not None and (there.miner_pool, there.slot) != (pool.name, slot):
            said = f"pod {key[0]}/{key[1]} is not ours; rename or delete it"
            return CallOutcome(answer=CallAnswer.REFUSED, detail=said)
        if there is None:
            number = next(self._numbers)
            self._see(
                ClusterPod(
                    namespace=key[0],
                    name=key[1],
                    uid=f"uid-{number}",
                    revision="",
                    gpu_count=gpu_count,
                    aimed_at=node.name,
                    priority=-1000,
                    made_unix_s=self.now(),
                    owner_uid=pool.uid,
                    owner_kind="CapacityPool",
                    miner_pool=pool.name,
                    slot=slot,
                    flip=flip,
                )
            )
        return self._answered(f"make miner {node.name} {slot}", is_lost)

    async def write_pool(self, pool: Pool, words: PoolWords) -> CallOutcome:
        there = self.state.pools.get(pool.name)
        if there is None or there.uid != pool.uid:
            return GONE
        if self.words.get(pool.name) == words:
            self.log.append(f"status {pool.name}")  # asked for, and nothing is sent
            return TAKEN
        self._called(f"status {pool.name}")
        self.words[pool.name] = words
        return TAKEN

    async def tell(self, story: Story) -> CallOutcome:
        self._reach(f"tell {story.reason}")
        self.writes_count += 1
        self.stories.append(story)
        uid = story.uid if isinstance(story.about, str) else story.about.uid
        self.told.setdefault((story.once_for or story.flip, story.reason, uid), story)
        return TAKEN
