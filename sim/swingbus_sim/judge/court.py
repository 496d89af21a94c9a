"""Hears the truth line by line and speaks the verdict. Pure: no file, socket or clock.

Promise P2 is about 1 s means and a limit's own window: `authorised` W·s in either make the controller GUILTY. The 100 ms count stands
beside them; shorter spikes belong to breakers (promise P4).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from swingbus.faults import InvalidInput
from swingbus_sim.judge.attribution import CAUSES, PATIENCE, IncidentBook, Sample, WindowCounter
from swingbus_sim.judge.confirmations import ConfirmationCheck, Outage, Second

FORMAT = 1
_BLIPS = ("outage", "sag")
_HOLD_S = 3
_OFF = "O"
_HEADER_KEYS = (
    "scenario",
    "seed",
    "step_s",
    "measure_from_s",
    "t0_boottime_s",
    "nodes",
    "devices",
    "device_nodes",
    "device_factors",
    "groups",
    "burdens",
)


class _NodeFile:
    """What the court keeps of one node with a limit."""

    def __init__(self, raw: Mapping[str, Any], step_s: float) -> None:
        self.name: str = raw["name"]
        self.overload_ratio: float = raw["overload_ratio"]
        self.counters = {
            "100ms": WindowCounter(step_s, step_s),
            "1s": WindowCounter(1.0, step_s),
            "window": WindowCounter(raw["window_s"], step_s),
        }
        self.incidents = IncidentBook(self.name)
        self.max_w = 0.0
        self.used_sum = 0.0
        self.used_steps = 0
        self.over_theta_ws = 0.0
        self.allowed_s: dict[str, float] = {}
        self.by: dict[str, list[str]] = {}


class _Curtailment:
    """One lowered limit while it is in force."""

    def __init__(self, raw: Mapping[str, Any], node: str, started_s: float) -> None:
        detail = raw["detail"]
        self.id: int = raw["id"]
        self.node = node
        self.label: str = detail["label"]
        self.started_s = started_s
        self.limit_w: float = detail["limit_w"]
        before_w = detail[f"before_w:{node}"]
        self.drop_w: float = max(0.0, before_w - self.limit_w) if before_w is not None else float("inf")
        self.ramp_s: float = detail["ramp_s"]
        self.ended_s: float | None = None
        self.met_since_s: float | None = None
        self.met_s: float | None = None
        self.last_over_s: float | None = None

    def hear(self, end_s: float, mean_w: float, is_unexplained: bool) -> None:
        """Take a 1 s mean that ends at `end_s`."""
        due_s = self.started_s + self.ramp_s
        if mean_w > self.limit_w:
            self.met_since_s = None
            if end_s > due_s and is_unexplained:
                self.last_over_s = end_s
            return
        if self.met_since_s is None:
            self.met_since_s = end_s - 1.0
        if self.met_s is None and end_s - self.met_since_s >= _HOLD_S:
            self.met_s = max(0.0, self.met_since_s - due_s)

    def as_json(self) -> dict[str, object]:
        """Return the curtailment for verdict.json; `seconds_to_comply` is null where it was never met."""
        return {
            "node": self.node,
            "label": self.label,
            "in_force_s": round(self.started_s, 1),
            "ended_s": None if self.ended_s is None else round(self.ended_s, 1),
            "limit_w": self.limit_w,
            "ramp_s": self.ramp_s,
            "seconds_to_comply": None if self.met_s is None else round(self.met_s, 1),
            "last_unexplained_excess_s": self.last_over_s,
        }


class Court:
    """One run before the judge."""

    def __init__(self, header: Mapping[str, Any], *, measure_to_s: float = math.inf) -> None:
        """Open the case. Time means end at `measure_to_s`; whoever goes on after it is judged on.

        Raises:
            InvalidInput: the first line is not a truth header of the known format.
        """
        if header.get("type") != "header" or header.get("format") != FORMAT:
            raise InvalidInput(f"the truth must start with a header of format {FORMAT}, got {str(dict(header))[:80]}")
        missing = [key for key in _HEADER_KEYS if key not in header]
        if missing:
            raise InvalidInput(f"the truth header lacks {', '.join(missing)}; record it again with this simulator")
        self._header = header
        self._measure_to_s = measure_to_s
        self._step_s: float = header["step_s"]
        self._nodes: list[Mapping[str, Any]] = header["nodes"]
        self._files = [_NodeFile(n, self._step_s) if n["limit_w"] is not None else None for n in self._nodes]
        self._device_nodes: list[int] = header["device_nodes"]
        self._device_factors: list[float] = header["device_factors"]
        self._burdens = [[(int(i), float(f)) for i, f in rows] for rows in header["burdens"]]
        self._devices: list[str] = header["devices"]
        self._confirmations = ConfirmationCheck(
            [n["name"] for n in self._nodes], header["groups"], header["t0_boottime_s"]
        )
        self._second: list[tuple[Mapping[str, Any], tuple[float, ...]]] = []
        self._curtailments: list[_Curtailment] = []
        self._excluded: list[tuple[float, float]] = []
        self._states = ""
        self._dark: dict[int, frozenset[str]] = {}  # nodes without supply, by outage
        self._ledger: list[Mapping[str, Any]] = []
        self._energy_ws = {"mining": 0.0, "inference": 0.0, "meter": 0.0}
        self._seen_lies: dict[str, set[str]] = {}
        self._checked = 0
        self._false: list[str] = []
        self._gap_count = 0
        self._at_s = 0.0
        self._is_ended = False

    # -- hearing ------------------------------------------------------------------------------------------------------

    def hear(self, line: Mapping[str, Any]) -> None:
        """Take the next line of the truth."""
        match line["type"]:
            case "tick":
                self._hear_tick(line)
            case "ledger":
                self._hear_ledger(line)
            case "end":
                self._is_ended = True
                if self._second:  # it is not whole, and claims of the last moment are about it
                    self._confirmations.last = self._second_as_heard()
            case other:
                raise InvalidInput(f"unknown line type {other!r} in the truth")

    def check_confirmations(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Check what the controller said was proven. Call once, after the last tick.

        A line that cannot be checked (unknown names, outside the run) counts as false: it proves nothing.
        """
        for number, raw in enumerate(lines, start=1):
            self._checked += 1
            try:
                reason = self._confirmations.check(raw, line=number)
            except InvalidInput as error:
                reason = str(error)
            if reason is not None:
                self._false.append(f"line {number} at {raw.get('at_s', raw.get('boottime_s'))}: {reason}")

    def _hear_ledger(self, line: Mapping[str, Any]) -> None:
        self._ledger.append(line)
        detail, at_s = line["detail"], line["t"]
        if line["kind"] == "limit" and line["phase"] == "started":
            self._curtailments.extend(_Curtailment(line, node, at_s) for node in line["targets"])
        if line["kind"] == "limit" and line["phase"] == "ended":
            for curtailment in self._curtailments:
                if curtailment.id == line["id"]:
                    curtailment.ended_s = at_s
        if line["kind"] == "outage":
            in_force = line["phase"] == "started"
            self._dark[line["id"]] = frozenset(line["targets"] if in_force else ())
        if detail.get("is_disturbance") and line["phase"] != "skipped":
            lasts_s = (
                0.0
                if line["phase"] == "ended"
                else float(detail.get("for_s") or 0.0) + float(detail.get("notice_s") or 0.0)
            )
            self._excluded.append((at_s, at_s + lasts_s + float(detail.get("settle_s") or 0.0)))

    def _hear_tick(self, line: Mapping[str, Any]) -> None:
        at_s: float = line["t"]
        if at_s - self._at_s > 1.5 * self._step_s:
            self._gap_count += 1
        self._at_s = at_s
        self._note_failures(at_s, line["s"])
        count = len(self._nodes)
        disobedient_w, uncontrolled_w, young_w = [0.0] * count, [0.0] * count, [0.0] * count
        patience_s: dict[int, float] = {}
        for device, extra_w, since_s, cause in line["x"]:
            self._seen_lies.setdefault(cause, set()).add(self._devices[device])
            node = self._device_nodes[device]
            home = self._nodes[node]
            allowed_s = home["catch_s"] if cause in _BLIPS else home["reaction_s"]
            age_s = at_s - since_s
            watts = extra_w * self._device_factors[device]
            for index, factor in self._burdens[node]:
                if age_s <= PATIENCE * allowed_s:
                    disobedient_w[index] += watts * factor
                    patience_s[index] = max(patience_s.get(index, 0.0), allowed_s)
                if age_s <= allowed_s:
                    young_w[index] += watts * factor
        for _, node, extra_w, since_s in line["u"]:
            if at_s - since_s <= PATIENCE * self._nodes[node]["reaction_s"]:
                for index, factor in self._burdens[node]:
                    uncontrolled_w[index] += extra_w * factor
        is_quiet = self._is_quiet(at_s)
        for index, file in enumerate(self._files):
            limit_w = line["l"][index]
            power_w = line["n"][index]
            if file is None or limit_w is None:
                continue
            lowered_w, lowered_s = self._lowered(file.name, at_s, self._nodes[index]["reaction_s"])
            sample = Sample(
                power_w=power_w,
                limit_w=limit_w,
                limit_lowered_w=lowered_w,
                disobedient_w=disobedient_w[index],
                uncontrolled_w=uncontrolled_w[index],
            )
            file.max_w = max(file.max_w, power_w)
            file.over_theta_ws += max(0.0, power_w - file.overload_ratio * limit_w) * self._step_s
            if is_quiet:
                file.used_sum += power_w / limit_w
                file.used_steps += 1
            self._remember_who(file, line, index, lowered_s, patience_s.get(index, 0.0))
            self._count(file, at_s, sample)
        self._energy_ws["mining"] += line["m"][0] * self._step_s
        self._energy_ws["inference"] += line["m"][1] * self._step_s
        self._energy_ws["meter"] += line["n"][0] * self._step_s
        self._keep_second(line, at_s, tuple(young_w))

    def _note_failures(self, at_s: float, states: str) -> None:
        """Note whom an outage puts out now: miners at once, a GPU server when it has ridden through what it can."""
        dark = set().union(*self._dark.values())
        if dark and self._states and states != self._states:
            before = {
                device: was
                for device, (was, now) in enumerate(zip(self._states, states, strict=True))
                if now == _OFF != was and self._is_fed_by(self._device_nodes[device], dark)
            }
            if before:
                self._confirmations.outages.append(Outage(started_s=at_s - self._step_s, before=before))
        self._states = states

    def _is_fed_by(self, node: int, names: Collection[str]) -> bool:
        return any(self._nodes[index]["name"] in names for index, _ in self._burdens[node])

    def _count(self, file: _NodeFile, at_s: float, sample: Sample) -> None:
        for name, counter in file.counters.items():
            parts = counter.add(sample)
            if name != "1s" or parts is None:
                continue
            if parts:
                file.incidents.add(at_s, 1.0, parts, file.allowed_s, file.by)
            file.allowed_s, file.by = {}, {}

    def _remember_who(
        self, file: _NodeFile, line: Mapping[str, Any], index: int, lowered_s: float, patience_s: float
    ) -> None:
        """Note for the open second who could explain an excess and how long that is allowed."""
        if lowered_s > 0.0:
            file.allowed_s["limit_lowered"] = max(file.allowed_s.get("limit_lowered", 0.0), lowered_s)
        if patience_s > 0.0:
            file.allowed_s["disobedient"] = max(file.allowed_s.get("disobedient", 0.0), patience_s)
            names = file.by.setdefault("disobedient", [])
            if len(names) < 12:
                names.extend(f"{self._devices[row[0]]} ({row[3]})" for row in line["x"][:12])
        for load, _, _, _ in line["u"]:
            file.allowed_s["uncontrolled"] = self._nodes[index]["reaction_s"]
            file.by["uncontrolled"] = [load]

    def _lowered(self, node: str, at_s: float, reaction_s: float) -> tuple[float, float]:
        """Return (watts, allowed seconds) that limits lowered a moment ago explain at `node`."""
        watts = allowed_s = 0.0
        for curtailment in self._curtailments:
            allowance_s = curtailment.ramp_s + reaction_s
            if curtailment.node == node and curtailment.ended_s is None and at_s - curtailment.started_s <= allowance_s:
                watts += curtailment.drop_w
                allowed_s = max(allowed_s, allowance_s)
        return watts, allowed_s

    def _is_quiet(self, at_s: float) -> bool:
        if not self._header["measure_from_s"] < at_s <= self._measure_to_s:
            return False
        return not any(start < at_s <= end for start, end in self._excluded)

    def _keep_second(self, line: Mapping[str, Any], at_s: float, young_w: tuple[float, ...]) -> None:
        self._second.append((line, young_w))
        if len(self._second) < round(1.0 / self._step_s):
            return
        second = self._second_as_heard()
        self._confirmations.seconds.append(second)
        explained = {index for index, young in enumerate(young_w) if young > 0.0}
        for curtailment in self._curtailments:
            if curtailment.ended_s is None:
                index = next(i for i, n in enumerate(self._nodes) if n["name"] == curtailment.node)
                curtailment.hear(at_s, second.mean_w[index], index not in explained)
        self._second.clear()

    def _second_as_heard(self) -> Second:
        steps = len(self._second)
        line, young_w = self._second[-1]
        return Second(
            mean_w=tuple(sum(column) / steps for column in zip(*(each["n"] for each, _ in self._second), strict=True)),
            potential_w=tuple(line["e"]),
            young_w=young_w,
            states=line["s"],
            young_devices=frozenset(
                row[0]
                for row in line["x"]
                if line["t"] - row[2] <= self._nodes[self._device_nodes[row[0]]]["reaction_s"]
            ),
        )

    # -- speaking -----------------------------------------------------------------------------------------------------

    def verdict(self) -> dict[str, Any]:
        """Return the verdict as verdict.json holds it."""
        files = [f for f in self._files if f is not None]
        incidents = [i for f in files for i in f.incidents.all()]
        over, bounds = self._headline(files)
        reasons = self._reasons(files)
        used = {f.name: f.used_sum / f.used_steps for f in files if f.used_steps}
        tightest = max(used, key=lambda name: used[name]) if used else None
        met = [c.as_json() for c in self._curtailments]
        seconds = [m["seconds_to_comply"] for m in met]
        kwh = {name: round(ws / 3.6e6, 4) for name, ws in self._energy_ws.items()}
        kwh["other"] = round(
            (self._energy_ws["meter"] - self._energy_ws["mining"] - self._energy_ws["inference"]) / 3.6e6, 4
        )
        return {
            "format": FORMAT,
            "verdict": "GUILTY" if reasons else "NOT GUILTY",
            "reasons": reasons,
            "scenario": self._header["scenario"],
            "seed": self._header["seed"],
            "is_complete": self._is_ended,
            "seconds": round(self._at_s, 1),
            "over_cap_ws": over,
            "over_cap_bound_ws": bounds,
            "limit_used_ratio": None if tightest is None else round(used[tightest], 4),
            "limit_used_node": tightest,
            "quiet_seconds": round(max((f.used_steps for f in files), default=0) * self._step_s, 1),
            "curtailments": met,
            "curtailment_seconds_to_comply": None
            if not seconds or any(not isinstance(s, float) for s in seconds)
            else max(s for s in seconds if isinstance(s, float)),
            "energy_kwh": kwh,
            "confirmations_checked": self._checked,
            "false_confirmations": len(self._false),
            "false_confirmation_reasons": self._false[:20],
            "liars_injected": sorted(
                self._seen_lies.get("ignore_sleep", set()) | self._seen_lies.get("wake_by_itself", set())
            ),
            "liars_planted": self._planted(),
            "devices_drawing_more": sorted(self._seen_lies.get("draws_more", set())),
            "fault_kinds": sorted({e["kind"] for e in self._ledger if e["phase"] in ("started", "due")}),
            "nodes": {f.name: self._node_json(f) for f in files},
            "incidents": [i.as_json() for i in incidents[:200]],
        }

    def _headline(self, files: list[_NodeFile]) -> tuple[dict[str, float], dict[str, float]]:
        """Return W·s in 1 s means and bounds by cause, each at its worst node."""
        over = dict.fromkeys(CAUSES, 0.0)
        bounds = dict.fromkeys(CAUSES, 0.0)
        for cause in CAUSES:
            worst = max(files, key=lambda f: f.counters["1s"].over_ws[cause], default=None)
            if worst is not None and worst.counters["1s"].over_ws[cause] > 0.0:
                over[cause] = round(worst.counters["1s"].over_ws[cause], 1)
                bounds[cause] = round(sum(i.bound_ws for i in worst.incidents.all() if i.cause == cause), 1)
        over["authorised"] = round(
            max(
                (
                    max(f.counters["1s"].over_ws["authorised"], f.counters["window"].over_ws["authorised"])
                    for f in files
                ),
                default=0.0,
            ),
            1,
        )
        bounds["authorised"] = 0.0
        return over, bounds

    def _reasons(self, files: list[_NodeFile]) -> list[str]:
        reasons = []
        for file in files:
            for window in ("1s", "window"):
                authorised_ws = file.counters[window].over_ws["authorised"]
                if authorised_ws > 0.0:
                    length_s = file.counters[window].window_s
                    reasons.append(
                        f"{file.name}: {authorised_ws:.1f} W·s over the limit were authorised ({length_s:g} s means)"
                    )
            reasons.extend(
                f"{file.name}: {i.over_ws:.0f} W·s {i.cause} from {i.start_s:.0f} s are beyond the bound "
                f"{i.bound_ws:.0f} W·s ({i.peak_w:.0f} W x {i.allowed_s:g} s)"
                for i in file.incidents.all()
                if i.cause != "authorised" and i.over_ws > i.bound_ws
            )
        if self._false:
            reasons.append(
                f"{len(self._false)} of {self._checked} confirmations were false, the first: {self._false[0]}"
            )
        if not self._is_ended:
            reasons.append("the truth ends early: what was not seen is not proven")
        if self._gap_count:
            reasons.append(f"the truth has {self._gap_count} gaps")
        return reasons

    def _planted(self) -> list[str]:
        kinds = ("ignore_sleep", "wake_by_itself")
        return sorted(
            {t for e in self._ledger if e["kind"] in kinds and e["phase"] in ("started", "armed") for t in e["targets"]}
        )

    def _node_json(self, file: _NodeFile) -> dict[str, object]:
        return {
            "max_w": round(file.max_w, 1),
            "limit_used_ratio": round(file.used_sum / file.used_steps, 4) if file.used_steps else None,
            "window_s": file.counters["window"].window_s,
            "over_ws": {
                name: {cause: round(ws, 1) for cause, ws in counter.over_ws.items()}
                for name, counter in file.counters.items()
            },
            "over_theta_ws": round(file.over_theta_ws, 1),
        }
