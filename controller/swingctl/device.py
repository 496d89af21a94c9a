"""`swingctl device`: single GPUs and ASICs with every field that was read, or why it was not."""

from __future__ import annotations

import argparse

from swingbus.fleet.v1alpha import fleet_service_pb2 as pb
from swingbus.fleet.v1alpha.fleet_pb2 import Device, FieldReading
from swingctl.arguments import Nouns, add_noun, add_site, add_verb, agent_name, bank_name, device_name
from swingctl.render import ABSENT, Column, age, enum_word, hashrate, optional, power, short_name
from swingctl.session import Session

COLUMNS = (
    Column(title="DEVICE", shortens=True),
    Column(title="MODEL", shortens=True, droppable=True),
    Column(title="CONDITION"),
    Column(title="MODE"),
    Column(title="POWER", right=True),
    Column(title="HASHRATE", right=True, droppable=True),
    Column(title="TEMP", right=True, droppable=True),
    Column(title="READ", right=True, droppable=True),
    Column(title="NAMED FOR", wraps=True),
)
_FIELDS = (Column(title="FIELD", shortens=True), Column(title="VALUE", right=True), Column(title="STATUS", wraps=True))


def mount(nouns: Nouns) -> None:
    """Add the noun."""
    verbs = add_noun(nouns, "device", "single GPUs and ASICs: every field that was read")
    listing = add_verb(
        verbs,
        "list",
        _list,
        summary="list devices",
        examples="device list --bank edge-1/s19j\ndevice list --agent gpu-3 --output json",
    )
    where = listing.add_mutually_exclusive_group()
    where.add_argument("--bank", metavar="AGENT/BANK", help="only of this bank")
    where.add_argument("--agent", metavar="AGENT", help="only behind this agent")
    add_site(listing)
    show = add_verb(
        verbs,
        "show",
        _show,
        summary="show one device with every telemetry field",
        examples="device show edge-1/s19j/m07\ndevice show gpu-3/h100/GPU-5f3a --output json",
    )
    show.add_argument("device", help="AGENT/BANK/DEVICE or resource name")
    add_site(show)


async def _list(session: Session, args: argparse.Namespace) -> int:
    if args.bank:
        parent = await bank_name(session, args.bank, args.site)
    elif args.agent:
        parent = await agent_name(session, args.agent, args.site)
    else:
        parent = await session.site(args.site)
    answer = await session.pages(session.fleet.ListDevices, pb.ListDevicesRequest(parent=parent))
    session.show_list(
        answer,
        COLUMNS,
        [_row(session, device) for device in answer.devices],
        "no devices: no agent has told of any yet",
    )
    return 0


def _row(session: Session, device: Device) -> list[str]:
    fields = {reading.field: reading for reading in device.fields}
    temperature = next((_value(r) for name, r in fields.items() if name.endswith("_c")), None)
    return [
        short_name(device.name, 3),
        device.spec.model,
        enum_word(device, "condition"),
        enum_word(device, "mode"),
        power(_value(fields.get("power_w"))),
        hashrate(_value(fields.get("hashrate_ths"))),
        ABSENT if temperature is None else f"{temperature:.0f} °C",
        age(device, "read_time", session.clock.now()),
        ", ".join(device.accusations),
    ]


def _value(reading: FieldReading | None) -> float | None:
    if reading is None:
        return None
    value: float | None = optional(reading, "value")
    return value


async def _show(session: Session, args: argparse.Namespace) -> int:
    name = await device_name(session, args.device, args.site)
    answer = await session.call(session.fleet.GetDevice, pb.GetDeviceRequest(name=name))
    device, spec = answer.device, answer.device.spec
    session.show_facts(
        answer,
        [
            ("name", device.name),
            ("model", spec.model),
            ("firmware", spec.firmware),
            ("serial number", spec.serial_number),
            ("address", spec.address),
            ("unit", str(spec.unit)),
            ("condition", enum_word(device, "condition")),
            ("mode", enum_word(device, "mode")),
            ("read", age(device, "read_time", session.clock.now())),
            ("named for", ", ".join(device.accusations)),
        ],
    )
    if not session.as_json:
        session.line()
        session.table(_FIELDS, [[r.field, _number(_value(r)), r.status] for r in device.fields])
    return 0


def _number(value: float | None) -> str:
    if value is None:
        return ABSENT
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:.6g}"
