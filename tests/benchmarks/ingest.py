"""Ingest: what one CPU second of the controller takes in, stores durably and then acknowledges.

The real program with its site file, mutual TLS and SQLite; load from another process. What is asserted afterwards: every acknowledged
number is in the database (VerifySequences looks the batches up, not the set that acknowledgements come from), with the right number of
samples; stored bytes equal sent bytes for a sample of numbers; no stream ever had more on the way than its credit.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from swingbus.bundle import load_bundle
from swingbus.fleet.v1alpha import fleet_service_pb2, fleet_service_pb2_grpc
from swingbus.rpc.channel import open_channel
from swingbus_agent.domain.readings import Kind
from tests.benchmarks.certificates import VIEWER, make_authority
from tests.benchmarks.controllers import RunningController, controller, server
from tests.benchmarks.figure import Figure, check
from tests.benchmarks.procs import environment
from tests.benchmarks.settings import Settings
from tests.benchmarks.sites import container_site
from tests.benchmarks.snapshots import (
    DEVICE_SAMPLES,
    FIELD_SAMPLES,
    SnapshotMaker,
    real_columns,
    trial_columns,
)

STREAMS = 16
AIM = 10_000_000.0
BOUND = 26_800_000.0
BOUND_SOURCE = (
    "trials.md 3b: grpc.aio, bytes to numpy, a sum, SQLite blob, 50 per commit, without TLS, synchronous=NORMAL"
)
_SPOT_CHECKS = 25


def measure_ingest(settings: Settings) -> list[Figure]:
    """Return ingest under OBSERVE, and again with the deciding part running beside it."""
    figures = []
    bounds: list[float] = []
    kinds = (("observe", "ingest"), ("observe", "ingest_gzip"), ("control", "ingest_beside_engine"))
    for authority, name in kinds[: 1 if settings.quick else 3]:
        is_gzip = name == "ingest_gzip"
        runs = []
        details: dict[str, object] = {}
        for number in range(settings.runs):
            settings.say(f"{name}: run {number + 1} of {settings.runs}")
            if name == "ingest":
                bounds.append(_run_bound(settings))
            fields_per_s, details = _run(settings, authority, is_gzip=is_gzip)
            runs.append(fields_per_s)
        details["least_server_here"] = [round(bound) for bound in bounds]
        details["ratio_to_least_server_here"] = round(statistics.median(runs) / statistics.median(bounds), 3)
        figures.append(
            Figure(
                name=name,
                unit="field samples per CPU second",
                runs=tuple(runs),
                aim=AIM,
                bound=BOUND,
                bound_source=BOUND_SOURCE,
                asserted=(
                    "every acknowledged number is in the database (VerifySequences), none missing, 208 samples each",
                    f"stored bytes equal sent bytes for {_SPOT_CHECKS} numbers of each stream",
                    "no stream had more on the way than its credit; no batch refused, no gap",
                ),
                notes=(
                    f"{STREAMS} mutually authenticated streams, snapshots of {FIELD_SAMPLES} field samples; conditions, modes, reading "
                    "times, host readings and one meter reading travel with each and are not counted",
                    "CPU of the whole server process: TLS, gRPC, folding, sums, meters, SQLite with synchronous=FULL",
                    "the least server (ingest_bound.py: no checks, no fleet, no fsync) took the same load right before each run",
                    "messages compressed by gRPC (gzip), which the agent does not do: this is why"
                    if is_gzip
                    else "messages not compressed, as the trials sent them",
                    *(
                        ("authority control: the engine sees every batch; no agent holds a control stream",)
                        if authority == "control"
                        else ("authority observe: the deciding part is not in the process",)
                    ),
                ),
                details=details,
            )
        )
    return figures


def _run(settings: Settings, authority: str, *, is_gzip: bool) -> tuple[float, dict[str, object]]:
    agents = [f"c{number:02d}" for number in range(STREAMS)]
    with tempfile.TemporaryDirectory(prefix="swingbus-bench-") as name:
        folder = Path(name)
        bundles = make_authority(folder, agents)
        site = container_site(folder, agents, authority=authority)
        with controller(site) as running:
            seen = _load(settings, running, bundles, agents, is_gzip=is_gzip)
            asyncio.run(_verify(running, bundles, seen["streams"]))
        _compare_bytes(folder / "data" / "telemetry.sqlite", agents, seen["streams"])
    check(
        all(s["in_flight_max"] <= seen["credit"] for s in seen["streams"].values()),
        "a stream had more on the way than its credit",
    )
    batches = sum(w["batches"] for w in seen["windows"])
    cpu_s = sum(w["cpu_s"] for w in seen["windows"])
    wall_s = sum(w["wall_s"] for w in seen["windows"])
    check(batches > 0 and cpu_s > 0.0, "nothing was acknowledged in the window")
    details: dict[str, object] = {
        "batches_per_cpu_s": round(batches / cpu_s, 1),
        "device_samples_per_cpu_s": round(DEVICE_SAMPLES * batches / cpu_s),
        "batches_per_wall_s": round(batches / wall_s, 1),
        "server_cpu_share": round(cpu_s / wall_s, 3),
        "acked_batches": sum(s["acked"] for s in seen["streams"].values()),
        "batches_per_ack": round(
            sum(s["acked"] for s in seen["streams"].values()) / sum(s["acks"] for s in seen["streams"].values()), 1
        ),
        "message_bytes": seen["message_bytes"],
    }
    return FIELD_SAMPLES * batches / cpu_s, details


def _load(
    settings: Settings, server: RunningController, bundles: Path, agents: list[str], *, is_gzip: bool
) -> dict[str, Any]:
    arguments = {
        "endpoint": server.endpoint,
        "server": server.pid,
        "bundles": str(bundles),
        "agents": agents,
        "warm_up_s": 0.5 if settings.quick else 2.0,
        "window_s": 1.0 if settings.quick else 4.0,
        "windows": 1 if settings.quick else 3,
        "real_columns": False,
        "gzip": is_gzip,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.ingest_load", json.dumps(arguments)],
        capture_output=True,
        text=True,
        timeout=180,
        env=environment(),
        check=False,
    )
    check(done.returncode == 0, f"the load generator failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _run_bound(settings: Settings) -> float:
    agents = [f"c{number:02d}" for number in range(STREAMS)]
    with tempfile.TemporaryDirectory(prefix="swingbus-bench-") as name:
        folder = Path(name)
        bundles = make_authority(folder, agents)
        with server(["tests.benchmarks.ingest_bound", str(folder)], folder) as running:
            seen = _load(settings, running, bundles, agents, is_gzip=False)
        database = sqlite3.connect(folder / "least.sqlite")
        (stored,) = database.execute("SELECT COUNT(*) FROM batches").fetchone()
        database.close()
    check(stored == sum(s["acked"] for s in seen["streams"].values()), "the least server acknowledged what it has not")
    return float(FIELD_SAMPLES * sum(w["batches"] for w in seen["windows"]) / sum(w["cpu_s"] for w in seen["windows"]))


async def _verify(server: RunningController, bundles: Path, streams: dict[str, dict[str, int]]) -> None:
    async with open_channel(load_bundle(bundles / f"{VIEWER}.toml"), endpoint=server.endpoint) as channel:
        fleet = fleet_service_pb2_grpc.FleetServiceStub(channel)
        for agent, stream in streams.items():
            check(
                stream["acked"] == stream["sent"] > 0, f"{agent}: {stream['sent']} sent, {stream['acked']} acknowledged"
            )
            answer = await fleet.VerifySequences(
                fleet_service_pb2.VerifySequencesRequest(
                    name=f"sites/bench/agents/{agent}", spool_uid=f"{agent}-spool", ranges=[1, stream["acked"]]
                ),
                timeout=60,
            )
            check(not answer.missing, f"{agent}: acknowledged, but not stored: {list(answer.missing)[:10]}")
            check(answer.stored_count == stream["acked"], f"{agent}: {answer.stored_count} stored")
            check(answer.sample_count == stream["acked"] * DEVICE_SAMPLES, f"{agent}: {answer.sample_count} samples")


def _compare_bytes(path: Path, agents: list[str], streams: dict[str, dict[str, int]]) -> None:
    random_ = random.Random(1)
    database = sqlite3.connect(path)
    try:
        for seed, agent in enumerate(agents):
            maker = SnapshotMaker(
                gpus=trial_columns(Kind.GPU), asics=trial_columns(Kind.ASIC), meter=f"m-{agent}", seed=seed
            )
            (spool,) = database.execute("SELECT spool_id FROM spools WHERE agent = ?", (agent,)).fetchone()
            for _ in range(_SPOT_CHECKS):
                sequence = random_.randint(1, streams[agent]["acked"])
                (payload,) = database.execute(
                    "SELECT payload FROM batches WHERE id = ?", (spool << 40 | sequence,)
                ).fetchone()
                check(payload == maker.message(sequence), f"{agent}: batch {sequence} is not what was sent")
    finally:
        database.close()


def measure_wire(settings: Settings) -> list[Figure]:
    """Return the bytes of one snapshot on the wire, as the trials' 3,200 fields and as today's fields."""
    figures = []
    for name, columns, bound in (
        ("wire_snapshot", trial_columns, 12_840.0),
        ("wire_snapshot_real", real_columns, None),
    ):
        maker = SnapshotMaker(gpus=columns(Kind.GPU), asics=columns(Kind.ASIC), meter="m", seed=0)
        sizes = [len(maker.message(sequence)) for sequence in (10, 10_000, 10_000_000)]
        parsed = _parse_batch(maker.message(10_000))
        check([len(b.modes) for b in parsed.banks] == [8, 200] and len(parsed.meters) == 1, "the snapshot is not whole")
        fields = 8 * columns(Kind.GPU).count + 200 * columns(Kind.ASIC).count
        check(sum(len(b.values) + len(b.counters) for b in parsed.banks) == fields, f"it has not its {fields} numbers")
        figures.append(
            Figure(
                name=name,
                unit=f"bytes ({fields} field samples)",
                runs=tuple(float(size) for size in sizes),
                bound=bound,
                bound_source="trials.md 3a (b'): two flat packed float matrices and nothing else" if bound else "",
                is_lower_better=True,
                asserted=("parsed again it has every matrix in full",),
                notes=(
                    "counters are 64-bit (float32 loses joules), and each row carries condition, mode and reading time",
                    f"the inventory, sent once a session: {maker.inventory.ByteSize()} bytes",
                ),
                details={"parts": _parts(parsed), "gzip_bytes": len(gzip.compress(maker.message(10_000), 6))},
            )
        )
    settings.say("wire: measured")
    return figures


def _parse_batch(message: bytes) -> Any:
    from swingbus.link.v1alpha import agent_link_service_pb2

    return agent_link_service_pb2.StreamTelemetryRequest.FromString(message).batch


def _parts(batch: Any) -> dict[str, int]:
    from swingbus.link.v1alpha import link_pb2

    parts = {
        name: sum(len(link_pb2.BankSamples(**{name: getattr(bank, name)}).SerializeToString()) for bank in batch.banks)
        for name in ("values", "counters", "conditions", "modes", "read_boottime_ns")
    }
    parts["meters"] = sum(len(meter.SerializeToString()) for meter in batch.meters)
    return parts
