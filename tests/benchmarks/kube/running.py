"""One contender in one row: a fresh cluster, miners everywhere, groups of inference that come, stay and leave; everything counted."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from swingbus.faults import WrongState
from swingbus_sim.cluster.processes import wait_until
from swingbus_sim.kwok_site.measures import total
from tests.benchmarks.figure import check
from tests.benchmarks.kube.accounting import ApiWrites, Usage, control_plane_pids
from tests.benchmarks.kube.cluster import Writer, add_nodes, fresh_cluster
from tests.benchmarks.kube.contenders import INFERENCE_NAMESPACE, Contender, Stage, Standing
from tests.benchmarks.kube.rows import Result, Row, Spread
from tests.benchmarks.kube.witness import Process, Seen, Witness, now_s, read_processes

_PODS = f"/api/v1/namespaces/{INFERENCE_NAMESPACE}/pods"
_BASELINE_S = 5.0
_AT_REST_S = 20.0  # a meter has shown the last miner's watts: a site that has just been filled is not what is measured


@dataclass(slots=True, kw_only=True)
class Group:
    """Pods that came together: when each POST was accepted, by uid, and when the first was sent."""

    began_s: float
    posted_s: dict[str, float]

    @property
    def first_s(self) -> float:
        """When the first was accepted."""
        return min(self.posted_s.values())


def run_row(contender: Contender, row: Row, say: Callable[[str], None], *, keep: Path | None = None) -> Result:
    """Run it and return what came of it.

    Args:
        keep: a folder for logs, journal, samples and events, which stays; None keeps nothing.
    """
    began_s = time.monotonic()
    with run_folder(keep) as folder, fresh_cluster(say) as cluster:
        writer, witness = Writer(cluster), Witness(cluster)
        try:
            add_nodes(cluster, writer, row.plan, contender.node_labels(row.plan))
            stage = Stage(cluster=cluster, writer=writer, folder=folder, row=row)
            with contender.standing(stage) as standing:
                fill(contender, stage, standing, say)
                setup_s = time.monotonic() - began_s
                return _measure(contender, stage, standing, witness, setup_s, say)
        finally:
            witness.close()
            writer.close()


@contextmanager
def run_folder(keep: Path | None) -> Iterator[Path]:
    """Return a folder for one run: the given one, emptied, or one that goes with the run."""
    if keep is not None:
        shutil.rmtree(keep, ignore_errors=True)
        keep.mkdir(parents=True)
        yield keep.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="swingbus-bench-") as folder:
        yield Path(folder)


def fill(contender: Contender, stage: Stage, standing: Standing, say: Callable[[str], None]) -> None:
    """Let miners run everywhere, longer than the dwell and until nothing is settling, before anything is counted."""
    count = contender.miner_count(stage.row)
    contender.start_miners(stage)
    timeout_s = 120.0 + 0.5 * stage.row.gpu_count
    standing.nodes.wait(lambda seen: seen["mining"] == count, what=f"{count} GPUs mine", timeout_s=timeout_s)
    # KWOK plays its Stages one after another: what it still owes to thousands of new pods would delay the first that is deleted.
    starting = f"/api/v1/namespaces/{stage.plan.miner_namespace}/pods?fieldSelector=status.phase=Pending,spec.nodeName!=&limit=1"
    wait_until(
        lambda: not stage.cluster.api.get(starting)["items"],
        what="KWOK has started all",
        timeout_s=timeout_s,
        poll_s=1.0,
    )
    say(f"{contender.name}: {count} of {stage.row.gpu_count} GPUs mine")
    time.sleep(max(stage.row.dwell_s, _AT_REST_S) + _BASELINE_S)


def _measure(
    contender: Contender, stage: Stage, standing: Standing, witness: Witness, setup_s: float, say: Callable[[str], None]
) -> Result:
    row, nodes = stage.row, standing.nodes
    pids = {**control_plane_pids(stage.cluster), "nodes' model": nodes.pid, **standing.pids}
    usage, writes, from_s = Usage(pids), ApiWrites(stage.cluster), now_s()
    groups: list[Group] = []
    for number in range(row.repeats):
        _sleep_until(from_s + number * row.every_s)
        groups.append(_arrive(contender, stage, number))
    say(f"{contender.name}: {len(groups)} groups came; they stay until {row.stay_s:.0f} s")
    _sleep_until(from_s + row.stay_s)
    leaving_s = now_s()
    uids = [uid for group in groups for uid in group.posted_s]
    stage.writer.each(lambda uid: _delete(stage, witness, uid), uids)
    to_s = from_s + row.stay_s + row.refill_s
    _sleep_until(to_s + 0.5)  # its last second is written down by then
    check(not witness.break_count, f"the witness's watch broke {witness.break_count} times: what it saw is late")
    samples = nodes.samples(from_s, to_s)
    check(len(samples) >= 0.9 * (to_s - from_s) - 2, f"{len(samples)} samples in {to_s - from_s:.0f} s")
    baseline = nodes.samples(from_s - _BASELINE_S, from_s)
    processes = read_processes(nodes.events)
    victims = _victims(witness.pods(stage.plan.miner_namespace), processes, from_s, leaving_s)
    bound = _bound(groups, witness, leaving_s)
    return Result(
        contender=contender.name,
        row=row,
        bound=Spread.of(list(bound.values())),
        running=Spread.of(_running(groups, processes)),
        all_bound_s=tuple(_all_bound(group, bound) for group in groups),
        victim_told=since_posted([(seen.ending_s, seen.ending_s) for seen, _ in victims], groups),
        victim_gone=since_posted([(seen.ending_s, seen.gone_s) for seen, _ in victims], groups),
        victim_released=since_posted([(seen.ending_s, process.ended_s) for seen, process in victims], groups),
        unbound=len(uids) - len(bound),
        killed=len(victims),
        killed_in_dwell=sum(_ran_s(seen, process) < row.dwell_s for seen, process in victims),
        refused_by_kubelet=sum(process.was_refused for process in processes.values()),
        totals=total(samples, row.plan.limit_w),
        baseline_w=statistics.fmean(sample.power_w for sample in baseline),
        limit_w=row.plan.limit_w,
        api_writes=writes.since(),
        used=usage.since(),
        setup_s=setup_s,
        own=standing.own(),
    )


def _arrive(contender: Contender, stage: Stage, number: int) -> Group:
    posted: dict[str, float] = {}

    def post(name: str) -> None:
        made = stage.writer.send("POST", _PODS, contender.arrival(name))
        posted[made["metadata"]["uid"]] = now_s()

    stage.writer.warm()
    began_s = now_s()
    stage.writer.each(post, [f"serve-{number:03}-{index:03}" for index in range(stage.row.arrivals)])
    return Group(began_s=began_s, posted_s=posted)


def _sleep_until(at_s: float) -> None:
    time.sleep(max(0.0, at_s - now_s()))


def _delete(stage: Stage, witness: Witness, uid: str) -> None:
    seen = witness.find(uid)
    if seen is None:
        raise WrongState(f"the watch never showed pod {uid}")
    stage.writer.send("DELETE", f"{_PODS}/{seen.name}", None)


def _bound(groups: list[Group], witness: Witness, leaving_s: float) -> dict[str, float]:
    """Return POST to bound by uid; a bind that was seen before its POST was answered took no time."""
    took: dict[str, float] = {}
    for group in groups:
        for uid, posted_s in group.posted_s.items():
            seen = witness.find(uid)
            if seen is not None and seen.bound_s is not None and seen.bound_s < leaving_s:
                took[uid] = max(0.0, seen.bound_s - posted_s)
    return took


def _all_bound(group: Group, bound: dict[str, float]) -> float | None:
    moments = [posted_s + bound[uid] for uid, posted_s in group.posted_s.items() if uid in bound]
    return None if len(moments) < len(group.posted_s) else round(max(moments) - group.first_s, 3)


def _running(groups: list[Group], processes: dict[str, Process]) -> list[float]:
    posted = {uid: posted_s for group in groups for uid, posted_s in group.posted_s.items()}
    return [
        processes[uid].started_s - posted_s  # type: ignore[operator]  # looked at in the condition
        for uid, posted_s in posted.items()
        if uid in processes and processes[uid].started_s is not None
    ]


def _victims(
    miners: list[Seen], processes: dict[str, Process], from_s: float, to_s: float
) -> list[tuple[Seen, Process]]:
    """Return the miners that ran and were told to end while inference came."""
    return [
        (seen, process)
        for seen in miners
        if seen.ending_s is not None
        and from_s <= seen.ending_s < to_s
        and (process := processes.get(seen.uid)) is not None
        and process.started_s is not None
    ]


def _ran_s(seen: Seen, process: Process) -> float:
    assert seen.ending_s is not None
    assert process.started_s is not None
    return seen.ending_s - process.started_s


def since_posted(moments: Sequence[tuple[float | None, float | None]], groups: Sequence[Group]) -> Spread:
    """Return how long after its POST each moment came: the first of a group after the group's first POST, the second after the second.

    Nobody says for whom a miner had to go, so they are matched in order; what has not happened is left out. Of more moments than pods
    the rest count from the last POST.

    Args:
        moments: when a miner was told to go, by which it belongs to a group, and the moment that is asked for.
    """
    took: list[float] = []
    for group, following in zip(groups, [*groups[1:], None], strict=True):
        until_s = float("inf") if following is None else following.began_s
        posted = sorted(group.posted_s.values())
        own = sorted(
            moment
            for told_s, moment in moments
            if told_s is not None and moment is not None and group.began_s <= told_s < until_s
        )
        # A POST is accepted before it is answered: who was told to go in between was told at once.
        took += [max(0.0, moment - posted[min(at, len(posted) - 1)]) for at, moment in enumerate(own)]
    return Spread.of(took)
