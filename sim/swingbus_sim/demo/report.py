"""What the run showed, from four sides: the judge, the controller's RPCs, the agents' spools, the simulator's fault ledger.

Decides nothing about the run: `bars` compares figures with what the demo promises, and says which were missed.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swingbus.capacity.v1alpha import capacity_pb2
from swingbus.link.v1alpha import link_pb2
from swingbus_sim.demo.files import PROTOCOL, agents_of
from swingbus_sim.demo.story import Run, read_json
from swingbus_sim.demo.watcher import Watcher, bank_words
from swingbus_sim.money import margin_of_log
from swingbus_sim.scenario import Scenario


def quiet_spans(scenario: Scenario) -> list[tuple[float, float]]:
    """Return the spans that time means leave out: each event that disturbs, its settling time, and what comes after the story.

    Else how long the last flips took would move the means.
    """
    spans = [(0.0, scenario.measure_from_s), (scenario.duration_s, math.inf)]
    for event in scenario.events:
        if event.is_disturbance:
            lasts_s = (event.duration_s or 0.0) + event.notice_s + (event.restart_after_s or 0.0)
            spans.append((event.at_s, event.at_s + lasts_s + event.settle_s))
    return spans


def mean_outside(values: Sequence[tuple[float, float]], spans: Sequence[tuple[float, float]]) -> float | None:
    """Return the mean of (at_s, value) outside the spans; None where nothing is left."""
    kept = [value for at_s, value in values if not any(start <= at_s <= end for start, end in spans)]
    return sum(kept) / len(kept) if kept else None


def flip_rows(flips: Sequence[capacity_pb2.Flip]) -> list[dict[str, Any]]:
    """Return flips as the report lists them; `seconds` from the record to the end, None while open."""
    rows: list[dict[str, Any]] = []
    for flip in flips:
        ended = flip.HasField("end_time")
        rows.append(
            {
                "flip": flip.name.rsplit("/", 1)[-1],
                "bank": bank_words(flip.bank),
                "count": flip.device_count,
                "from": link_pb2.Mode.Name(flip.from_mode).removeprefix("MODE_"),
                "to": link_pb2.Mode.Name(flip.to_mode).removeprefix("MODE_"),
                "is_cap": flip.is_cap,
                "outcome": capacity_pb2.FlipPhase.Name(flip.phase).removeprefix("FLIP_PHASE_"),
                "seconds": round((flip.end_time.ToMilliseconds() - flip.create_time.ToMilliseconds()) / 1000.0, 1)
                if ended
                else None,
                "author": flip.author,
                "reason": flip.reason,
            }
        )
    return rows


def spool_facts(state_dir: Path) -> tuple[str, list[int]]:
    """Return (spool_uid, acknowledged sequences as inclusive ranges), as the agent's own disk says.

    A spool numbers batches from 1 and deletes one only when it is acknowledged: what it gave out and no longer holds, alone or in a mean,
    was acknowledged.
    """
    connection = sqlite3.connect(f"file:{state_dir / 'spool.sqlite3'}?mode=ro", uri=True)
    try:
        facts = dict(connection.execute("SELECT name, value FROM facts").fetchall())
        held = connection.execute(
            "SELECT ifnull(first_sequence, sequence), sequence FROM batches LEFT JOIN means USING (sequence) ORDER BY sequence"
        ).fetchall()
    finally:
        connection.close()
    ranges: list[int] = []
    first = 1
    beyond = int(facts.get("newest_sequence", 0)) + 1
    for begin, end in [*held, (beyond, beyond)]:
        if begin > first:
            ranges += [first, begin - 1]
        first = end + 1
    return facts["spool_uid"], ranges


async def verify_acked(run: Run, watcher: Watcher) -> dict[str, Any]:
    """Look every acknowledged sequence number up in the database, from the agents' side."""
    samples = lost = sequences = 0
    per_agent: dict[str, Any] = {}
    for agent in agents_of(run.scenario):
        uid, ranges = spool_facts(run.folder / "agents" / agent)
        asked = sum(last - first + 1 for first, last in zip(ranges[::2], ranges[1::2], strict=True))
        answer = await watcher.verify(agent, uid, ranges)
        per_agent[agent] = {
            "sequences": asked,
            "stored": answer.stored_count,
            "merged": answer.merged_count,
            "samples": answer.sample_count,
        }
        sequences += asked
        lost += asked - answer.stored_count - answer.merged_count
        samples += answer.sample_count
    return {
        "acked_samples": samples,
        "acked_samples_lost": lost,
        "acked_sequences": sequences,
        "acked_by_agent": per_agent,
    }


def liars(scenario: Scenario, verdict: Mapping[str, Any], watcher: Watcher) -> dict[str, Any]:
    """Return who really lied in a way that has a name (the judge saw it), and who was named; groups that draw more than they say."""
    named: dict[str, set[str]] = {}
    groups: set[str] = set()
    for _, record in watcher.seen.events:
        if record.kind == "device_accused":
            named.setdefault(record.facts["word"], set()).add(record.subject.rsplit("/", 1)[-1])
        if record.kind == "group_accused" and record.facts.get("word") == "under_reports":
            groups.add(record.subject.rsplit("/", 1)[-1])
    draws_more = {name for event in scenario.events if event.kind == "draws_more" for name in event.targets}
    homes = {name: group.node for group in scenario.miners for name in group.device_names()}
    return {
        "liars_injected": sorted(verdict.get("liars_injected", [])),
        "liars_planted": sorted(verdict.get("liars_planted", [])),
        "liars_named": sorted(set().union(*named.values()) if named else set()),
        "liars_named_by_word": {word: sorted(names) for word, names in sorted(named.items())},
        "under_reporting_groups_injected": sorted({homes[name] for name in draws_more if name in homes}),
        "groups_named": sorted(groups),
    }


async def build_report(run: Run, watcher: Watcher, baselines: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole report; `baselines` is the same scenario in virtual time under simpler policies.

    Flips are told as they were last seen, while the site still ran: once the simulator has ended, sheds begin that no story is about.
    """
    scenario = run.scenario
    verdict = read_json(run.folder / "verdict.json")
    spans = quiet_spans(scenario)
    ratios = watcher.seen.ratios
    rows = flip_rows(watcher.seen.flips)
    mode_flips = [r for r in rows if not r["is_cap"]]
    active = [r for r in mode_flips if r["outcome"] == "ACTIVE"]
    gaps = [gap for at_s, _, gap in ratios if gap is not None and scenario.measure_from_s < at_s <= scenario.duration_s]
    site = watcher.seen.site
    return {
        "scenario": scenario.name,
        "seed": scenario.seed,
        "data": "real series" if run.data else "the scenario's own points",
        "market_clock_factor": scenario.market.clock_factor,
        "changed_settings": list(site.changed_settings)
        if site is not None
        else [f"{k}={v[0]}: {v[1]}" for k, v in PROTOCOL.items()],
        "processes": run.processes.started_count,
        "seconds": round(run.now(), 1),
        "verdict": verdict.get("verdict"),
        "verdict_reasons": verdict.get("reasons"),
        "over_cap_ws": verdict.get("over_cap_ws"),
        "over_cap_bound_ws": verdict.get("over_cap_bound_ws"),
        "limit_claimed_ratio": mean_outside([(at_s, ratio) for at_s, ratio, _ in ratios], spans),
        "limit_used_ratio": verdict.get("limit_used_ratio"),
        "flips": rows,
        "mode_flips_active": len(active),
        "gpu_mining_to_inference": sum(1 for r in active if (r["from"], r["to"]) == ("MINING", "INFERENCE")),
        "gpu_inference_to_mining": sum(1 for r in active if (r["from"], r["to"]) == ("INFERENCE", "MINING")),
        "flips_rolled_back": sum(1 for r in mode_flips if r["outcome"] == "ROLLED_BACK"),
        "flips_open": sum(1 for r in rows if r["seconds"] is None),
        "waited_for_flips_s": round(run.waited_for_flips_s, 1),
        "flips_failed": sum(1 for r in rows if r["outcome"] == "FAILED"),
        "false_confirmations": verdict.get("false_confirmations"),
        "confirmations_checked": verdict.get("confirmations_checked"),
        **liars(scenario, verdict, watcher),
        "curtailment_seconds_to_comply": verdict.get("curtailment_seconds_to_comply"),
        "controller_killed_mid_flip": run.killed_mid_flip,
        **await verify_acked(run, watcher),
        "energy_kwh": verdict.get("energy_kwh"),
        "unattributed_ratio": round(sum(gaps) / len(gaps), 4) if gaps else None,
        "margin_usd": margin_of_log(run.folder / "sim" / "truth.jsonl.gz", scenario),
        "baselines": baselines,
        "fault_kinds": verdict.get("fault_kinds"),
        "diary": [f"{at_s:7.1f} s  {text}" for at_s, text in sorted(run.diary)],
    }


def bars(report: Mapping[str, Any]) -> list[tuple[str, bool, str]]:
    """Return (promise, kept, figure) for everything that the demo promises."""
    over: Mapping[str, float] = report["over_cap_ws"] or {}
    bound: Mapping[str, float] = report["over_cap_bound_ws"] or {}
    claimed, used = report["limit_claimed_ratio"], report["limit_used_ratio"]
    comply = report["curtailment_seconds_to_comply"]
    left = [f"{row['count']} of {row['bank']} {row['outcome']}" for row in report["flips"] if row["seconds"] is None]
    rows = [
        ("authorised W·s over a limit are 0", over.get("authorised") == 0, f"{over.get('authorised')}"),
        *(
            (
                f"{cause} W·s within their bound",
                over.get(cause, 0.0) <= bound.get(cause, 0.0) + 1e-6,
                f"{over.get(cause)} of {bound.get(cause)}",
            )
            for cause in ("limit_lowered", "disobedient", "uncontrolled")
        ),
        ("claims fill the limit to at least 0.95", claimed is not None and claimed >= 0.95, f"{claimed}"),
        ("true watts fill it to at least 0.85", used is not None and used >= 0.85, f"{used}"),
        ("at least 12 mode flips ACTIVE", report["mode_flips_active"] >= 12, str(report["mode_flips_active"])),
        (
            "at least 4 GPU flips MINING to INFERENCE",
            report["gpu_mining_to_inference"] >= 4,
            str(report["gpu_mining_to_inference"]),
        ),
        (
            "at least 4 GPU flips INFERENCE to MINING",
            report["gpu_inference_to_mining"] >= 4,
            str(report["gpu_inference_to_mining"]),
        ),
        ("at least 1 flip ROLLED_BACK", report["flips_rolled_back"] >= 1, str(report["flips_rolled_back"])),
        (
            "the controller was killed in mid-flip",
            bool(report["controller_killed_mid_flip"]),
            str(report["controller_killed_mid_flip"]).lower(),
        ),
        ("no flip left open", not left, ", ".join(left) or "0"),
        (
            "no false confirmation",
            report["false_confirmations"] == 0,
            f"{report['false_confirmations']} of {report['confirmations_checked']}",
        ),
        (
            "the named liars are exactly the injected",
            report["liars_named"] == report["liars_injected"],
            f"{report['liars_named']}",
        ),
        (
            "the group that draws more than it reports is named",
            set(report["under_reporting_groups_injected"]) <= set(report["groups_named"]),
            f"{report['groups_named']}",
        ),
        ("curtailment met within 15 s", comply is not None and comply <= 15.0, f"{comply} s"),
        ("at least 20,000 samples acknowledged", report["acked_samples"] >= 20_000, str(report["acked_samples"])),
        ("none of them lost", report["acked_samples_lost"] == 0, str(report["acked_samples_lost"])),
    ]
    return [(promise, bool(kept), figure) for promise, kept, figure in rows]
