"""A small site whose GPU servers are real nodes: simulator, judge, controller and agents as processes, and what its tests ask of it.

It runs as long as its module's tests do. Nothing is timed: every step waits for what it needs to see. At the end the judge is heard.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from swingbus_sim.cluster import node
from swingbus_sim.control import ask
from swingbus_sim.demo.controller import SERVER
from swingbus_sim.demo.files import InCluster
from swingbus_sim.demo.processes import Processes
from swingbus_sim.demo.story import Run, Story, read_json
from swingbus_sim.demo_kube.manifests import CONTROLLER, CUSTOMERS, MINERS, SYSTEM, inference_deployment
from swingbus_sim.demo_kube.pods import PodSide
from swingbus_sim.nvml.shelf import Shelf
from swingbus_sim.ports import GpuProcess
from swingbus_sim.scenario_file import load_scenario

SCENARIO = Path(__file__).parent / "scenarios" / "pods.toml"
GPUS = 4
WAIT_S = 90.0
_TOKEN_S = 7200


class OutsidePodSide(PodSide):
    """The cluster of a site whose controller is no pod: it has its service account's rights and no more, by a kubeconfig."""

    async def prepare(self) -> None:
        await super().prepare()
        await asyncio.to_thread(self._write_kubeconfig)

    def _write_kubeconfig(self) -> None:
        """Write who the controller is: its service account's token, as a pod would have it."""
        path = f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/{CONTROLLER}/token"
        spec = {"spec": {"expirationSeconds": _TOKEN_S}}
        made = self.up.api.create(path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", **spec})
        config = json.loads(self.up.kubeconfig.read_text())
        config["users"] = [{"name": "me", "user": {"token": made["status"]["token"]}}]
        self._kubeconfig.write_text(json.dumps(config))
        self._kubeconfig.chmod(0o600)

    @property
    def _kubeconfig(self) -> Path:
        return self.folder / "controller.kubeconfig"

    def in_cluster(self) -> InCluster:
        return replace(super().in_cluster(), kubeconfig=self._kubeconfig)


class PodsSite:
    """The running site."""

    def __init__(
        self,
        folder: Path,
        images: Path,
        say: Callable[[str], None],
        *,
        scenario_file: Path = SCENARIO,
        name: str = "tests-pods-site",
        shift: int = 40,
        controller: list[str] | None = None,
    ) -> None:
        """Args:
        name: of its cluster; with `shift` it keeps sites apart that run side by side.
        controller: the command of another controller's program.
        """
        scenario = load_scenario(str(scenario_file), shift=shift)
        self.run = Run(
            scenario=scenario,
            scenario_name=str(scenario_file),
            folder=folder / "run",
            data=None,
            shift=shift,
            processes=Processes(folder / "logs"),
        )
        self.pods = OutsidePodSide(
            hosts=[host.name for host in scenario.hosts],
            feeder="grid",
            site=scenario.site,
            gpu_count=GPUS,
            images=images,
            folder=self.run.folder,
            say=say,
            name=name,
        )
        self.story = Story(self.run, command=controller, pods=self.pods)
        self._tasks: list[asyncio.Task[None]] = []

    async def prepare(self) -> None:
        """Bring the cluster up and write every file."""
        await self.story.prepare()

    async def start(self) -> None:
        await self.prepare()
        await self.story.start()
        assert self.story.watcher is not None
        self._tasks = [
            asyncio.create_task(self.story.watcher.poll()),
            asyncio.create_task(self.story.watcher.watch()),
            asyncio.create_task(self.story.push_market()),
        ]

    async def verdict(self) -> dict[str, Any]:
        """End the simulator, so that the judge hears the end, and return what it says."""
        await ask(self.run.folder / "sim", {"do": "stop"})
        await asyncio.to_thread(self.run.processes.wait, "judge", 30.0)
        return read_json(self.run.folder / "verdict.json")

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self.story.close()

    # What is there.

    def working(self, number: int) -> list[GpuProcess]:
        """Return who works on a server's GPUs, by the simulator's own word."""
        with Shelf(self.run.folder / "sim" / "shelves" / self.pods.hosts[number]) as shelf:
            return list(shelf.processes())

    def tenants(self) -> dict[str, int]:
        """Return how many GPUs of the site are worked on for whom."""
        counts = {"mining": 0, "inference": 0}
        for number in range(len(self.pods.hosts)):
            for each in self.working(number):
                counts[each.kind] = counts.get(each.kind, 0) + 1
        return counts

    async def inject(self, **event: Any) -> None:
        """Plant a fault of the scenario's kinds."""
        await ask(self.run.folder / "sim", {"do": "inject", "event": event})

    async def enforced_w(self, number: int) -> list[float]:
        """Return the limits in force on a server's GPUs."""
        host = self.pods.hosts[number]
        names = [f"{host}-gpu{index}" for index in range(GPUS)]
        return [(await ask(self.run.folder / "sim", {"do": "device", "name": n}))["enforced_w"] for n in names]

    async def ready(self, name: str) -> list[dict[str, Any]]:
        """Return a server's pods that are ready."""
        found = []
        for pod in await self.pods.pods(CUSTOMERS):
            conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions", [])}
            is_own = pod["metadata"].get("labels", {}).get("app") == name
            if is_own and conditions.get("Ready") == "True" and not pod["metadata"].get("deletionTimestamp"):
                found.append(pod)
        return found

    async def miners(self) -> list[dict[str, Any]]:
        """Return miners that are not on their way out."""
        return [p for p in await self.pods.pods(MINERS) if not p["metadata"].get("deletionTimestamp")]

    async def condition(self, kind: str) -> dict[str, Any]:
        """Return one of the pool's conditions, empty where it has none such."""
        conditions = (await self.pods.pool()).get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == kind), {})

    def flips(self) -> list[str]:
        """Return flips that are open, by the controller's record."""
        assert self.story.watcher is not None
        newest: dict[str, str] = {}
        for _, event in self.story.watcher.seen.events:
            if event.kind.startswith("flip_"):
                newest[event.subject] = event.facts.get("phase", "")
        return [flip for flip, phase in newest.items() if phase not in ("active", "rolled_back", "failed")]

    # Waiting.

    async def until(self, check: Callable[[], Awaitable[bool] | bool], what: str, *, timeout_s: float = WAIT_S) -> None:
        """Wait until something is so; where it never is, say how things stand."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    answer = check()
                    if answer if isinstance(answer, bool) else await answer:
                        return
                    await asyncio.sleep(0.3)
        except TimeoutError:
            raise AssertionError(f"not within {timeout_s:g} s: {what}\n{await self.explain()}") from None

    async def serve(self, name: str, replicas: int, *, gpu_count: int = 1, timeout_s: float = WAIT_S) -> None:
        """Want so many replicas and wait until they are ready, and no other."""
        await self.pods.serve(name, replicas, gpu_count=gpu_count)

        async def are_ready() -> bool:
            return len(await self.ready(name)) == replicas

        await self.until(are_ready, f"{replicas} of {name} ready", timeout_s=timeout_s)

    async def settle(self, *, inference: int, mining: int) -> None:
        """Wait until so many GPUs work for whom, no flip is open and nobody is left gated."""

        async def is_so() -> bool:
            gated = [p for p in await self.pods.pods(CUSTOMERS) if p["spec"].get("schedulingGates")]
            return self.tenants() == {"mining": mining, "inference": inference} and not self.flips() and not gated

        await self.until(is_so, f"{inference} GPUs serve, {mining} mine, and all is quiet")

    async def explain(self) -> str:
        """Tell how things stand, for a failed wait."""
        lines = [f"tenants {self.tenants()}, open flips {self.flips()}"]
        for namespace in (CUSTOMERS, MINERS):
            for pod in await self.pods.pods(namespace):
                gates = [g["name"] for g in pod["spec"].get("schedulingGates", [])]
                lines.append(
                    f"{namespace}/{pod['metadata']['name']}: {pod['status'].get('phase')} on {pod['spec'].get('nodeName')} "
                    f"{gates} {'leaving' if pod['metadata'].get('deletionTimestamp') else ''}"
                )
        conditions = (await self.pods.pool()).get("status", {}).get("conditions", [])
        lines += [f"{c['type']}={c['status']} {c['reason']}: {c.get('message', '')}" for c in conditions]
        lines.append(self.run.processes.log(SERVER).read_text(errors="replace")[-4000:])
        return "\n".join(lines)

    # Bad days.

    async def cut_power(self, number: int) -> None:
        """End all of a node: every process dies, the GPUs' limits are at their default when it is back."""
        plan = self.pods.up.real_nodes[number]
        await asyncio.to_thread(node.cut_power, self.pods.up.processes, self.pods.up.layout, plan)

    async def boot(self, number: int) -> None:
        """Boot it: kubelet, device plugin and agent start side by side, as on a host whose agent is a pod or a service."""
        cluster, plan = self.pods.up, self.pods.up.real_nodes[number]
        agent = self.run.scenario.hosts[number].agent
        self.run.processes.stop(agent)
        await asyncio.to_thread(node.boot, cluster.processes, cluster.layout, plan, cluster.real_nodes)
        path = self.run.folder / "agents" / f"{agent}.toml"
        lines = path.read_text().splitlines()
        socket = self.pods.in_cluster().hosts[self.pods.hosts[number]].socket
        path.write_text("\n".join(f'socket = "{socket}"' if line.startswith("socket = ") else line for line in lines))
        self.story.start_agent(agent)
        enter = node.entry(cluster.processes, plan)
        await asyncio.to_thread(cluster.processes.restart, f"device-plugin-{plan.name}", enter=enter)


def with_image(name: str, replicas: int, image: str) -> dict[str, Any]:
    """Return a server with another image."""
    made = inference_deployment(name, replicas, gpu_count=1)
    made["spec"]["template"]["spec"]["containers"][0]["image"] = image
    return made
