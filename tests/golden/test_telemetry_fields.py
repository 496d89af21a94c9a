"""Every telemetry field on its whole way: read by the agent, stored, shown by `device show`, or marked unsupported."""

from __future__ import annotations

from pathlib import Path

import pytest

from swingbus.fleet.v1alpha import fleet_service_pb2 as rpc
from swingbus.fleet.v1alpha import fleet_service_pb2_grpc
from swingbus.link.v1alpha import agent_link_service_pb2 as link_rpc
from swingbus.link.v1alpha import link_pb2
from swingbus.rpc.roles import Role
from swingbus_agent.domain.fields import HOST_FIELDS, counter_fields, value_fields
from swingbus_agent.domain.readings import Kind
from tests.fakes.controllers import TestSite
from tests.fakes.link_agent import NAN, LinkAgent, make_batch

KINDS = {Kind.GPU: link_pb2.DEVICE_KIND_GPU, Kind.ASIC: link_pb2.DEVICE_KIND_ASIC}


@pytest.mark.parametrize("kind", list(KINDS), ids=lambda kind: str(kind.value))
async def test_every_field_of_the_agents_list_is_stored_and_shown(tmp_path: Path, kind: Kind) -> None:
    """Row 0 says every field, row 1 none of them now, row 2 can say none at all: each is told apart, bit by bit."""
    values, counters = value_fields(kind), counter_fields(kind)
    names = (*values, *counters)
    sent = {name: float(index + 1) for index, name in enumerate(names)}
    inventory = link_pb2.Inventory(
        version="1",
        hostname="h",
        host_fields=[field.name for field in HOST_FIELDS],
        banks=[
            link_pb2.BankSpec(
                bank="b",
                kind=KINDS[kind],
                device_class="c",
                unit_size=1,
                value_fields=values,
                counter_fields=counters,
                devices=[
                    link_pb2.DeviceSpec(device="says"),
                    link_pb2.DeviceSpec(device="silent"),
                    link_pb2.DeviceSpec(device="cannot", unsupported_fields=names),
                ],
            )
        ],
    )
    batch = make_batch(1)
    batch.ClearField("meters")
    batch.ClearField("host_values")
    batch.host_values.extend(float(index) for index, _ in enumerate(HOST_FIELDS))
    bank = batch.banks[0]
    bank.ClearField("values")
    bank.ClearField("counters")
    bank.values.extend([sent[name] for name in values] + [NAN] * (2 * len(values)))
    bank.counters.extend([sent[name] for name in counters] + [NAN] * (2 * len(counters)))

    site = TestSite(tmp_path)
    async with (
        site.serve() as controller,
        site.channel("edge-1", Role.AGENT) as link,
        site.channel("vera", Role.VIEWER) as channel,
    ):
        agent = LinkAgent(link, "edge-1")
        await agent.connect(inventory)
        await agent.send(batch)
        await agent.wait_told(1)
        assert not agent.rejected

        stored = next(iter(controller.telemetry.last_batches()))
        assert stored.payload == link_rpc.StreamTelemetryRequest(batch=batch).SerializeToString()

        stub = fleet_service_pb2_grpc.FleetServiceStub(channel)
        parent = "sites/north/agents/edge-1"
        shown = {
            device: (
                await stub.GetDevice(rpc.GetDeviceRequest(name=f"{parent}/banks/b/devices/{device}"), timeout=5)
            ).device.fields
            for device in ("says", "silent", "cannot")
        }
        assert {f.field: f.value for f in shown["says"] if not f.status} == sent
        assert {f.field: (f.HasField("value"), f.status) for f in shown["silent"]} == dict.fromkeys(
            names, (False, "unavailable")
        )
        assert {f.field: (f.HasField("value"), f.status) for f in shown["cannot"]} == dict.fromkeys(
            names, (False, "unsupported")
        )
        view = (await stub.GetAgent(rpc.GetAgentRequest(name=parent), timeout=5)).agent
        assert dict(view.host_values) == {field.name: float(index) for index, field in enumerate(HOST_FIELDS)}
