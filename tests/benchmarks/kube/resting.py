"""`python -m tests.benchmarks.kube.resting`: what a site costs while nothing changes; writes build/bench-kube/resting.json.

A site full of miners is left alone. What its controller asks of the API server meanwhile is the server's own word (its audit log), what
it holds in memory the kernel's. Seconds of CPU depend on the machine; what is written and how many watches are open does not.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.kube.accounting import Usage
from tests.benchmarks.kube.cluster import Writer, add_nodes, fresh_cluster
from tests.benchmarks.kube.contenders import Stage
from tests.benchmarks.kube.ours import ACCOUNT, SYSTEM, Swingbus
from tests.benchmarks.kube.rows import Row, Used
from tests.benchmarks.kube.running import fill, run_folder
from tests.benchmarks.kube.verdicts import Verdict
from tests.benchmarks.settings import Settings

USER = f"system:serviceaccount:{SYSTEM}:{ACCOUNT}"
RSS_MB = 250.0
REPORT = Path("build") / "bench-kube" / "resting.json"
_READS = frozenset({"get", "list", "watch"})
_LEASE_RENEWAL = "update leases"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What one user asked of an API server.

    Args:
        watches: open ones by resource, at the end.
        writes, reads: requests within the stretch, by verb and resource; a watch that began within it is a read.
    """

    watches: dict[str, int]
    writes: dict[str, int]
    reads: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """A site at rest."""

    node_count: int
    gpu_count: int
    report_period_s: float
    rested_s: float
    asked: Asked
    controller: Used
    setup_s: float

    @property
    def verdicts(self) -> list[Verdict]:
        """Return which aims were met."""
        others = {what: count for what, count in self.asked.writes.items() if what != _LEASE_RENEWAL}
        renewals = self.asked.writes.get(_LEASE_RENEWAL, 0)
        doubled = {what: count for what, count in self.asked.watches.items() if count != 1}
        return [
            Verdict(
                aim="no API writes but renewals of the Lease",
                seen=f"{renewals} renewals, others: {others or 'none'}",
                is_met=renewals > 0 and not others,
            ),
            Verdict(
                aim="one watch per kind",
                seen=", ".join(f"{count} of {what}" for what, count in sorted(self.asked.watches.items())) or "none",
                is_met=bool(self.asked.watches) and not doubled,
            ),
            Verdict(
                aim=f"controller at most {RSS_MB:g} MB",
                seen=f"{self.controller.rss_mb:.0f} MB",
                is_met=self.controller.rss_mb <= RSS_MB,
            ),
        ]


def audit_events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield what an audit log tells, up to a last line that is cut short."""
    for line in lines:
        if not line.endswith("\n"):
            break
        yield json.loads(line)


def read_audit(lines: Iterable[str], from_unix_s: float, to_unix_s: float) -> Asked:
    """Return what an audit log tells of a stretch; the log is one user's, and begins before its first watch.

    Raises:
        ValueError: a line is no event; the last one may be cut short.
    """
    open_watches: dict[str, str] = {}
    writes: Counter[str] = Counter()
    reads: Counter[str] = Counter()
    for event in audit_events(lines):
        target = event.get("objectRef", {})
        resource = "/".join(part for part in (target.get("resource"), target.get("subresource")) if part)
        verb, is_start = event["verb"], event["stage"] == "ResponseStarted"
        if verb == "watch":
            if is_start:
                open_watches[event["auditID"]] = resource
            else:
                open_watches.pop(event["auditID"], None)
        # A watch is told when it starts, everything else when it has ended.
        if (
            is_start == (verb == "watch")
            and from_unix_s <= datetime.fromisoformat(event["stageTimestamp"]).timestamp() < to_unix_s
        ):
            (reads if verb in _READS else writes)[f"{verb} {resource or event['requestURI']}"] += 1
    return Asked(watches=dict(Counter(open_watches.values())), writes=dict(writes), reads=dict(reads))


def measure_rest(
    row: Row, rest_s: float, say: Callable[[str], None], *, settle_s: float = 30.0, keep: Path | None = None
) -> Rest:
    """Fill a fresh site with miners, leave it alone, and return what it cost.

    Args:
        settle_s: after the last miner runs, before anything is counted.
        keep: a folder for logs and journal, which stays.
    """
    began_s = time.monotonic()
    ours = Swingbus()
    with run_folder(keep) as folder, fresh_cluster(say, audited_users=(USER,)) as cluster:
        writer = Writer(cluster)
        try:
            add_nodes(cluster, writer, row.plan, ours.node_labels(row.plan))
            stage = Stage(cluster=cluster, writer=writer, folder=folder, row=row)
            with ours.standing(stage) as standing:
                fill(ours, stage, standing, say)
                time.sleep(settle_s)
                setup_s = time.monotonic() - began_s
                say(f"nobody touches anything for {rest_s:g} s")
                usage, from_s = Usage(standing.pids), time.time()
                time.sleep(rest_s)
                used, to_s = usage.since(), time.time()
                with cluster.layout.audit_log.open(encoding="utf-8") as log:
                    asked = read_audit(log, from_s, to_s)
        finally:
            writer.close()
    return Rest(
        node_count=row.node_count,
        gpu_count=row.gpu_count,
        report_period_s=row.report_period_s,
        rested_s=round(to_s - from_s, 1),
        asked=asked,
        controller=used["swingbus-controller"],
        setup_s=round(setup_s, 1),
    )


def main() -> int:
    """Measure each size; 1 where anything but the memory is not as it should be."""
    top = argparse.ArgumentParser(prog="python -m tests.benchmarks.kube.resting", description=__doc__)
    top.add_argument("--nodes", type=int, nargs="+", default=[50], help="KWOK nodes, 8 GPUs each")
    top.add_argument("--rest", type=float, default=60.0, help="seconds in which nobody touches anything")
    top.add_argument("--report-period", type=float, default=1.0, help="seconds between an agent's reports")
    top.add_argument("--out", type=Path, default=REPORT)
    top.add_argument("--keep", type=Path, default=None, help="a folder for logs and journals")
    options = top.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    settings, rests = Settings(), list[Rest]()
    for node_count in options.nodes:
        settings.say(f"{node_count} nodes")
        # Filled no faster than such a site would be: what a burst leaves behind is not what is measured.
        row = Row(
            node_count=node_count,
            arrivals=0,
            limit_ratio=1.0,
            report_period_s=options.report_period,
            flips_in_flight=256,
        )
        keep = None if options.keep is None else options.keep / f"{node_count}"
        rests.append(measure_rest(row, options.rest, settings.say, keep=keep))
        told = [{**asdict(rest), "aims": [asdict(verdict) for verdict in rest.verdicts]} for rest in rests]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"cores": os.cpu_count(), "results": told}, indent=1) + "\n")
    for rest in rests:
        cpu_ratio = rest.controller.cpu_s / rest.rested_s
        print(f"{rest.node_count} nodes, {rest.gpu_count} GPUs at rest: {cpu_ratio:.2f} of a core")
        for verdict in rest.verdicts:
            print(f"  {'met    ' if verdict.is_met else 'NOT MET'} {verdict.aim}: {verdict.seen}")
    print(f"report: {options.out}")
    return 1 if any(not verdict.is_met for rest in rests for verdict in rest.verdicts[:2]) else 0


if __name__ == "__main__":
    sys.exit(main())
