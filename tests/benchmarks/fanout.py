"""Fan-out: from the moment every agent's desired state changes to the moment the controller has taken every answer.

1,000 agents with certificates and connections of their own, mutual TLS. Asserted in every round: all 1,000 were told and all answered,
with the new generation and the hash of exactly what each was ordered.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.certificates import make_authority
from tests.benchmarks.figure import Figure, check, percentile
from tests.benchmarks.procs import environment, memory, running, stop, tail
from tests.benchmarks.settings import Settings
from tests.benchmarks.sites import wide_site

AGENTS = 1000
ROUNDS = 9
AIM_MS = 250.0
BOUND_MS = 88.0


def measure_fanout(settings: Settings) -> list[Figure]:
    """Return the p99 over agents: the median of a run's rounds, three runs."""
    count = 50 if settings.quick else AGENTS
    rounds = 3 if settings.quick else ROUNDS
    names = [f"a{number:04d}" for number in range(count)]
    p99_ms: list[float] = []
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="swingbus-bench-") as folder_name:
        folder = Path(folder_name)
        settings.say(f"fanout: {count} certificates")
        bundles = make_authority(folder, names)
        site = wide_site(folder, names, devices=13)
        for number in range(settings.runs):
            settings.say(f"fanout: run {number + 1} of {settings.runs}")
            seen = _run(folder, site, bundles, names, rounds)
            p99s = [1000 * percentile(s["latencies_s"], 0.99) for s in seen["rounds"]]
            p99_ms.append(statistics.median(p99s))
            details = {
                "p50_ms": round(1000 * statistics.median(x for s in seen["rounds"] for x in s["latencies_s"]), 1),
                "rounds_p99_ms": [round(p, 1) for p in p99s],
                "max_ms": round(1000 * max(x for s in seen["rounds"] for x in s["latencies_s"]), 1),
                "server_cpu_ms_per_round": round(
                    1000 * statistics.median(s["server_cpu_s"] for s in seen["rounds"]), 1
                ),
                "server_pss_mb": round(seen["pss_bytes"] / 1e6, 1),
            }
    return [
        Figure(
            name="fanout_p99",
            unit=f"ms ({count} agents, change to answer taken)",
            runs=tuple(p99_ms),
            aim=AIM_MS,
            bound=BOUND_MS,
            bound_source="trials.md 3d: grpc.aio, mutual TLS, 1,000 streams, a command and its acknowledgement",
            is_lower_better=True,
            asserted=(
                f"in each round all {count} agents answered with the new generation",
                "each echoed the SHA-256 of exactly what it was ordered",
            ),
            notes=(
                "the program's link service, codec, interceptor and TLS; orders come from a plain control plane, not from the engine",
                "server and all agents share this machine's cores: wall time, so other work on it shows",
                "agents answer at once; a real one makes its grant durable first and bundles changes for 50 ms",
            ),
            details=details,
        )
    ]


def _run(folder: Path, site: Path, bundles: Path, names: list[str], rounds: int) -> dict[str, Any]:
    log = folder / "fanout-server.log"
    with log.open("wb") as errors:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.fanout_server", str(site)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment(),
            start_new_session=True,
        )
    try:
        endpoint = f"127.0.0.1:{_answer(server, log)['port']}"
        arguments = folder / "fanout-load.json"
        arguments.write_text(json.dumps({"agents": names, "bundles": str(bundles), "endpoint": endpoint}))
        load_log = folder / "fanout-load.log"
        with running([sys.executable, "-m", "tests.benchmarks.fanout_load", str(arguments)], load_log):
            heard = _ask(server, "wait", log)["heard"]
            check(heard == len(names), f"only {heard} agents connected:\n{tail(load_log)}")
            _round(server, log, len(names))  # the first one warms up
            seen = [_round(server, log, len(names)) for _ in range(rounds)]
            return {"rounds": seen, "pss_bytes": memory(server.pid).pss_bytes}
    finally:
        for pipe in (server.stdin, server.stdout):
            if pipe is not None:
                pipe.close()
        stop(server)


def _round(server: subprocess.Popen[str], log: Path, count: int) -> dict[str, Any]:
    seen = _ask(server, "round", log)
    check(seen["answered"] == count, f"{seen['answered']} of {count} answered, not {seen.get('missing')}")
    check(not seen["wrong"] and len(seen["latencies_s"]) == count, f"wrong answers: {seen['wrong']}")
    return seen


def _ask(server: subprocess.Popen[str], line: str, log: Path) -> dict[str, Any]:
    assert server.stdin is not None
    server.stdin.write(line + "\n")
    server.stdin.flush()
    return _answer(server, log)


def _answer(server: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    assert server.stdout is not None
    line = server.stdout.readline()
    # Its log goes to standard output of the program as well; only our lines begin with a brace and have no level.
    while line and ('"level"' in line or not line.startswith("{")):
        line = server.stdout.readline()
    check(bool(line), f"the fan-out server ended:\n{tail(log)}")
    return dict(json.loads(line))
