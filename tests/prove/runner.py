"""The long run: many histories of the right protocol, each planted bug until it is caught, one seed in full."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from tests.prove.mutants import MUTANTS
from tests.prove.world import Verdict, Wrong, run_history

CHUNK = 50
PROGRESS_S = 10.0


@dataclass(slots=True)
class Tally:
    """Sums over histories: not only that nothing went wrong, but that something went on."""

    histories: int = 0
    guilty: int = 0
    false_confirmations: int = 0
    growths: int = 0
    settlements: int = 0
    crashes: int = 0
    with_outside: int = 0
    with_disobedient: int = 0
    tightest_sum: float = 0.0
    first: Verdict | None = None

    def add(self, verdict: Verdict) -> None:
        """Count one history."""
        self.histories += 1
        self.guilty += verdict.is_guilty
        self.false_confirmations += verdict.false_confirmations
        self.growths += verdict.growths
        self.settlements += verdict.settlements
        self.crashes += verdict.crashes
        self.with_outside += verdict.outside_ws > 0.0
        self.with_disobedient += verdict.disobedient_ws > 0.0
        self.tightest_sum += verdict.tightest_ratio
        if self.first is None and (verdict.is_guilty or verdict.false_confirmations):
            self.first = verdict

    def line(self, seconds: float) -> str:
        """Return one line that a person can judge."""
        n = max(1, self.histories)
        return (
            f"{self.histories} histories in {seconds:.0f} s: {self.guilty} over a limit by decision, "
            f"{self.false_confirmations} false confirmations (per history: {self.growths / n:.1f} growths, "
            f"{self.settlements / n:.1f} settlements, {self.crashes / n:.2f} controller deaths; "
            f"outside excess in {self.with_outside}, liars over a limit in {self.with_disobedient}, "
            f"mean peak {100 * self.tightest_sum / n:.0f} % of the limit)"
        )


def _run_chunk(first_seed: int, count: int) -> list[Verdict]:
    return [run_history(seed) for seed in range(first_seed, first_seed + count)]


def run_right(histories: int, first_seed: int, workers: int) -> Tally:
    """Run the right protocol over consecutive seeds, printing progress."""
    tally = Tally()
    told = False
    began_s = shown_s = time.perf_counter()
    starts = range(first_seed, first_seed + histories, CHUNK)
    counts = [min(CHUNK, first_seed + histories - start) for start in starts]
    with ProcessPoolExecutor(max_workers=workers) as pool:
        for verdicts in pool.map(_run_chunk, starts, counts):
            for verdict in verdicts:
                tally.add(verdict)
            now_s = time.perf_counter()
            if tally.first is not None and not told:
                told = True
                print(f"  guilty: seed {tally.first.seed}: {tally.first.first}", flush=True)
            if now_s - shown_s >= PROGRESS_S:
                shown_s = now_s
                print(f"  {tally.histories}/{histories} histories, {now_s - began_s:.0f} s", flush=True)
    print(tally.line(time.perf_counter() - began_s), flush=True)
    return tally


def caught_after(wrong: Wrong, histories: int, first_seed: int = 0) -> int | None:
    """Return how many histories it took to catch a planted bug, None where it was not caught.

    Only a history that the right protocol passes innocent counts: otherwise the judge, not the bug, would be caught.
    """
    for count in range(1, histories + 1):
        seed = first_seed + count - 1
        if run_history(seed, wrong).is_guilty and not run_history(seed).is_guilty:
            return count
    return None


def run_mutants(histories: int, first_seed: int, workers: int) -> bool:
    """Run every planted bug until it is caught; True where all were."""
    names = list(MUTANTS)
    all_caught = True
    with ProcessPoolExecutor(max_workers=workers) as pool:
        jobs = [pool.submit(caught_after, MUTANTS[name], histories, first_seed) for name in names]
        for name, job in zip(names, jobs, strict=True):
            count = job.result()
            all_caught = all_caught and count is not None
            verdict = f"caught after {count} histories" if count is not None else f"NOT caught in {histories}"
            print(f"  {name:34} {verdict}", flush=True)
    return all_caught


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the proof from the command line; 0: proven, 1: not."""
    parser = argparse.ArgumentParser(prog="python -m tests.prove", description=__doc__)
    parser.add_argument("--histories", type=int, default=20_000, help="histories of the right protocol")
    parser.add_argument("--mutants", type=int, default=3_000, help="most histories per planted bug; 0 skips them")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, help="replay this one history only")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), help="with --seed: replay it with this bug planted")
    parser.add_argument("--trace", action="store_true", help="with --seed: print every journaled event")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        wrong = MUTANTS[options.mutant] if options.mutant else None
        verdict = run_history(options.seed, wrong, print if options.trace else None)
        print(verdict)
        return int(verdict.is_guilty or verdict.false_confirmations > 0)
    proven = True
    if options.mutants:
        print("planted bugs:", flush=True)
        proven = run_mutants(options.mutants, options.first_seed, options.workers)
    print("the right protocol:", flush=True)
    tally = run_right(options.histories, options.first_seed, options.workers)
    if tally.first is not None:
        print(f"replay: python -m tests.prove --seed {tally.first.seed} --trace", file=sys.stderr)
    return int(not proven or tally.guilty > 0 or tally.false_confirmations > 0)
