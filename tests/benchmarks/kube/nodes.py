"""What stands behind the nodes in a run: the physical model as a process of its own, asked over its socket."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from swingbus.faults import WrongState
from swingbus_sim.cluster.processes import wait_until
from swingbus_sim.kwok_site.measures import Sample
from swingbus_sim.kwok_site.plan import SitePlan
from swingbus_sim.kwok_site.running import CONTROL_SOCKET, EVENTS, SAMPLES
from tests.benchmarks.procs import running, tail, wait_for_file


class Nodes:
    """The running model."""

    def __init__(self, folder: Path, pid: int, log: Path) -> None:
        self.pid = pid
        self.events = folder / EVENTS
        self._samples = folder / SAMPLES
        self._socket = folder / CONTROL_SOCKET
        self._log = log

    def status(self) -> dict[str, Any]:
        """Return what is true now."""
        with socket.socket(socket.AF_UNIX) as asked:
            asked.settimeout(20.0)
            asked.connect(str(self._socket))
            asked.sendall(b'{"do": "status"}\n')
            answer: dict[str, Any] = json.loads(asked.makefile().readline())
        if answer.get("error"):
            raise WrongState(f"the nodes' model: {answer}; its log ends:\n{tail(self._log)}")
        return answer

    def samples(self, from_s: float, to_s: float) -> list[Sample]:
        """Return the seconds that ended within a stretch of CLOCK_BOOTTIME."""
        lines = self._samples.read_text(encoding="utf-8").splitlines()
        found = [Sample(**json.loads(line)) for line in lines if line.endswith("}")]
        return [sample for sample in found if from_s < sample.at_s <= to_s]

    def wait(self, so: Callable[[dict[str, Any]], bool], *, what: str, timeout_s: float, poll_s: float = 0.5) -> None:
        """Wait until the model is so; told with its last status where it never is."""
        last: dict[str, Any] = {}

        def is_so() -> bool:
            nonlocal last
            last = self.status()
            return so(last)

        try:
            wait_until(is_so, what=what, timeout_s=timeout_s, poll_s=poll_s)
        except Exception as error:
            raise WrongState(f"{error}; the nodes' model says {last}") from error


@contextmanager
def running_nodes(
    folder: Path,
    plan: SitePlan,
    *,
    kubeconfig: Path,
    seed: int,
    boot_limits_w: Mapping[str, float],
    endpoint: str | None = None,
    bundles: Path | None = None,
) -> Iterator[Nodes]:
    """Run the model until the block ends."""
    out = folder / "nodes"
    config, log = folder / "nodes.json", folder / "nodes.log"
    config.write_text(
        json.dumps(
            {
                "plan": asdict(plan),
                "folder": str(out),
                "seed": seed,
                "kubeconfig": str(kubeconfig),
                "boot_limits_w": dict(boot_limits_w),
                "endpoint": endpoint,
                "bundles": None if bundles is None else str(bundles),
            }
        ),
        encoding="utf-8",
    )
    with running([sys.executable, "-m", "swingbus_sim.kwok_site", str(config)], log) as process:
        wait_for_file(out / "ready", process, log)
        yield Nodes(out, process.pid, log)
