"""`make bench-kube`: run rows of the comparison; writes build/bench-kube/report.json and prints a table per row."""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from swingbus.faults import InvalidInput
from tests.benchmarks.kube.contenders import Contender, PriorityClassContender
from tests.benchmarks.kube.ours import Swingbus
from tests.benchmarks.kube.report import read_report, table, write_report
from tests.benchmarks.kube.rows import Row
from tests.benchmarks.kube.running import run_row
from tests.benchmarks.kube.verdicts import OURS
from tests.benchmarks.settings import Settings

HOLD_S, BURST_HOLD_S = 20.0, 80.0
REPORT = Path("build") / "bench-kube" / "report.json"
CONTENDERS: dict[str, Contender] = {
    "ours": Swingbus(),
    **{kind: PriorityClassContender(kind) for kind in ("plain", "tuned", "share")},
}


def rows_of(options: argparse.Namespace) -> list[Row]:
    """Return the rows that are asked for: the product of sizes, limits and arrivals, for each seed."""
    return [
        Row(
            node_count=node_count,
            arrivals=arrivals,
            limit_ratio=percent / 100.0,
            nodes_per_meter=options.nodes_per_meter,
            repeats=options.repeats if arrivals == 1 else 1,
            # So many take their time, whoever lets them in.
            hold_s=BURST_HOLD_S if arrivals > 64 else HOLD_S,
            seed=seed,
        )
        for seed in options.seeds
        for node_count in options.nodes
        for percent in options.limits
        for arrivals in options.arrivals
    ]


def parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    top = argparse.ArgumentParser(prog="python -m tests.benchmarks.kube", description=__doc__)
    top.add_argument("--nodes", type=int, nargs="+", default=[50], help="KWOK nodes, 8 GPUs each")
    top.add_argument("--arrivals", type=int, nargs="+", default=[8], help="inference pods that come at once")
    top.add_argument("--limits", type=float, nargs="+", default=[90.0], help="percent of nameplate")
    top.add_argument("--nodes-per-meter", type=int, default=1, help="1: a PDU branch each; more: a rack")
    top.add_argument("--repeats", type=int, default=20, help="how many single arrivals, one after another")
    top.add_argument("--seeds", type=int, nargs="+", default=[1])
    top.add_argument("--contenders", nargs="+", choices=sorted(CONTENDERS), default=["ours", "tuned"])
    top.add_argument("--out", type=Path, default=REPORT)
    top.add_argument("--resume", action="store_true", help="keep what is in the report, and run only what it lacks")
    top.add_argument("--at-most", type=int, default=None, help="so many runs now; the others with --resume")
    top.add_argument("--keep", type=Path, default=None, help="a folder for logs, journals and samples of every run")
    return top


def main() -> int:
    """Run the rows, contenders in an order that changes from row to row."""
    options = parser().parse_args()
    # Told to end, it ends what it has started: nodes, controller and cluster are processes of their own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    settings = Settings()
    sitting: dict[str, object] = {
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_1m_at_start": os.getloadavg()[0],
    }
    try:
        results, sittings = read_report(options.out) if options.resume else ([], [])
    except InvalidInput as fault:
        print(fault, file=sys.stderr)
        return 2
    known = {(result.row, result.contender) for result in results}
    left = [
        (number, row, kind)
        for number, row in enumerate(rows_of(options))
        for kind in _in_some_order(options.contenders, row.seed * 1000 + number)
        if (row, CONTENDERS[kind].name) not in known
    ]
    for number, row, kind in left[: options.at_most]:
        settings.say(f"{row.title}: {CONTENDERS[kind].name}")
        keep = None if options.keep is None else options.keep / f"{number:02}-{kind}"
        result = run_row(CONTENDERS[kind], row, settings.say, keep=keep)
        results.append(replace(result, sitting=len(sittings)))
        write_report(options.out, results, [*sittings, sitting])
    print(table(results))
    print(f"report: {options.out}")
    if options.at_most is not None and len(left) > options.at_most:
        print(f"{len(left) - options.at_most} runs are left: the same with --resume")
    # Seconds depend on the machine and are told; watts over a limit are wrong anywhere.
    return 1 if any(r.contender == OURS and r.totals.over_limit_ws > 0.0 for r in results) else 0


def _in_some_order(kinds: Sequence[str], seed: int) -> list[str]:
    shuffled = list(kinds)
    random.Random(seed).shuffle(shuffled)
    return shuffled


if __name__ == "__main__":
    sys.exit(main())
