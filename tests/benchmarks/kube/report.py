"""The report: JSON for machines, a table for people; rows that a rival wins are in it like all others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from swingbus.faults import InvalidInput
from tests.benchmarks.kube.rows import Result
from tests.benchmarks.kube.verdicts import sentences, verdicts

COLUMNS = (
    "contender",
    "bound p50",
    "p99",
    "all bound",
    "running p50",
    "told p50",
    "p99",
    "gone p50",
    "released p50",
    "unbound",
    "W*s over",
    "peak kW",
    "mean kW",
    "ramp kW/s",
    "kills/GPU",
    "in dwell",
    "idle GPU*s",
    "mine GPU*h",
    "infer GPU*h",
    "of it full",
    "writes",
    "CPU s",
    "RSS MB",
)


def write_report(path: Path, results: Sequence[Result], sittings: Sequence[dict[str, object]]) -> None:
    """Write all results. `sittings`: when and where they were measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"sittings": list(sittings), "results": [_record(r) for r in results]}, indent=1)
    unfinished = path.with_name(f"{path.name}.tmp")  # who is told to end in between has lost nothing
    unfinished.write_text(text + "\n", encoding="utf-8")
    unfinished.replace(path)


def read_report(path: Path) -> tuple[list[Result], list[dict[str, object]]]:
    """Return results and sittings of a report. Raises InvalidInput where there is none, or one of another version."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return [msgspec.convert(each, Result) for each in report["results"]], report["sittings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(
            f"cannot go on with the report {path}: {type(error).__name__}: {error}; run without --resume"
        ) from error


def _record(result: Result) -> dict[str, Any]:
    return {
        "row_title": result.row.title,
        **asdict(result),
        "killed_per_gpu": result.killed_per_gpu,
        "aims": [asdict(verdict) for verdict in verdicts(result)],
    }


def table(results: Sequence[Result]) -> str:
    """Return one table per row, contenders below each other."""
    parts: list[str] = []
    for title in dict.fromkeys(result.row.title for result in results):
        of_row = [result for result in results if result.row.title == title]
        lines = [COLUMNS, *(_cells(result) for result in of_row)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
        parts.append(f"{title} (limit {of_row[0].limit_w / 1000:.1f} kW)")
        parts += ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        parts += [*sentences(of_row), ""]
    return "\n".join(parts)


def _cells(result: Result) -> tuple[str, ...]:
    totals = result.totals
    groups = [seconds for seconds in result.all_bound_s if seconds is not None]
    return (
        result.contender,
        _seconds(result.bound.p50_s),
        _seconds(result.bound.p99_s),
        _seconds(max(groups) if len(groups) == len(result.all_bound_s) else None),
        _seconds(result.running.p50_s),
        _seconds(result.victim_told.p50_s),
        _seconds(result.victim_told.p99_s),
        _seconds(result.victim_gone.p50_s),
        _seconds(result.victim_released.p50_s),
        str(result.unbound),
        f"{totals.over_limit_ws:.0f}",
        f"{totals.peak_w / 1000:.1f}",
        f"{totals.mean_w / 1000:.1f}",
        f"{totals.ramp_w_per_s / 1000:.1f}",
        "-" if result.killed_per_gpu is None else f"{result.killed_per_gpu:.2f}",
        str(result.killed_in_dwell),
        f"{totals.idle_gpu_s:.0f}",
        f"{totals.mining_gpu_s / 3600:.2f}",
        f"{totals.inference_gpu_s / 3600:.3f}",
        f"{totals.inference_full_gpu_s / 3600:.3f}",
        str(sum(result.api_writes.values())),
        f"{sum(used.cpu_s for used in result.used.values()):.1f}",
        f"{sum(used.rss_mb for used in result.used.values()):.0f}",
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
