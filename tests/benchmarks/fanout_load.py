"""1,000 agents of the fan-out figure, in a process of their own: each its own certificate, connection and control stream.

An agent here answers each desired state with the effective state that echoes its epoch, generation and hash. It writes nothing to a disk
and no device: what the figure measures is the controller and the link.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import grpc.aio

from swingbus.bundle import load_bundle
from swingbus.link.v1alpha import agent_link_service_pb2 as pb2
from swingbus.link.v1alpha import link_pb2
from swingbus.link.v1alpha.agent_link_service_pb2_grpc import AgentLinkServiceStub
from swingbus.rpc.channel import ChannelSettings, open_channel

AT_ONCE = 32  # handshakes on the way at a time


async def serve(agent: str, bundles: Path, endpoint: str, gate: asyncio.Semaphore, counts: dict[str, int]) -> None:
    """Be one agent until the server goes."""
    channel = open_channel(
        load_bundle(bundles / f"{agent}.toml"), endpoint=endpoint, settings=ChannelSettings(connect_timeout_s=30.0)
    )
    try:
        async with gate:
            async with asyncio.timeout(60):
                await channel.channel_ready()
            call: Any = AgentLinkServiceStub(channel).StreamControl()
            await call.write(
                pb2.StreamControlRequest(
                    hello=pb2.ControlHello(
                        agent=agent, instance_uid=f"{agent}-1", effective=_effective(agent, 1), ticket="t0"
                    )
                )
            )
            await call.read()  # the fence
        sequence = 1
        while True:
            message = await call.read()
            if message is grpc.aio.EOF:
                return
            if message.WhichOneof("message") != "desired":
                continue
            sequence += 1
            counts["desired"] += 1
            await call.write(pb2.StreamControlRequest(effective=_effective(agent, sequence, message.desired)))
    except grpc.aio.AioRpcError:
        return  # the server has ended: the parent reads why from its own side
    finally:
        await channel.close()


def _effective(agent: str, sequence: int, desired: link_pb2.DesiredState | None = None) -> link_pb2.EffectiveState:
    state = link_pb2.EffectiveState(
        boottime_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        boot_id="bench-boot",
        instance_uid=f"{agent}-1",
        sequence=sequence,
    )
    if desired is None:
        return state
    state.epoch = desired.epoch
    state.generation = desired.generation
    state.hash = desired.hash
    state.marker = desired.marker
    state.fence_instance = desired.controller_instance
    for bank in desired.banks:
        state.banks.append(
            link_pb2.BankEffective(
                bank=bank.bank,
                epoch=desired.epoch,
                generation=bank.generation,
                grant_w=bank.grant_w,
                allowed_w=bank.grant_w,
                has_in_flight=True,
                observed=bank.points,
                counted_power_w=bank.grant_w,
                safe_shares=bank.safe_shares,
                reported_w=bank.grant_w,
            )
        )
    return state


async def main(arguments: dict[str, Any]) -> None:
    """Run all agents until the server goes."""
    gate = asyncio.Semaphore(AT_ONCE)
    counts = {"desired": 0}
    async with asyncio.TaskGroup() as tasks:
        for agent in arguments["agents"]:
            tasks.create_task(serve(agent, Path(arguments["bundles"]), arguments["endpoint"], gate, counts))
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
    print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
