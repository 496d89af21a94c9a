"""Builders for the simulator's tests: small worlds, single machines, hand-made truth."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

from swingbus_sim.baseline import VirtualShelf
from swingbus_sim.catalogue import ASIC_CLASSES, GPU_CLASSES
from swingbus_sim.judge.court import Court
from swingbus_sim.physics.asic import SimulatedAsic
from swingbus_sim.physics.gpu import GpuHost
from swingbus_sim.physics.truth import Tick
from swingbus_sim.physics.world import World
from swingbus_sim.scenario import Event, Scenario
from swingbus_sim.scenario_file import load_scenario

STEP_S = 0.1


def make_asic(*, class_name: str = "s19k-pro-luxos", is_mining: bool = True, seed: int = 1) -> SimulatedAsic:
    """Return one machine without spread, so that its watts are its profile's."""
    return SimulatedAsic(
        name="m-001",
        mac="02:5b:00:00:00:01",
        serial_number="SB1",
        asic_class=replace(ASIC_CLASSES[class_name], spread_ratio=0.0, reported_error_ratio=0.0),
        random=Random(seed),
        is_mining=is_mining,
    )


class AsicBench:
    """Steps one machine and keeps the time."""

    def __init__(self, asic: SimulatedAsic) -> None:
        self.asic = asic
        self.now_s = 0.0

    def run(self, seconds: float) -> list[float]:
        """Step for `seconds` and return the draw of each step."""
        watts = []
        for _ in range(round(seconds / STEP_S)):
            self.now_s += STEP_S
            self.asic.step(self.now_s, STEP_S)
            watts.append(self.asic.power_w)
        return watts


def make_host(*, rides_through_s: float = 0.02, seed: int = 1) -> tuple[GpuHost, VirtualShelf]:
    """Return a server of 8 GPUs and its shelf."""
    shelf = VirtualShelf(8)
    host = GpuHost(
        name="g1",
        gpu_class=GPU_CLASSES["h100-sxm"],
        gpu_count=8,
        shelf=shelf,
        random=Random(seed),
        rides_through_s=rides_through_s,
        boot_s=5.0,
    )
    return host, shelf


def run_host(
    host: GpuHost, seconds: float, *, start_s: float = 0.0, is_powered: bool = True, is_spiking: bool = False
) -> list[float]:
    """Step a server and return its wall draw per step."""
    watts = []
    for step in range(1, round(seconds / STEP_S) + 1):
        now_s = start_s + step * STEP_S
        host.feed(now_s, is_powered=is_powered)
        host.step(now_s, STEP_S, is_spiking=is_spiking, is_powered=is_powered)
        watts.append(host.power_w)
    return watts


def make_world(
    *events: Event, name: str = "small", scenario: Scenario | None = None
) -> tuple[World, dict[str, VirtualShelf]]:
    """Return a world on the small scenario with these events."""
    base = scenario if scenario is not None else load_scenario(name)
    chosen = replace(base, events=tuple(sorted(events, key=lambda e: e.at_s))) if events else base
    shelves = {h.name: VirtualShelf(h.gpu_count) for h in chosen.hosts}
    return World(chosen, shelves), shelves


def run_world(world: World, until_s: float) -> Iterator[Tick]:
    """Step a world up to `until_s`, giving each tick."""
    steps = round(world.now_s / STEP_S)
    while steps < round(until_s / STEP_S):
        steps += 1
        yield world.step(steps * STEP_S, STEP_S)


def make_header(*, limit_w: float = 100_000.0, window_s: float = 5.0, measure_from_s: float = 0.0) -> dict[str, Any]:
    """Return a truth header: grid over c1 and c2, four machines, no losses."""

    def node(name: str, parent: str | None, limit: float | None) -> dict[str, Any]:
        return {
            "name": name,
            "parent": parent,
            "limit_w": limit,
            "window_s": window_s,
            "overload_ratio": 1.3,
            "reaction_s": 10.0,
            "catch_s": 15.0,
        }

    return {
        "type": "header",
        "format": 1,
        "scenario": "made",
        "seed": 1,
        "step_s": 0.1,
        "measure_from_s": measure_from_s,
        "t0_boottime_s": 1000.0,
        "nodes": [node("grid", None, limit_w), node("c1", "grid", None), node("c2", "grid", None)],
        "devices": ["a", "b", "c", "d"],
        "device_nodes": [1, 1, 2, 2],
        "device_factors": [1.0, 1.0, 1.0, 1.0],
        "groups": {"c1": [0, 1], "c2": [2, 3]},
        "burdens": [[[0, 1.0]], [[1, 1.0], [0, 1.0]], [[2, 1.0], [0, 1.0]]],
    }


class MadeTruth:
    """Feeds a court second by second with hand-made truth."""

    def __init__(self, header: dict[str, Any] | None = None, *, measure_to_s: float = math.inf) -> None:
        self.header = header if header is not None else make_header()
        self.court = Court(self.header, measure_to_s=measure_to_s)
        self.limit_w = float(self.header["nodes"][0]["limit_w"])
        self._step = 0

    @property
    def now_s(self) -> float:
        """Return the seconds told so far."""
        return self._step / 10

    def tell(
        self,
        seconds: float,
        power_w: float,
        *,
        disobedient: list[list[Any]] | None = None,
        surges: list[list[Any]] | None = None,
        potential_w: float | None = None,
        states: str = "MMMM",
    ) -> None:
        """Tell `seconds` of constant truth at the grid, shared half and half by c1 and c2."""
        half_w = power_w / 2
        ceiling_w = potential_w if potential_w is not None else power_w
        for _ in range(round(seconds * 10)):
            self._step += 1
            self.court.hear(
                {
                    "type": "tick",
                    "t": self._step / 10,
                    "v": 1.0,
                    "n": [power_w, half_w, half_w],
                    "l": [self.limit_w, None, None],
                    "e": [ceiling_w, ceiling_w / 2, ceiling_w / 2],
                    "d": [0, 0, 0, 0],
                    "s": states,
                    "x": disobedient or [],
                    "u": surges or [],
                    "m": [power_w * 0.9, 0.0, 0, 0, 0, 40, 0, 0.05],
                }
            )

    def cut_supply(self, node: str) -> None:
        """Begin an outage at `node`, as the ledger writes it."""
        detail = {"label": "blip", "for_s": 30.0, "is_disturbance": True, "settle_s": 60.0}
        self._note("outage", node, detail)

    def lower_limit(self, limit_w: float, *, ramp_s: float = 0.0) -> None:
        """Lower the grid's limit from now on, as the ledger writes it."""
        detail = {
            "label": "curtailment",
            "for_s": 60.0,
            "is_disturbance": True,
            "settle_s": 60.0,
            "limit_w": limit_w,
            "ramp_s": ramp_s,
            "before_w:grid": self.limit_w,
        }
        self._note("limit", "grid", detail)
        self.limit_w = limit_w

    def _note(self, kind: str, node: str, detail: dict[str, Any]) -> None:
        line = {"t": self.now_s, "id": 1, "kind": kind, "phase": "started", "targets": [node], "detail": detail}
        self.court.hear({"type": "ledger", **line})

    def verdict(self, *, ends: bool = True) -> dict[str, Any]:
        """End the truth and return the verdict."""
        if ends:
            self.court.hear({"type": "end", "t": self.now_s})
        verdict: dict[str, Any] = json.loads(json.dumps(self.court.verdict()))
        return verdict
