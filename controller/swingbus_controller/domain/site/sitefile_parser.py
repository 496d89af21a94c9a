"""Turn the parsed TOML of a site into a `SiteFile`, or say everything that is wrong with it at once.

Decides: whether the file is consistent in itself. Refuses to know: whether it is true (that is commissioning) and where it lies.
Invariant: no default is silent where it would free watts: ceilings, limits and feeders must be written down.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from swingbus.faults import InvalidInput
from swingbus_controller.domain.planning.economics import FlipCosts
from swingbus_controller.domain.planning.plan import Authority
from swingbus_controller.domain.planning.points import DeviceKind, Mode
from swingbus_controller.domain.planning.policy import FlipTimes, Policy
from swingbus_controller.domain.power import bank as counting
from swingbus_controller.domain.power.bank import BankSpec, CountingFactors, counted_w
from swingbus_controller.domain.power.bank import DeviceKind as CountedKind
from swingbus_controller.domain.power.limits import Limit, breaker_limit_w
from swingbus_controller.domain.power.protocol import ProtocolSettings
from swingbus_controller.domain.power.tree import Feeder, MeterSpec, PowerTree
from swingbus_controller.domain.site.sitefile import (
    ChangedSetting,
    ClassPoint,
    DeviceClass,
    FeederNote,
    MarketPlace,
    PushedSignal,
    SiteBank,
    SiteFile,
    SiteReservation,
    Tariff,
)
from swingbus_controller.domain.site.sitefile_pods import check_classes_of_demand, check_pods_can_run, place_in_cluster
from swingbus_controller.domain.site.strict_table import Faults, StrictTable

FEEDER_KINDS = ("grid", "transformer", "container", "pdu")
# Signals by name; `/` at the end: the name goes on with a device or inference class.
SIGNALS = (
    "power_price_usd_per_mwh",
    "hashprice_usd_per_th_day",
    "inference_price_usd_per_gpu_h/",
    "inference_demand_gpu_count/",
    "gpu_mining_price_usd_per_gpu_h/",
)
T = TypeVar("T")


def is_signal_name(name: str) -> bool:
    """Tell whether a signal's name is one that Swingbus understands."""
    return any(name == known or (known.endswith("/") and name.startswith(known) and name != known) for known in SIGNALS)


def parse_site(values: StrictTable, faults: Faults) -> SiteFile | None:
    """Read the site's part of a document; None where a fault makes it useless (the faults say which)."""
    site = values.table("site")
    name = site.name("name")
    authority = Authority(site.text("authority", "observe", choices=[a.value for a in Authority]) or "observe")
    price_zone = site.text("price_zone", "unknown")
    site.finish()
    tariff = _tariff(values.table("tariff"))
    protocol, changed = _protocol(values.table("protocol"), faults)
    feeders, notes = _feeders(values.tables("feeder"), faults)
    classes, class_specs = _classes(values.tables("class"), faults)
    banks = _banks(values.tables("bank"), faults, feeders, classes, class_specs)
    reservations = _reservations(values.tables("reservation"))
    market = _market(values.table("market"), values.tables("signal"))
    policy = _policy(values.table("policy"), faults)
    if not feeders:
        faults.note("feeder", "no feeder is declared; write at least the grid connection as [[feeder]]")
    tree = _built(faults, "feeder", partial(PowerTree, feeders)) if feeders else None
    if tree is None or protocol is None or policy is None:
        return None
    if math.isinf(min((limit.limit_w for limit in tree.feeder(tree.root).limits), default=math.inf)):
        faults.note(f"feeder[{tree.root}]", "the head feeder has no limit; write its contract as [[feeder.limit]]")
    _check_loads(tree, faults)
    for reservation in reservations:
        if not any(c.inference_class == reservation.inference_class for c in classes.values()):
            faults.note(
                f"reservation[{reservation.name}].inference_class",
                f"no class serves {reservation.inference_class!r}; set inference_class in a [[class]] of kind gpu",
            )
    return SiteFile(
        name=name,
        authority=authority,
        price_zone=price_zone,
        tariff=tariff,
        protocol=protocol,
        changed_settings=changed,
        tree=tree,
        feeder_notes=MappingProxyType(notes),
        classes=MappingProxyType(classes),
        banks=banks,
        reservations=reservations,
        market=market,
        policy=policy,
    )


def _built(faults: Faults, path: str, build: Callable[[], T]) -> T | None:
    """Build a domain value; what it refuses becomes a fault of the file."""
    try:
        return build()
    except InvalidInput as error:
        faults.note(path, str(error))
        return None


def _tariff(table: StrictTable) -> Tariff:
    tariff = Tariff(
        adder_usd_per_mwh=table.decimal("adder_usd_per_mwh", "0"),
        demand_charge_usd_per_kw_month=table.decimal("demand_charge_usd_per_kw_month", "0"),
        demand_window_s=table.number("demand_window_s", 900.0, low=1.0, high=86_400.0),
        take_or_pay_w=table.number("take_or_pay_w", 0.0, low=0.0),
    )
    table.finish()
    return tariff


def _protocol(table: StrictTable, faults: Faults) -> tuple[ProtocolSettings | None, tuple[ChangedSetting, ...]]:
    changed: list[ChangedSetting] = []
    overrides: dict[str, Any] = {}
    for setting in dataclasses.fields(ProtocolSettings):
        given = table.has(setting.name)
        entry = table.table(setting.name)
        if not given:
            continue
        value = entry.number("value")
        change = ChangedSetting(
            name=setting.name,
            value=value,
            default=None if setting.default is None else float(str(setting.default)),
            why=entry.text("why"),
            commissioned=entry.flag("commissioned", False),
        )
        entry.finish()
        # Annotations are strings here; whole numbers stay whole.
        is_whole = str(setting.type).startswith("int")
        if is_whole and value != int(value):
            entry.fault("value", f"{value:g} is not a whole number")
        overrides[setting.name] = int(value) if is_whole else value
        changed.append(change)
    table.finish()
    settings = _built(faults, "protocol", partial(ProtocolSettings, **overrides))
    return settings, tuple(changed)


def _feeders(tables: tuple[StrictTable, ...], faults: Faults) -> tuple[list[Feeder], dict[str, FeederNote]]:
    feeders: list[Feeder] = []
    notes: dict[str, FeederNote] = {}
    for table in tables:
        name = table.name("name")
        parent = table.name("parent", "") if table.has("parent") else None
        kind = table.text("kind", choices=FEEDER_KINDS)
        limits = _limits(table, faults)
        has_meter = table.has("meter")
        meter, meter_id = _meter(table.table("meter")) if has_meter else (None, "")
        feeder = Feeder(
            name=name,
            parent=parent or None,
            losses_ratio=table.number("losses_ratio", 0.0, low=0.0, high=0.5),
            theta_ratio=table.number("theta_ratio", 1.0, low=1.0, high=3.0),
            theta_s=table.number("theta_s", 0.0, low=0.0),
            limits=limits,
            meter=meter,
            uncontrolled_max_w=table.number("u_max_w", 0.0, low=0.0),
            uncontrolled_step_w=table.number("u_step_w", 0.0, low=0.0),
            measures_uncontrolled=table.flag("u_measured", False),
        )
        table.finish()
        if feeder.uncontrolled_step_w > feeder.uncontrolled_max_w:
            table.fault("u_step_w", "one load cannot be larger than all of them: u_max_w")
        if feeder.measures_uncontrolled and meter is None:
            table.fault("u_measured", "what is left over is known from this feeder's own meter only: it has none")
        if any(note.meter == meter_id for note in notes.values()) and meter_id:
            table.fault("meter.id", f"{meter_id!r} already measures another feeder; a meter measures one")
        feeders.append(feeder)
        notes[name] = FeederNote(kind=kind, meter=meter_id, meter_agent=meter.reader if meter else "")
    return feeders, notes


def _check_loads(tree: PowerTree, faults: Faults) -> None:
    """Where U is measured every load below must say how much of it can start at once: nothing else stays free for it."""
    for name, feeder in tree.feeders.items():
        below = [tree.feeders[n] for n in sorted(tree.subtree(name))] if feeder.measures_uncontrolled else []
        if below and not any(f.uncontrolled_max_w for f in below):
            faults.note(f"feeder[{name}].u_measured", "no load below it has a rating: write u_max_w where loads hang")
        for load in below:
            if load.uncontrolled_max_w > 0.0 and load.uncontrolled_step_w <= 0.0:
                faults.note(
                    f"feeder[{load.name}].u_step_w",
                    f"{name} measures its uncontrolled load, so say how large the largest that can start at once is",
                )


def _limits(table: StrictTable, faults: Faults) -> tuple[Limit, ...]:
    limits: list[Limit] = []
    for entry in table.tables("limit"):
        name = entry.name("name")
        limit_w = entry.number("limit_w", low=0.0)
        window_s = entry.number("window_s", 0.0, low=0.0)
        source = entry.text("source")
        entry.finish()
        if any(limit.name == name for limit in limits):
            entry.fault("name", f"{name!r} is given twice at this feeder")
        if name == "operator" or name.startswith("c-"):
            entry.fault("name", f"{name!r} is kept for limits that people order later; choose another")
        if name == "breaker" and table.has("breaker"):
            entry.fault("name", "'breaker' is the limit that [feeder.breaker] makes; choose another")
        built = _built(faults, entry.path, partial(Limit, name=name, limit_w=limit_w, source=source, window_s=window_s))
        limits += [built] if built else []
    if table.has("breaker"):
        breaker = table.table("breaker")
        rated_a = breaker.number("rated_a", low=0.1)
        min_v = breaker.number("min_v", low=1.0)
        power_factor_ratio = breaker.number("power_factor_ratio", low=0.01, high=1.0)
        continuous_ratio = breaker.number("continuous_ratio", 0.8, low=0.1, high=1.0)
        breaker.finish()
        watts = _built(
            faults,
            breaker.path,
            partial(
                breaker_limit_w,
                rated_current_a=rated_a,
                min_voltage_v=min_v,
                power_factor_ratio=power_factor_ratio,
                continuous_ratio=continuous_ratio,
            ),
        )
        if watts is not None:
            source = f"breaker {rated_a:g} A at {min_v:g} V, {continuous_ratio:g} continuous"
            limits.append(Limit(name="breaker", limit_w=watts, source=source))
    return tuple(limits)


def _meter(table: StrictTable) -> tuple[MeterSpec, str]:
    meter_id = table.name("id")
    meter = MeterSpec(
        reader=table.name("agent"),
        error_ratio=table.number("error_ratio", 0.01, low=0.0, high=0.2),
        quantum_w=table.number("quantum_w", 1.0, low=0.0),
        lag_s=table.number("lag_s", 0.0, low=0.0, high=600.0),
        averaging_s=table.number("averaging_s", 0.0, low=0.0, high=3600.0),
        energy_count_j=table.number("energy_count_j", 3600.0, low=0.0),
    )
    table.finish()
    return meter, meter_id


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _ClassSpec:
    """What a class gives to the `BankSpec` of each of its banks."""

    kind: CountedKind
    ceiling_w: float
    floor_w: float
    factors: CountingFactors
    host_w: float
    cooling_w: float
    cooling_ratio: float
    losses_ratio: float
    start_peak_w: float
    safe_share_w: float
    settle_s: float
    sleeps_by_software_only: bool


def _classes(tables: tuple[StrictTable, ...], faults: Faults) -> tuple[dict[str, DeviceClass], dict[str, _ClassSpec]]:
    classes: dict[str, DeviceClass] = {}
    specs: dict[str, _ClassSpec] = {}
    for table in tables:
        name = table.name("name")
        kind = DeviceKind(table.text("kind", choices=[k.value for k in DeviceKind]) or "asic")
        commissioned = table.flag("commissioned", False)
        spec = _ClassSpec(
            kind=CountedKind(kind.value),
            ceiling_w=table.number("ceiling_w", low=1.0, high=1e6),
            floor_w=table.number("floor_w", low=0.0, high=1e6),
            factors=CountingFactors(
                gpu_limit_ratio=table.number("gpu_limit_factor", 1.07, low=1.0, high=2.0),
                asic_target_ratio=table.number("asic_target_factor", 1.10, low=1.0, high=2.0),
                asic_boot_w=table.number("boot_w", 0.0, low=0.0, high=1e6),
                commissioned=commissioned,
            ),
            host_w=table.number("host_w", 0.0, low=0.0),
            cooling_w=table.number("cooling_w", 0.0, low=0.0),
            cooling_ratio=table.number("cooling_ratio", 0.0, low=0.0, high=2.0),
            losses_ratio=table.number("losses_ratio", 0.0, low=0.0, high=0.5),
            start_peak_w=table.number("start_peak_w", 0.0, low=0.0),
            safe_share_w=table.number("safe_share_w", 0.0, low=0.0),
            settle_s=table.number("settle_s", 10.0, low=0.0, high=3600.0),
            sleeps_by_software_only=table.flag("sleeps_by_software_only", True),
        )
        if kind is DeviceKind.ASIC and spec.factors.asic_boot_w == 0.0:
            table.fault("boot_w", "is missing; an ASIC draws more while it starts, write its boot draw in watts")
        # A ceiling of 0 W stands in for a faulty one, which is told already.
        if 0.0 < spec.ceiling_w < spec.floor_w:
            table.fault("floor_w", f"{spec.floor_w:g} W is above the ceiling of {spec.ceiling_w:g} W")
        workloads = table.table("workloads")
        by_mode = {
            mode: workloads.text(mode.value) for mode in (Mode.MINING, Mode.INFERENCE) if workloads.has(mode.value)
        }
        # Asked for even where absent, so that the key is known.
        for mode in (Mode.MINING, Mode.INFERENCE):
            workloads.text(mode.value, "none")
        workloads.finish()
        device_class = DeviceClass(
            name=name,
            kind=kind,
            ceiling_w=spec.ceiling_w,
            floor_w=spec.floor_w,
            points=_points(table, kind, spec, by_mode),
            unit_size=table.count("unit_size", 1, low=1, high=8),
            workloads=MappingProxyType(by_mode),
            inference_class=table.name("inference_class", "") if kind is DeviceKind.GPU else "",
            mining_class=table.name("mining_class", "") if kind is DeviceKind.GPU else "",
            commissioned=commissioned,
        )
        if device_class.unit_size not in (1, 4, 8):
            table.fault("unit_size", f"{device_class.unit_size} is none of 1, 4, 8")
        table.finish()
        if name in classes:
            table.fault("name", f"class {name!r} is given twice")
        classes[name], specs[name] = device_class, spec
    return classes, specs


def _points(
    table: StrictTable, kind: DeviceKind, spec: _ClassSpec, workloads: Mapping[Mode, str]
) -> tuple[ClassPoint, ...]:
    points: list[ClassPoint] = []
    # A throw-away bank of one device, to count with the ledger's own rule.
    one = BankSpec(
        name="class",
        agent="class",
        feeder="class",
        kind=spec.kind,
        device_count=1,
        device_ceiling_w=max(1.0, spec.ceiling_w),
        device_floor_w=max(0.0, spec.floor_w),
        factors=spec.factors,
    )
    for entry in table.tables("point"):
        name = entry.text("name")
        mode = Mode(entry.text("mode", choices=[m.value for m in Mode]) or "standby")
        power_w = entry.number("power_w", low=0.0, high=1e6)
        by_rule_w = counted_w(one, power_w)
        counted = entry.number("counted_w", by_rule_w, low=0.0, high=1e6)
        if counted < by_rule_w - 1e-6 and not spec.factors.commissioned:
            entry.fault(
                "counted_w",
                f"{counted:g} W is below the {by_rule_w:g} W of the rule; set commissioned = true and the measured factors",
            )
        if 0.0 < spec.ceiling_w < power_w:
            entry.fault("power_w", f"{power_w:g} W is above the ceiling of {spec.ceiling_w:g} W")
        point = ClassPoint(
            name=name,
            mode=mode,
            power_w=power_w,
            counted_w=counted,
            draw_w=entry.number("draw_w", power_w, low=0.0, high=1e6),
            hashrate_ths=entry.optional_number("hashrate_ths", low=0.0),
            throughput_ratio=entry.optional_number("throughput_ratio", low=0.0, high=1.0),
            workload=entry.text("workload", "") if entry.has("workload") else workloads.get(mode, ""),
        )
        entry.finish()
        if mode is Mode.MINING and kind is DeviceKind.ASIC and point.hashrate_ths is None:
            entry.fault("hashrate_ths", "is missing; a mining point says what it gives")
        if mode is Mode.INFERENCE and (kind is DeviceKind.ASIC or point.throughput_ratio is None):
            entry.fault(
                "throughput_ratio", "is missing (or the class is no GPU); an inference point says what it gives"
            )
        if any(other.name == name for other in points):
            entry.fault("name", f"{name!r} is given twice in this class")
        points.append(point)
    if not any(point.mode is Mode.STANDBY for point in points):
        table.fault("point", "no point has mode standby; devices need a place to rest")
    return tuple(points)


def _banks(
    tables: tuple[StrictTable, ...],
    faults: Faults,
    feeders: list[Feeder],
    classes: Mapping[str, DeviceClass],
    specs: Mapping[str, _ClassSpec],
) -> tuple[SiteBank, ...]:
    banks: list[SiteBank] = []
    feeder_names = [feeder.name for feeder in feeders]
    for table in tables:
        agent, bank = table.name("agent"), table.name("bank")
        feeder = table.text("feeder", choices=feeder_names) if feeder_names else table.text("feeder")
        class_name = table.text("class", choices=list(classes)) if classes else table.text("class")
        device_count = table.count("device_count", low=1, high=100_000)
        spec = specs.get(class_name)
        host_w = table.optional_number("host_w", low=0.0)
        cooling_w = table.optional_number("cooling_w", low=0.0)
        safe_share_w = table.optional_number("safe_share_w", low=0.0)
        node, pool = place_in_cluster(table)
        table.finish()
        if node and any(other.node == node for other in banks):
            table.fault("node", f"node {node!r} is given to two banks")
        if any(other.agent == agent and other.bank == bank for other in banks):
            table.fault("bank", f"bank {bank!r} of agent {agent!r} is given twice")
        if spec is None:
            if not classes:
                table.fault("class", f"{class_name!r} is not declared; write it as [[class]]")
            continue
        if spec.ceiling_w <= 0.0:
            continue  # told at the class
        unit_size = classes[class_name].unit_size
        if device_count % unit_size:
            table.fault("device_count", f"{device_count} is no multiple of the class's unit_size {unit_size}")
        built = _built(
            faults,
            table.path,
            partial(
                BankSpec,
                name=f"{agent}/{bank}",
                agent=agent,
                feeder=feeder,
                kind=spec.kind,
                device_count=device_count,
                device_ceiling_w=spec.ceiling_w,
                device_floor_w=spec.floor_w,
                factors=spec.factors,
                host_w=spec.host_w if host_w is None else host_w,
                cooling_w=spec.cooling_w if cooling_w is None else cooling_w,
                cooling_ratio=spec.cooling_ratio,
                losses_ratio=spec.losses_ratio,
                start_peak_w=spec.start_peak_w,
                safe_share_w=spec.safe_share_w if safe_share_w is None else safe_share_w,
                settle_min_s=spec.settle_s,
                sleeps_by_software_only=spec.sleeps_by_software_only,
            ),
        )
        if built is None:
            continue
        if node:
            check_pods_can_run(table, classes[class_name])
        if built.safe_share_w > counting.ceiling_w(built):
            table.fault("safe_share_w", f"{built.safe_share_w:g} W is above the bank's ceiling")
        banks.append(
            SiteBank(
                agent=agent,
                bank=bank,
                feeder=feeder,
                device_class=class_name,
                device_count=device_count,
                spec=built,
                node=node,
                pool=pool,
            )
        )
    check_classes_of_demand(tables, banks, classes)
    return tuple(sorted(banks, key=lambda b: b.name))


def _reservations(tables: tuple[StrictTable, ...]) -> tuple[SiteReservation, ...]:
    reservations: list[SiteReservation] = []
    for table in tables:
        reservation = SiteReservation(
            name=table.name("name"),
            inference_class=table.name("inference_class"),
            gpu_count=table.count("gpu_count", low=1, high=100_000),
            start_unix_s=table.moment("start_time").timestamp(),
            end_unix_s=table.moment("end_time").timestamp(),
            price_usd_per_gpu_h=table.decimal("price_usd_per_gpu_h"),
            uptime_ratio=table.number("uptime_ratio", 0.99, low=0.0, high=1.0),
            credit_steps=table.texts("credit_steps"),
        )
        table.finish()
        if reservation.end_unix_s <= reservation.start_unix_s:
            table.fault("end_time", "is not after start_time")
        if any(other.name == reservation.name for other in reservations):
            table.fault("name", f"reservation {reservation.name!r} is given twice")
        reservations.append(reservation)
    return tuple(reservations)


def _market(table: StrictTable, signals: tuple[StrictTable, ...]) -> MarketPlace:
    pushed: list[PushedSignal] = []
    for entry in signals:
        signal = PushedSignal(
            signal=entry.text("signal"),
            stale_after_s=entry.number("stale_after_s", low=1.0),
            fallback=entry.decimal("fallback", ""),
        )
        entry.finish()
        if signal.signal and not is_signal_name(signal.signal):
            names = ", ".join(f"{known}{{class}}" if known.endswith("/") else known for known in SIGNALS)
            entry.fault("signal", f"{signal.signal!r} is no signal; the signals are {names}")
        if any(other.signal == signal.signal for other in pushed):
            entry.fault("signal", f"{signal.signal!r} is given twice")
        pushed.append(signal)
    speed_ratio = table.number("speed_ratio", 1.0, low=0.001, high=100_000.0)
    # One without the other says nothing; both are asked for, so that both are known.
    has_anchor, has_start = table.has("anchor_time"), table.has("start_time")
    market = MarketPlace(
        feed=table.text("feed", "") if not table.has("feed") else table.text("feed"),
        speed_ratio=speed_ratio,
        anchor_unix_s=table.optional_moment_s("anchor_time") or 0.0,
        start_unix_s=table.optional_moment_s("start_time") or 0.0,
        signals=tuple(pushed),
    )
    if has_anchor != has_start or (speed_ratio != 1.0 and not has_anchor):
        table.fault("anchor_time", "anchor_time and start_time belong together, and speed_ratio needs them")
    table.finish()
    return market


def _policy(table: StrictTable, faults: Faults) -> Policy | None:
    values: dict[str, Any] = {}
    for entry in dataclasses.fields(Policy):
        if entry.name in ("costs", "times"):
            continue
        default = entry.default
        if isinstance(default, bool):
            values[entry.name] = table.flag(entry.name, default)
        elif isinstance(default, int):
            values[entry.name] = table.count(entry.name, default)
        elif isinstance(default, float):
            values[entry.name] = table.number(entry.name, default)
        else:
            values[entry.name] = table.text(entry.name, str(default))
    cost_table = table.table("costs")
    costs = {f.name: cost_table.number(f.name, float(str(f.default)), low=0.0) for f in dataclasses.fields(FlipCosts)}
    cost_table.finish()
    values["costs"] = _built(faults, "policy.costs", partial(FlipCosts, **costs))
    time_table = table.table("times")
    times = {f.name: time_table.number(f.name, float(str(f.default)), low=0.001) for f in dataclasses.fields(FlipTimes)}
    time_table.finish()
    values["times"] = _built(faults, "policy.times", partial(FlipTimes, **times))
    table.finish()
    if values["costs"] is None or values["times"] is None:
        return None
    return _built(faults, "policy", partial(Policy, **values))
