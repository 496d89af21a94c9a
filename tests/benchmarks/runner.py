"""Run the figures in order, print a line for each, write the file."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import structlog

from tests.benchmarks.decisions import measure_decisions
from tests.benchmarks.fanout import measure_fanout
from tests.benchmarks.figure import Figure, WrongResult
from tests.benchmarks.footprint import measure_asic_agent, measure_gpu_agent
from tests.benchmarks.ingest import measure_ingest, measure_wire
from tests.benchmarks.kube_list import measure_kube_list
from tests.benchmarks.settings import Settings

MEASURES: dict[str, Callable[[Settings], list[Figure]]] = {
    "wire": measure_wire,
    "decisions": measure_decisions,
    "ingest": measure_ingest,
    "fanout": measure_fanout,
    "kube-list": measure_kube_list,
    "agent-gpu": measure_gpu_agent,
    "agent-asic": measure_asic_agent,
}
_PACKAGES = ("grpcio", "protobuf", "numpy", "msgspec", "kubernetes", "pyasic-rs", "nvidia-ml-py", "structlog", "psutil")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench from the command line; 0: measured (met or not), 1: a result was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short run of each: shows that the bench works")
    parser.add_argument(
        "--only",
        action="append",
        choices=sorted(MEASURES),
        help="only this one, the file's others stay; may be repeated",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("build/bench.json"), help="file to write (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    settings = Settings(quick=options.quick, runs=1 if options.quick else 3)
    figures: list[Figure] = []
    failures: dict[str, str] = {}
    loads: dict[str, float] = {}
    for name, measure in MEASURES.items():
        if options.only and name not in options.only:
            continue
        try:
            found = measure(settings)
        except WrongResult as error:
            failures[name] = str(error)
            settings.say(f"{name}: {error}")
            continue
        figures.extend(found)
        for figure in found:
            loads[figure.name] = round(os.getloadavg()[0], 2)
            print(figure.line(), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    machine = describe_machine()
    fresh = [{**figure.record(), "commit": machine["commit"], "load_1m": loads[figure.name]} for figure in figures]
    kept = earlier_figures(options.out, {figure.name for figure in figures}) if options.only else []
    record = {**machine, "quick": settings.quick, "figures": [*kept, *fresh], "failures": failures}
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written: {options.out}")
    return 1 if failures else 0


def earlier_figures(path: Path, but: set[str]) -> list[dict[str, object]]:
    """Return the figures that a file holds already, except those measured anew; each says its own commit and load."""
    if not path.exists():
        return []
    found: list[dict[str, object]] = json.loads(path.read_text(encoding="utf-8"))["figures"]
    return [figure for figure in found if figure["name"] not in but]


def describe_machine() -> dict[str, object]:
    """Return what the figures depend on."""
    return {
        "date": datetime.now(tz=UTC).isoformat(timespec="seconds"),
        "machine": {
            "system": platform.platform(),
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "load_1m": round(os.getloadavg()[0], 2),
        },
        "python": sys.version.split()[0],
        "versions": {**{name: version(name) for name in _PACKAGES}, "sqlite": sqlite3.sqlite_version},
        "swingbus": version("swingbus"),
        "commit": _commit(),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except OSError:
        return None  # an unpacked archive has no git
    return done.stdout.strip() or None
