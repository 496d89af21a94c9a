"""The nodes' physical model in a thread of the test's own process, so that a test sees every GPU and can let anything go wrong."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from swingbus_sim.kwok_site.kubelet import Kubelet, KubeletTimes, PodFaults
from swingbus_sim.kwok_site.measures import Sample
from swingbus_sim.kwok_site.physics import Gpu
from swingbus_sim.kwok_site.plan import SitePlan
from swingbus_sim.kwok_site.running import EVENTS, SAMPLES, KwokSite
from tests.benchmarks.kube.witness import Process, read_processes

T = TypeVar("T")
BOOT_S = 3.0  # real hosts take minutes; what follows is the same


class Background:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="background", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def wait(self, work: Coroutine[Any, Any, T], timeout_s: float = 60.0) -> T:
        """Run something in the loop and return what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def call(self, action: Callable[[], T]) -> T:
        """Call something in the loop and return what it returns."""

        async def work() -> T:
            return action()

        return self.wait(work())

    def close(self) -> None:
        """End the thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10.0)
        self.loop.close()


class Nodes:
    """The running model. `model` belongs to the background's loop; what is only read may be read from anywhere."""

    def __init__(
        self,
        background: Background,
        plan: SitePlan,
        folder: Path,
        *,
        kubeconfig: Path,
        endpoint: str,
        bundles: Path,
        boot_limits_w: Mapping[str, float],
    ) -> None:
        """Start it, and return when it runs."""
        self.plan = plan
        self._background = background
        self._folder = folder
        folder.mkdir()

        def make() -> KwokSite:
            return KwokSite(
                plan, folder, kubeconfig=kubeconfig, endpoint=endpoint, bundles=bundles, boot_limits_w=boot_limits_w
            )

        self.model = background.call(make)
        for kubelet in self.model.kubelets.values():
            kubelet.times = KubeletTimes(boot_s=BOOT_S)
        self._running = asyncio.run_coroutine_threadsafe(self.model.run(), background.loop)

    def close(self) -> None:
        """End it; what it failed of is raised."""
        self._background.call(self.model.stop)
        self._running.result(30.0)

    def must_run(self) -> None:
        """Raise what the model ended of, if it did."""
        if self._running.done():
            self._running.result(0.0)
            raise AssertionError("the nodes' model has ended")

    # What is true.

    def kubelet(self, node: str) -> Kubelet:
        """Return a node's kubelet."""
        return self.model.kubelets[node]

    def gpus(self, *nodes: str) -> list[Gpu]:
        """Return the GPUs of some nodes, of all without names."""
        return [gpu for name in nodes or self.plan.nodes for gpu in self.model.kubelets[name].server.gpus]

    def count(self, tenant: str | None, *nodes: str) -> int:
        """Return how many GPUs have a process of a tenant; None: of nobody."""
        return sum(gpu.tenant == tenant for gpu in self.gpus(*nodes))

    def gpus_of(self, uid: str) -> list[Gpu]:
        """Return the GPUs on which a pod's process works."""
        return [gpu for gpu in self.gpus() if uid in gpu.processes]

    def processes(self) -> dict[str, Process]:
        """Return when each pod's process began and ended, by uid."""
        return read_processes(self._folder / EVENTS)

    def samples(self, from_s: float) -> list[Sample]:
        """Return the seconds since a moment of CLOCK_BOOTTIME."""
        lines = (self._folder / SAMPLES).read_text(encoding="utf-8").splitlines()
        found = [Sample(**json.loads(line)) for line in lines if line.endswith("}")]
        return [sample for sample in found if sample.at_s > from_s]

    # What goes wrong.

    def fault(self, node: str, **faults: Any) -> None:
        """Let pods of a node go wrong from now on; nothing: right again."""
        self._background.call(lambda: self.kubelet(node).set_faults(PodFaults(**faults), self.model.clock.boottime_s()))

    def inject(self, kind: str, node: str, seconds: float = 0.0) -> None:
        """Let something go wrong by the model's own word."""
        self._background.call(lambda: self.model.inject(kind, node, seconds))

    def raise_limits(self, node: str) -> None:
        """Set every GPU of a node to its highest limit, as somebody with root there can."""

        def write() -> None:
            server = self.kubelet(node).server
            for index in range(len(server.gpus)):
                server.write_limit(index, server.gpu_class.max_limit_w, self.model.clock.boottime_s())

        self._background.call(write)
