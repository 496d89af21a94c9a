"""One cluster for a contract suite, three times: in virtual time, the adapter over an API server's double, the adapter over a real one.

A rig does what others do in a cluster: owners make pods, a scheduler binds them, kubelets start and end them, operators write budgets and
templates. What `cluster` makes of it is the suite's to ask.
"""

from __future__ import annotations

import itertools
import random
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Protocol

from swingbus_controller.domain.cluster.facts import HOSTNAME_LABEL, ClusterPod, Pool
from swingbus_controller.domain.cluster.pool_words import PoolWords
from swingbus_controller.ports.cluster import Cluster
from tests.fakes.cluster import FakeCluster

OURS = "swingbus.io/power"
THEIRS = "example.com/other"
TEMPLATE, HOLLOW = "miner", "hollow"
NO_CLASS = "no-such-class"
POOL_LABELS = {"kubernetes.io/os": "linux"}
_MOMENTS = 200
ENROLLED = {"swingbus.io/power-gate": "enabled"}


class ClusterRig(Protocol):
    """A cluster with two nodes, a pool over both, two enrolled namespaces, and a template for miners named `TEMPLATE`."""

    namespace: str
    miner_namespace: str
    nodes: tuple[str, str]
    pool_name: str

    @property
    def cluster(self) -> Cluster: ...

    async def make_pod(
        self, name: str, *, gates: tuple[str, ...] = (OURS,), labels: Mapping[str, str] | None = None, node: str = ""
    ) -> ClusterPod:
        """Make a pod of one GPU that may go to one node only, if told; return it as `cluster` shows it."""
        ...

    async def make_foreign(self, name: str) -> None:
        """Make a pod that is not ours among the miners."""
        ...

    async def touch(self, pod: ClusterPod) -> ClusterPod:
        """Somebody notes something on a pod; return it as `cluster` shows it then."""
        ...

    def hear(self, is_hearing: bool) -> None:
        """Let the copy hear of no change, where it can lag at all; or again."""
        ...

    async def note(self, pod: ClusterPod) -> None:
        """Somebody notes something on a pod, heard or not."""
        ...

    async def follow_up(self, pod: ClusterPod) -> None:
        """A pod is taken away by force and a gated one made under its name, heard or not."""
        ...

    async def end(self, pod: ClusterPod) -> None:
        """Its containers end with a failure."""
        ...

    async def drop(self, pod: ClusterPod) -> None:
        """Its object is taken away by force."""
        ...

    async def protect(self, labels: Mapping[str, str], *budgets: str, min_available: int) -> None:
        """Write disruption budgets over the pods that will be made with these labels (`app` alone)."""
        ...

    async def make_hollow_template(self) -> bool:
        """Write a template without containers, named `HOLLOW`; return whether there is one now."""
        ...

    async def drop_pool(self) -> None:
        """Take the pool away."""
        ...

    def lack_class(self) -> None:
        """See to it that the priority class `NO_CLASS` is missing when the next miner is made."""
        ...

    def forbid_writes(self) -> None:
        """Let the permit end."""
        ...

    def make_busy(self) -> None:
        """Let the server ask the next write to wait for a second."""
        ...

    async def calm(self) -> None:
        """Wait until the server may be asked again."""
        ...

    def writes_count(self) -> int:
        """Return how many writes of ours the server got."""
        ...

    async def told(self) -> PoolWords | None:
        """Return the pool's status as the server has it: the conditions and counts that tests write; None where nothing is written."""
        ...

    async def events_count(self, namespace: str) -> int:
        """Return how many events stand."""
        ...

    async def pass_time(self) -> None:
        """Let a moment pass."""
        ...


class VirtualRig:
    """The stateful fake; its time passes only while somebody waits."""

    namespace, miner_namespace = "customers", "miners"
    nodes = ("n1", "n2")
    pool_name = "pool"

    def __init__(self) -> None:
        self._s = 0.0
        self.fake = FakeCluster(random.Random(1), lambda: self._s)
        self.cluster: Cluster = self.fake
        for name in self.nodes:
            self.fake.add_node(name, 8, POOL_LABELS)
        for name in (self.namespace, self.miner_namespace):
            self.fake.state.see_namespace(name, ENROLLED)
        self.fake.missing_templates, self.fake.missing_classes = {"none"}, {NO_CLASS}
        self.fake.state.see_pool(
            Pool(
                name=self.pool_name,
                uid="pool-1",
                revision="1",
                generation=1,
                site="tx1",
                container="c07",
                node_selector=POOL_LABELS,
                is_mining_enabled=True,
                miner_namespace=self.miner_namespace,
                miner_template=TEMPLATE,
            )
        )
        self._uids = itertools.count(1)
        self._budgets: dict[str, str] = {}  # by the label app: the fake's budgets are of workloads, and named like them

    async def make_pod(
        self, name: str, *, gates: tuple[str, ...] = (OURS,), labels: Mapping[str, str] | None = None, node: str = ""
    ) -> ClusterPod:
        return self.fake.put(
            ClusterPod(
                namespace=self.namespace,
                name=name,
                uid=f"life-{next(self._uids)}",
                revision="",
                gpu_count=1,
                is_gated=OURS in gates,
                has_other_gates=bool(set(gates) - {OURS}),
                node_selector={HOSTNAME_LABEL: node} if node else {},
                owner_uid=f"uid-{self._budgets[labels['app']]}" if labels else "",
            )
        )

    async def make_foreign(self, name: str) -> None:
        self.fake.put(
            ClusterPod(
                namespace=self.miner_namespace, name=name, uid="foreign", revision="", gpu_count=1, is_gated=True
            )
        )

    async def touch(self, pod: ClusterPod) -> ClusterPod:
        return self.fake.put(pod)

    def hear(self, is_hearing: bool) -> None:
        """Nothing lags here."""

    async def note(self, pod: ClusterPod) -> None:
        self.fake.put(pod)

    async def follow_up(self, pod: ClusterPod) -> None:
        await self.drop(pod)
        await self.make_pod(pod.name)

    async def end(self, pod: ClusterPod) -> None:
        self.fake.put(replace(pod, is_over=True, is_ready=False, failure="Failed"))

    async def drop(self, pod: ClusterPod) -> None:
        self.fake.force_delete(pod.ref, lingers_s=0.0)

    async def protect(self, labels: Mapping[str, str], *budgets: str, min_available: int) -> None:
        name = self._budgets[labels["app"]] = budgets[0]
        self.fake.deploy(name, 0, namespace=self.namespace, min_available=min_available)
        self.fake.workloads[name].has_two_budgets = len(budgets) > 1

    async def make_hollow_template(self) -> bool:
        self.fake.hollow_templates.add(HOLLOW)
        return True

    def lack_class(self) -> None:
        """It always is."""

    async def drop_pool(self) -> None:
        self.fake.state.lose_pool(self.pool_name)

    def forbid_writes(self) -> None:
        self.fake.permit_s = 0.0

    def make_busy(self) -> None:
        self.fake.busy_until_s = self._s + 1.0

    async def calm(self) -> None:
        self._s += 2.0

    def writes_count(self) -> int:
        return self.fake.writes_count

    async def told(self) -> PoolWords | None:
        return self.fake.words.get(self.pool_name)

    async def events_count(self, namespace: str) -> int:
        return len(self.fake.told)

    async def pass_time(self) -> None:
        for each in self.fake.workloads.values():
            each.replicas = sum(not pod.is_leaving for pod in self.fake.pods_of(each.name))  # nobody makes them again
        self._s += 0.5
        self.fake.step()


async def until(rig: ClusterRig, holds: Callable[[], bool]) -> None:
    """Let time pass until something holds."""

    async def does_hold() -> bool:
        return holds()

    await until_told(rig, does_hold)


async def until_told(rig: ClusterRig, holds: Callable[[], Awaitable[bool]]) -> None:
    """Let time pass until an answer is yes."""
    for _ in range(_MOMENTS):
        if await holds():
            return
        await rig.pass_time()
    raise AssertionError("it never came to be")


def new_name(prefix: str) -> str:
    """Return a name that nobody has in a cluster that other tests use too."""
    return f"{prefix}-{secrets.token_hex(4)}"
