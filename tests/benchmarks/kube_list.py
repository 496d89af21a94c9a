"""What a list of 4,000 pods costs the controller: over TLS in pages, decoded, in the copy; CPU of the client's thread alone."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from swingbus.clock import SystemClock
from swingbus_controller.adapters.kubernetes.listwatch import ListWatch
from swingbus_controller.adapters.kubernetes.objects import Pod
from swingbus_controller.adapters.kubernetes.resources import PODS
from tests.benchmarks.figure import Figure, check
from tests.benchmarks.settings import Settings
from tests.fakes.api_server.certificates import write_certificates
from tests.fakes.api_server.server import FakeApiServer
from tests.fakes.kube_rig import GATE, connected

GPU = "nvidia.com/gpu"
AIM_US = 40.0  # a twelfth of what the official client's typed models cost
# 0.03 CPU seconds for the raw bytes of 4,000 pods, 0.04 to decode the fields that we need by msgspec, as tried.
BOUND_US = 1e6 * (0.03 + 0.04) / 4000


def measure_kube_list(settings: Settings) -> list[Figure]:
    """Return CPU microseconds per pod of a whole list."""
    count = 500 if settings.quick else 4000
    runs: list[float] = []
    with TemporaryDirectory() as folder, _serving(Path(folder), count) as server:
        for number in range(settings.runs):
            settings.say(f"kube list: run {number + 1} of {settings.runs}")
            runs.append(1e6 * asyncio.run(_list_cpu_s(server, count)) / count)
    return [
        Figure(
            name="kube_list_cpu_per_pod",
            unit=f"CPU us/pod ({count} pods)",
            runs=tuple(runs),
            aim=AIM_US,
            bound=BOUND_US,
            bound_source=(
                "trials: 4,000 pods as raw bytes 0.03 CPU s + msgspec decode 0.04 CPU s; 12 fields, one list, no copy kept"
            ),
            is_lower_better=True,
            asserted=("every pod is in the copy with its gate, its GPU and its node selector",),
            notes=(
                "pages of 500, TLS on loopback, pods of 3 kB; the server runs in another thread, which is not counted",
            ),
        )
    ]


async def _list_cpu_s(server: FakeApiServer, count: int) -> float:
    async with connected(server) as api:
        watch = ListWatch(api, PODS, Pod, clock=SystemClock(), chance=random.Random(1), is_followed=False)
        began_s = time.thread_time()
        running = asyncio.create_task(watch.run())
        await watch.wait_synced()
        spent_s = time.thread_time() - began_s
        running.cancel()
        await asyncio.wait([running])
    await asyncio.sleep(0.1)  # TLS says goodbye before the loop closes
    pods = watch.snapshot()
    check(len(pods) == count, f"{len(pods)} of {count} pods came")
    wrong = [
        pod for pod in pods.values() if pod.gates != (GATE,) or pod.devices(GPU) != 1 or not pod.spec.node_selector
    ]
    check(not wrong, f"{len(wrong)} pods were read wrong")
    return spent_s


@contextmanager
def _serving(folder: Path, count: int) -> Iterator[FakeApiServer]:
    server = FakeApiServer(folder, write_certificates(folder))
    for number in range(count):
        server.store.create(("pods", f"ns-{number % 20}", f"pod-{number:05}"), _pod(number))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fake-api-server")
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(0), loop).result(30)
        yield server
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _pod(number: int) -> dict[str, Any]:
    """Return a pod as large as real ones, most of it fields that we skip."""
    managed = [
        {
            "manager": f"manager-{part}",
            "operation": "Update",
            "time": "2026-01-01T00:00:00Z",
            "fieldsV1": {f"f:field-{part}-{field}": {".": {}, "f:inner": {}} for field in range(20)},
        }
        for part in range(2)
    ]
    limits = {GPU: "1", "cpu": "8", "memory": "64Gi"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"pod-{number:05}",
            "labels": {f"example.com/label-{key}": f"value-{number}" for key in range(6)},
            "managedFields": managed,
        },
        "spec": {
            "schedulingGates": [{"name": GATE}],
            "nodeSelector": {"swingbus.io/container": "c07"},
            "containers": [
                {
                    "name": "main",
                    "image": "example.invalid/model-server:1.2.3",
                    "env": [{"name": f"VARIABLE_{key}", "value": "x" * 20} for key in range(10)],
                    "resources": {"limits": limits, "requests": limits},
                }
            ],
        },
        "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False"}]},
    }
