"""One process for a whole simulated cluster: all nodes' kubelets, GPUs, meters and, where a controller is named, their agents.

Builds everything and keeps time. Writes `samples.jsonl` (one line a second) and `events.jsonl` (one a process that starts or ends) into its
folder, and answers on `control.sock` there (one JSON object a line: `do` is status, fault or stop).
"""

from __future__ import annotations

import asyncio
import gc
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any, TextIO

from swingbus.bundle import load_bundle
from swingbus.clock import SystemClock
from swingbus_sim.kwok_site.agent import NodeAgent
from swingbus_sim.kwok_site.control import ControlDesk, inject_at, status_of
from swingbus_sim.kwok_site.kubelet import Kubelet, PodView
from swingbus_sim.kwok_site.link import AgentLink
from swingbus_sim.kwok_site.measures import Sampler
from swingbus_sim.kwok_site.meter import Meter
from swingbus_sim.kwok_site.physics import Server
from swingbus_sim.kwok_site.plan import SitePlan
from swingbus_sim.kwok_site.pods import view_of
from swingbus_sim.kwok_site.site_file import GRID_METER
from swingbus_sim.kwok_site.timeline import Timeline
from swingbus_sim.kwok_site.watching import ApiAddress, PodWatch

CONTROL_SOCKET, SAMPLES, EVENTS = "control.sock", "samples.jsonl", "events.jsonl"
_TICK_S = 0.02
_HANDSHAKES = 16


class KwokSite:
    """All nodes of a plan."""

    def __init__(
        self,
        plan: SitePlan,
        folder: Path,
        *,
        seed: int = 1,
        boot_limit_w: float | None = None,
        boot_limits_w: Mapping[str, float] | None = None,
        kubeconfig: Path | None = None,
        endpoint: str | None = None,
        bundles: Path | None = None,
    ) -> None:
        """Build it; nothing runs before `run`.

        Args:
            boot_limit_w: what every GPU is limited to after a boot, now included; None is the driver's default.
            boot_limits_w: the same of single nodes, by name.
            kubeconfig: of an API server whose bound pods are run; None runs none.
            endpoint, bundles: of a controller, and the folder with one bundle per node; None has no agents.
        """
        self.plan = plan
        self.folder = folder
        self.clock = SystemClock()
        self.timeline = Timeline()
        self._random = Random(seed)
        now_s = self.clock.boottime_s()
        self.kubelets: dict[str, Kubelet] = {}
        for name in plan.nodes:
            server = Server(
                name,
                plan.gpu,
                gpu_count=plan.gpus_per_node,
                timeline=self.timeline,
                random=Random(self._random.random()),
                now_s=now_s,
                boot_limit_w=(boot_limits_w or {}).get(name, boot_limit_w),
            )
            self.kubelets[name] = Kubelet(
                server=server, timeline=self.timeline, random=Random(self._random.random()), note=self._note
            )
        self.servers = tuple(kubelet.server for kubelet in self.kubelets.values())
        self.sampler = Sampler(self.servers, now_s)
        self._address = None if kubeconfig is None else ApiAddress(kubeconfig)
        self._watch: PodWatch | None = None
        self._has_listed = False
        self._refusals: asyncio.Queue[tuple[PodView, str]] = asyncio.Queue()
        self.links = {} if endpoint is None or bundles is None else self._make_links(endpoint, bundles, now_s)
        self._events: TextIO | None = None
        self._samples: TextIO | None = None
        self._stopping = asyncio.Event()

    def _make_links(self, endpoint: str, bundles: Path, now_s: float) -> dict[str, AgentLink]:
        plan, gate = self.plan, asyncio.Semaphore(_HANDSHAKES)
        behind: dict[str, list[Server]] = defaultdict(list)
        for server in self.servers:
            behind[plan.feeder_of(server.name)].append(server)
        links = {}
        for name, kubelet in self.kubelets.items():
            meters = [Meter(f"m-{name}", name, behind[name], now_s)] if name in behind else []
            if name == plan.nodes[0]:
                meters.append(Meter(GRID_METER, "grid", self.servers, now_s))
            agent = NodeAgent(
                kubelet,
                workloads={"mining": plan.mining_workload, "inference": plan.inference_workload},
                random=Random(self._random.random()),
            )
            links[name] = AgentLink(
                agent,
                plan,
                load_bundle(bundles / f"{name}.toml"),
                endpoint,
                meters=meters,
                clock=self.clock,
                random=Random(self._random.random()),
                gate=gate,
                period_s=plan.report_period_s,
            )
        return links

    # Running.

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Run until told to stop."""
        with (self.folder / EVENTS).open("w") as self._events, (self.folder / SAMPLES).open("w") as self._samples:
            socket = self.folder / CONTROL_SOCKET
            socket.unlink(missing_ok=True)
            server = await asyncio.start_unix_server(ControlDesk(self).serve, str(socket))
            try:
                async with asyncio.TaskGroup() as tasks:
                    if self._address is not None:
                        self._start_watch(self._address)
                        tasks.create_task(self._tell_refusals(self._address))
                    tasks.create_task(self._keep_time())
                    tasks.create_task(self._keep_samples())
                    for link in self.links.values():
                        tasks.create_task(link.run())
                    tasks.create_task(self._end_when_told())
                    gc.collect()
                    gc.freeze()
                    ready()
            except* _Stopped:
                pass
            finally:
                server.close()
                if self._watch is not None:
                    await asyncio.to_thread(self._watch.close)
                for link in self.links.values():
                    await link.close()
                socket.unlink(missing_ok=True)

    @property
    def has_listed(self) -> bool:
        """Whether every pod that was bound before the start is known."""
        return self._has_listed

    @property
    def watch_fault(self) -> str:
        """Why bound pods are not seen now; empty where they are."""
        return "" if self._watch is None else self._watch.fault

    def status(self) -> dict[str, Any]:
        """Return what is true now, for whoever waits for something."""
        return status_of(self)

    def inject(self, kind: str, node: str, seconds: float = 0.0) -> None:
        """Let something go wrong at a node, or right again (`heal`); kinds are in `control`."""
        inject_at(self, kind, node, seconds)

    def mark_ready(self) -> None:
        """Leave a file `ready` in the folder, for whoever started this process."""
        (self.folder / "ready").write_text("1\n")

    def stop(self) -> None:
        """Let `run` end."""
        self._stopping.set()

    async def _end_when_told(self) -> None:
        await self._stopping.wait()
        raise _Stopped

    async def _keep_time(self) -> None:
        while True:
            self.timeline.run(self.clock.boottime_s())
            await asyncio.sleep(_TICK_S)

    async def _keep_samples(self) -> None:
        next_s = self.clock.boottime_s()
        while True:
            next_s += 1.0
            await asyncio.sleep(max(0.0, next_s - self.clock.boottime_s()))
            now_s = self.clock.boottime_s()
            self.timeline.run(now_s)
            sample = self.sampler.sample(now_s)
            for server in self.servers:
                server.breathe(now_s)
            assert self._samples is not None
            self._samples.write(json.dumps(asdict(sample)) + "\n")
            self._samples.flush()

    def _note(self, what: str, view: PodView, at_s: float) -> None:
        if self._events is None:
            return
        line = {"at_s": at_s, "what": what, "pod": view.key, "uid": view.uid, "tenant": view.tenant, "node": view.node}
        self._events.write(json.dumps(line) + "\n")
        self._events.flush()

    # Pods.

    def _start_watch(self, address: ApiAddress) -> None:
        loop = asyncio.get_running_loop()

        def listed(pods: list[dict[str, Any]]) -> None:
            views = [view_of(pod, self.plan.tenant_of) for pod in pods]
            loop.call_soon_threadsafe(self._take_list, views)

        def changed(kind: str, pod: dict[str, Any]) -> None:
            loop.call_soon_threadsafe(self._take_change, kind, view_of(pod, self.plan.tenant_of))

        self._watch = PodWatch(address, listed=listed, changed=changed)
        self._watch.start()

    def _take_list(self, views: list[PodView]) -> None:
        by_node: dict[str, list[PodView]] = defaultdict(list)
        for view in views:
            by_node[view.node].append(view)
        now_s = self.clock.boottime_s()
        for name, kubelet in self.kubelets.items():
            for refused in kubelet.resync(by_node.get(name, ()), now_s):
                self._refusals.put_nowait(refused)
        self._has_listed = True

    def _take_change(self, kind: str, view: PodView) -> None:
        kubelet = self.kubelets.get(view.node)
        if kubelet is None:
            return  # a real node's
        now_s = self.clock.boottime_s()
        if kind == "DELETED":
            kubelet.gone(view.uid, now_s)
        elif why := kubelet.see(view, now_s):
            self._refusals.put_nowait((view, why))

    async def _tell_refusals(self, address: ApiAddress) -> None:
        """Write refused pods' end into the API, as their kubelet does."""
        while True:
            view, why = await self._refusals.get()
            self._note("refused", view, self.clock.boottime_s())
            status = {"status": {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": why}}
            await asyncio.to_thread(_patch_status, address, view, json.dumps(status))


class _Stopped(Exception):
    """Ends the task group."""


def _patch_status(address: ApiAddress, view: PodView, body: str) -> None:
    connection = address.connect()
    try:
        path = f"/api/v1/namespaces/{view.namespace}/pods/{view.name}/status"
        connection.request("PATCH", path, body, {"Content-Type": "application/merge-patch+json"})
        connection.getresponse().read()  # gone meanwhile: it does not matter any more
    finally:
        connection.close()
