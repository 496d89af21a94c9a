"""The truth as lines of JSON: to the judge's socket and to RUN_DIR/truth.jsonl.gz. One encoder, one decoder.

Line kinds, by "type":
- "header" (first): format, scenario, seed, step_s, measure_from_s, t0_boottime_s; nodes [{name, parent, limit_w, window_s,
  overload_ratio, reaction_s, catch_s}]; devices [names, ASICs then GPUs], device_nodes [node index per device], device_factors [wall
  watts per device watt]; groups {name of miner group, host or agent: [device indexes]}; burdens [per node: [[node index, factor],
  ...]]: what one watt on that node makes on it and above.
- "tick": t (s since start, end of the 100 ms), v (voltage ratio), n (node W), l (limit W or null per node), e (potential W per node),
  d (device W), s (state letters), x ([device, extra W, since s, cause] per disobedient device), u ([load, node, extra W, since s] per
  surge), m ([mining W, inference W, hashrate TH/s, GPU-mining GPUs, inference capacity GPUs, price USD/MWh, demand GPUs, hashprice]).
- "ledger": t, id, kind, phase, targets, detail.
- "end": t. A stream without it was cut off.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from swingbus.faults import InvalidInput, NotFound
from swingbus_sim.physics.truth import Disobedience, LedgerEntry, Surge, Tick
from swingbus_sim.physics.world import STEP_S, World

FORMAT = 1


def header_line(world: World, *, t0_boottime_s: float) -> str:
    """Return the stream's first line."""
    scenario = world.scenario
    index_of = {name: i for i, name in enumerate(world.device_names)}
    groups: dict[str, list[int]] = {}
    device_nodes = [0] * len(world.device_names)
    device_factors = [1.0] * len(world.device_names)
    rows: list[tuple[str, str, str, tuple[str, ...], float]] = [
        *((m.name, m.agent, m.node, m.device_names(), 1.0) for m in scenario.miners),
        # One watt in a GPU costs fans and the supply's loss too.
        *(
            (h.name, h.agent, h.node, h.device_names(), h.gpu_class.host_w(1.0) - h.gpu_class.host_w(0.0))
            for h in scenario.hosts
        ),
    ]
    for name, agent, node_name, names, wall_factor in rows:
        members = [index_of[device] for device in names]
        groups[name] = members
        if agent != name:
            groups.setdefault(agent, []).extend(members)
        for member in members:
            device_nodes[member] = world.tree.index[node_name]
            device_factors[member] = round(wall_factor, 4)
    # A watt in a container also makes its cooling work: part of what a disobedient machine costs upstream.
    cooling = {world.tree.index[c.node]: c.ratio for c in scenario.cooling}
    burdens = []
    for node in scenario.nodes:
        factor = 1.0
        chain = []
        for index, loss_factor in world.tree.burden(node.name):
            factor *= 1.0 + cooling.get(index, 0.0)
            chain.append([index, round(factor * loss_factor, 6)])
        burdens.append(chain)
    return _dump(
        {
            "type": "header",
            "format": FORMAT,
            "scenario": scenario.name,
            "seed": scenario.seed,
            "step_s": STEP_S,
            "measure_from_s": scenario.measure_from_s,
            "t0_boottime_s": t0_boottime_s,
            "nodes": [
                {
                    "name": n.name,
                    "parent": n.parent,
                    "limit_w": n.limit_w,
                    "window_s": n.window_s,
                    "overload_ratio": n.overload_ratio,
                    "reaction_s": n.reaction_s,
                    "catch_s": n.catch_s,
                }
                for n in scenario.nodes
            ],
            "devices": list(world.device_names),
            "device_nodes": device_nodes,
            "device_factors": device_factors,
            "groups": groups,
            "burdens": burdens,
        }
    )


def tick_line(tick: Tick) -> str:
    """Return one tick as a line."""
    return _dump(
        {
            "type": "tick",
            "t": round(tick.at_s, 3),
            "v": round(tick.voltage_ratio, 3),
            "n": [round(w, 1) for w in tick.node_w],
            "l": tick.limit_w,
            "e": [round(w) for w in tick.potential_w],
            "d": [round(w) for w in tick.device_w],
            "s": tick.states,
            "x": [[d.device, round(d.extra_w, 1), round(d.since_s, 3), d.cause] for d in tick.disobedient],
            "u": [[s.load, s.node, s.extra_w, round(s.since_s, 3)] for s in tick.surges],
            "m": [
                round(tick.mining_w, 1),
                round(tick.inference_w, 1),
                round(tick.hashrate_ths, 2),
                round(tick.gpu_mining_gpus, 3),
                round(tick.inference_capacity_gpus, 3),
                tick.price_usd_per_mwh,
                tick.demand_gpus,
                tick.hashprice_usd_per_th_day,
            ],
        }
    )


def ledger_line(entry: LedgerEntry) -> str:
    """Return one ledger entry as a line."""
    return _dump(
        {
            "type": "ledger",
            "t": round(entry.at_s, 3),
            "id": entry.id,
            "kind": entry.kind,
            "phase": entry.phase,
            "targets": list(entry.targets),
            "detail": entry.detail,
        }
    )


def end_line(at_s: float) -> str:
    """Return the stream's last line."""
    return _dump({"type": "end", "t": round(at_s, 3)})


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def parse_tick(raw: dict[str, Any]) -> Tick:
    """Return the tick of a decoded "tick" line (watts as rounded on the line)."""
    m = raw["m"]
    return Tick(
        at_s=raw["t"],
        voltage_ratio=raw["v"],
        node_w=tuple(raw["n"]),
        limit_w=tuple(raw["l"]),
        potential_w=tuple(raw["e"]),
        device_w=tuple(raw["d"]),
        states=raw["s"],
        disobedient=tuple(Disobedience(*row) for row in raw["x"]),
        surges=tuple(Surge(*row) for row in raw["u"]),
        mining_w=m[0],
        inference_w=m[1],
        hashrate_ths=m[2],
        gpu_mining_gpus=m[3],
        inference_capacity_gpus=m[4],
        price_usd_per_mwh=m[5],
        demand_gpus=m[6],
        hashprice_usd_per_th_day=m[7],
    )


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read a truth log (plain or .gz), line by line; a torn last line ends it quietly, as after a crash.

    Raises:
        NotFound: no such file.
        InvalidInput: a line in the middle is not JSON, or the first is not a header of this format.
    """
    if not path.is_file():
        raise NotFound(f"no truth log at {path}; run `swingbus-sim run` with --dir first")
    opener = gzip.open if path.suffix == ".gz" else open
    torn: str | None = None
    with opener(path, "rt", encoding="utf-8") as handle:
        number = 0
        try:
            for line in handle:
                number += 1
                if torn is not None:
                    raise InvalidInput(f"{path}:{number - 1}: not JSON: {torn[:60]!r}")
                try:
                    raw = json.loads(line)
                except json.JSONDecodeError:
                    torn = line
                    continue
                if number == 1 and (raw.get("type") != "header" or raw.get("format") != FORMAT):
                    raise InvalidInput(f"{path}: does not start with a truth header of format {FORMAT}")
                yield raw
        except EOFError:
            return  # the gzip stream was cut off: what was read stands
