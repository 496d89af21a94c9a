"""A node's agent on the wire: its inventory, its samples, its reports, and the controller's orders as it takes them.

Decides nothing. Invariants: a reading that is not there is absent or NaN, never 0; an order whose hash does not fit is refused.
"""

from __future__ import annotations

import hashlib
import math

from google.protobuf.duration_pb2 import Duration

from swingbus.faults import InvalidInput
from swingbus.link.v1alpha import agent_link_service_pb2 as service_pb2
from swingbus.link.v1alpha import link_pb2
from swingbus_sim.kwok_site.agent import BankOrder, Counting, NodeAgent, UnitOrder
from swingbus_sim.kwok_site.meter import MeterReading
from swingbus_sim.kwok_site.plan import BANK, MINE_W, REST_W, SERVE_W, SitePlan

VALUE_FIELDS = ("power_w", "power_limit_enforced_w", "process_count")
_WIRE_MODES = {
    "": link_pb2.MODE_UNSPECIFIED,
    "mining": link_pb2.MODE_MINING,
    "inference": link_pb2.MODE_INFERENCE,
    "standby": link_pb2.MODE_STANDBY,
}
_MODES = {number: name for name, number in _WIRE_MODES.items() if name} | {link_pb2.MODE_OFF: "standby"}
_POINTS = (("mine", "mining", MINE_W), ("serve", "inference", SERVE_W), ("standby", "standby", REST_W))
_NS = 1e9


def duration(span_s: float) -> Duration:
    """Return seconds as a wire duration."""
    whole = math.floor(span_s)
    return Duration(seconds=whole, nanos=int((span_s - whole) * _NS))


def inventory(agent: NodeAgent, plan: SitePlan, meters: tuple[tuple[str, str], ...]) -> link_pb2.Inventory:
    """Return what a node's agent has.

    Args:
        meters: those that it reads, each with its feeder.
    """
    return link_pb2.Inventory(
        version="simulated",
        hostname=agent.name,
        banks=[
            link_pb2.BankSpec(
                bank=BANK,
                kind=link_pb2.DEVICE_KIND_GPU,
                device_class=plan.gpu_class,
                unit_size=1,
                devices=[
                    link_pb2.DeviceSpec(device=f"GPU-{agent.name}-{unit}", model=plan.gpu.model, unit=unit)
                    for unit in range(plan.gpus_per_node)
                ],
                value_fields=VALUE_FIELDS,
                points=[
                    link_pb2.OperatingPointSpec(
                        point=name,
                        mode=_WIRE_MODES[mode],
                        power_w=power_w,
                        throughput_ratio=None if mode == "standby" else 1.0,
                    )
                    for name, mode, power_w in _POINTS
                ],
                workloads=[plan.mining_workload, plan.inference_workload],
                meter=f"m-{plan.feeder_of(agent.name)}",
            )
        ],
        meters=[
            link_pb2.MeterSpec(
                meter=meter,
                feeder=feeder,
                window=duration(1.0),
                lag=duration(1.0),
                error_ratio=0.003,
                quantum_w=1.0,
            )
            for meter, feeder in meters
        ],
        writes_enabled=True,
    )


def batch(
    agent: NodeAgent, sequence: int, *, unix_s: float, meters: tuple[MeterReading | None, ...]
) -> link_pb2.TelemetryBatch:
    """Return one round: every GPU as it was read, and the meters that this agent reads."""
    at_ns = int(agent.read_s * _NS)
    count = len(agent.seen)
    values: list[float] = []
    for seen in agent.seen:
        values += (seen.power_w, seen.enforced_w, float(seen.process_count))
    message = link_pb2.TelemetryBatch(
        sequence=sequence,
        sample_boottime_ns=at_ns,
        boot_id=agent.boot_id,
        banks=[
            link_pb2.BankSamples(
                bank_index=0,
                values=values,
                conditions=[link_pb2.DEVICE_CONDITION_OK] * count,
                modes=[_WIRE_MODES[agent.mode(unit)] for unit in range(count)],
                read_boottime_ns=[at_ns] * count,
            )
        ],
        meters=[
            link_pb2.MeterSample(
                meter_index=index,
                window_start_boottime_ns=int(reading.start_s * _NS),
                window_end_boottime_ns=int(reading.end_s * _NS),
                marker=agent.holding.marker_before(reading.start_s - reading.lag_s),
                marker_epoch=agent.holding.epoch,
                power_w=reading.power_w,
                energy_j=reading.energy_j,
            )
            for index, reading in enumerate(meters)
            if reading is not None
        ],
    )
    message.sample_time.FromNanoseconds(int(unix_s * _NS))
    return message


def effective(agent: NodeAgent, sequence: int, now_s: float) -> link_pb2.EffectiveState:
    """Return the agent's report; without banks before its first reading."""
    holding = agent.holding
    is_current = agent.order_number[0] == holding.epoch
    return link_pb2.EffectiveState(
        epoch=holding.epoch,
        generation=agent.order_number[1] if is_current else 0,
        hash=agent.order_hash if is_current else "",
        banks=[_bank(agent, now_s)] if agent.seen else [],
        marker=holding.marker,
        boottime_ns=int(now_s * _NS),
        boot_id=agent.boot_id,
        refusal=holding.refusal,
        instance_uid=holding.instance_uid,
        sequence=sequence,
        fence_instance=holding.fence_instance,
    )


def _bank(agent: NodeAgent, now_s: float) -> link_pb2.BankEffective:
    grant, is_lapsed = agent.holding.grant, agent.holding.is_lapsed(now_s)
    known_w, allowed_w = agent.known_w(), agent.allowed_w(now_s)
    units = range(len(agent.seen))
    message = link_pb2.BankEffective(
        bank=BANK,
        epoch=0 if grant is None else grant.epoch,
        generation=0 if grant is None else grant.generation,
        grant_w=0.0 if grant is None else grant.grant_w,
        allowed_w=allowed_w if math.isfinite(allowed_w) else 0.0,
        applied_generation=0 if agent.applied is None else agent.applied.generation,
        applied_boottime_ns=0 if agent.applied is None else int(agent.applied.at_s * _NS),
        has_in_flight=agent.order is not None and agent.applied is None,
        held_count=sum(_is_at(agent, unit) for unit in units),
        observed=_observed(agent),
        counted_power_w=agent.counted_w(),
        ready_workloads=[
            f"{unit}:{agent.workloads[agent.seen[unit].holder_tenant]}" for unit in units if agent.is_ready(unit)
        ],
        released_units=[unit for unit in units if agent.is_released(unit)],
        reported_w=(
            grant.grant_w
            if grant is not None and not is_lapsed
            else None
            if known_w is None or not math.isfinite(allowed_w)
            else allowed_w
        ),
        is_lapsed=is_lapsed,
        is_lost=agent.holding.is_lost,
        unit_holdings=[_unit_holding(agent, unit) for unit in units],
    )
    if agent.order is not None:
        message.safe_shares.append(link_pb2.SafeShare(power_w=agent.order.safe_share_w))
        message.locked_out = agent.order.is_locked_out
    return message


def _unit_holding(agent: NodeAgent, unit: int) -> link_pb2.UnitHolding:
    seen = agent.seen[unit]
    if seen.holder:
        reason = f"held by {seen.holder}"
    else:
        reason = f"no pod holds it; processes on its GPU: {seen.process_count}" if seen.process_count else ""
    return link_pb2.UnitHolding(
        unit=unit,
        holders=[seen.holder] if seen.holder else [],
        workload=agent.workloads.get(seen.holder_tenant, ""),
        has_process=bool(seen.process_count or seen.holder),
        reason=reason,
    )


def _is_at(agent: NodeAgent, unit: int) -> bool:
    if agent.order is None:
        return False
    wanted, seen = agent.order.units[unit], agent.seen[unit]
    holds = agent.workloads.get(seen.holder_tenant, "") if seen.holder else ("?" if seen.process_count else "")
    return abs(seen.enforced_w - wanted.power_w) <= 1.0 and holds == wanted.workload


def _observed(agent: NodeAgent) -> list[link_pb2.PointCount]:
    """Return which units are seen where, by the bank's own points; one that is between two is told as it is."""
    places: dict[tuple[str, str, float, str], list[int]] = {}
    for unit, seen in enumerate(agent.seen):
        mode = agent.mode(unit)
        wanted = agent.order.units[unit] if agent.order is not None and _is_at(agent, unit) else None
        if wanted is not None:
            key = (wanted.point, wanted.mode, wanted.power_w, wanted.workload)
        elif not mode:
            key = ("", "", 0.0, "")
        else:
            point = next((n for n, m, w in _POINTS if m == mode and abs(w - seen.enforced_w) <= 1.0), "")
            key = (point, mode, seen.enforced_w, agent.workloads.get(mode, ""))
        places.setdefault(key, []).append(unit)
    return [
        link_pb2.PointCount(
            point=point, mode=_WIRE_MODES[mode], power_w=power_w, count=len(units), workload=workload, units=units
        )
        for (point, mode, power_w, workload), units in places.items()
    ]


def counting_of(adopt: service_pb2.Adopt) -> Counting | None:
    """Return how the controller counts the bank; None where it does not manage it."""
    for each in adopt.counting:
        if each.bank == BANK:
            return Counting(
                gpu_limit_ratio=each.gpu_limit_ratio,
                device_ceiling_w=each.device_ceiling_w,
                cooling_ratio=each.cooling_ratio,
                losses_ratio=each.losses_ratio,
                fixed_w=each.fixed_w,
            )
    return None


def order_of(desired: link_pb2.DesiredState, unit_count: int) -> BankOrder | None:
    """Return the bank's order, None where it has none. Raises InvalidInput where it cannot be meant."""
    hashed = hashlib.sha256(
        link_pb2.DesiredState(banks=desired.banks).SerializeToString(deterministic=True)
    ).hexdigest()
    if hashed != desired.hash:
        raise InvalidInput("the order's hash does not fit its banks", reason="HASH_MISMATCH")
    bank = next((each for each in desired.banks if each.bank == BANK), None)
    if bank is None:
        return None
    units: dict[int, UnitOrder] = {}
    for point in bank.points:
        wanted = UnitOrder(
            point=point.point,
            mode=_MODES.get(point.mode, "standby"),
            power_w=point.power_w,
            workload=point.workload,
        )
        # Without names the agent chooses: any that are left.
        free = [unit for unit in range(unit_count) if unit not in units]
        units.update(dict.fromkeys(point.units or free[: point.count], wanted))
    if set(units) != set(range(unit_count)):
        raise InvalidInput(f"the order places units {sorted(units)} of {unit_count}", reason="BAD_ORDER")
    return BankOrder(
        generation=bank.generation,
        grant_w=bank.grant_w,
        safe_share_w=next((share.power_w for share in bank.safe_shares if not share.HasField("start_time")), 0.0),
        units=tuple(units[unit] for unit in range(unit_count)),
        ticket=desired.ticket,
        ttl_s=desired.ttl.seconds + desired.ttl.nanos / _NS,
        for_instance=bank.for_instance,
        is_locked_out=bank.locked_out,
    )
