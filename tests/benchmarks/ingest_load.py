"""The load generator of the ingest figure, in a process of its own: one mutually authenticated stream per agent, credit respected.

It samples the server's CPU time itself, at the edges of each window, beside the number of batches acknowledged by then, and prints one
JSON object: windows, and for each agent the last number that was acknowledged.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from swingbus.bundle import load_bundle
from swingbus.link.v1alpha import agent_link_service_pb2 as service_pb2
from swingbus.rpc.channel import open_channel
from swingbus_agent.domain.readings import Kind
from tests.benchmarks.figure import check
from tests.benchmarks.procs import cpu_s
from tests.benchmarks.snapshots import SnapshotMaker, real_columns, trial_columns

METHOD = "/swingbus.link.v1alpha.AgentLinkService/StreamTelemetry"
DRAIN_S = 60.0


@dataclass(slots=True)
class Stream:
    """One agent's telemetry stream."""

    agent: str
    maker: SnapshotMaker
    credit: int = 0
    sent: int = 0
    acked: int = 0
    greatest_in_flight: int = 0
    ack_count: int = 0
    room: asyncio.Event = field(default_factory=asyncio.Event)
    is_ending: bool = False
    drained: asyncio.Event = field(default_factory=asyncio.Event)


async def send(stream: Stream, call: Any, stopping: asyncio.Event) -> None:
    """Send as credit allows until told to stop."""
    while not stopping.is_set():
        while stream.sent - stream.acked >= stream.credit:
            stream.room.clear()
            await stream.room.wait()
            if stopping.is_set():
                return
        stream.sent += 1
        stream.greatest_in_flight = max(stream.greatest_in_flight, stream.sent - stream.acked)
        await call.write(stream.maker.message(stream.sent))


async def receive(stream: Stream, call: Any) -> None:
    """Take acknowledgements until cancelled."""
    while True:
        message = service_pb2.StreamTelemetryResponse.FromString(await call.read())
        check(not message.ack.rejected, f"{stream.agent}: a batch was refused: {message.ack.rejected}")
        check(not message.ack.acked_ranges, f"{stream.agent}: a gap in what is stored: {message.ack.acked_ranges}")
        check(stream.acked <= message.ack.acked_sequence <= stream.sent, f"{stream.agent}: an odd acknowledgement")
        stream.acked = message.ack.acked_sequence
        stream.ack_count += 1
        stream.room.set()
        if stream.is_ending and stream.acked == stream.sent:
            stream.drained.set()


async def open_stream(stream: Stream, channel: grpc.aio.Channel, compression: grpc.Compression | None) -> Any:
    """Open a stream and take its welcome."""
    call: Any = channel.stream_stream(METHOD)(compression=compression)
    await call.write(stream.maker.hello(stream.agent))
    welcome = service_pb2.StreamTelemetryResponse.FromString(await call.read()).welcome
    check(welcome.acked_sequence == 0, f"{stream.agent}: a new spool has stored batches")
    stream.credit = welcome.credit
    return call


async def load(arguments: dict[str, Any]) -> dict[str, Any]:
    """Run the load and return what was seen."""
    columns = real_columns if arguments["real_columns"] else trial_columns
    streams = [
        Stream(
            agent=agent,
            maker=SnapshotMaker(gpus=columns(Kind.GPU), asics=columns(Kind.ASIC), meter=f"m-{agent}", seed=seed),
        )
        for seed, agent in enumerate(arguments["agents"])
    ]
    channels = [
        open_channel(load_bundle(Path(arguments["bundles"]) / f"{s.agent}.toml"), endpoint=arguments["endpoint"])
        for s in streams
    ]
    compression = grpc.Compression.Gzip if arguments["gzip"] else None
    calls = [await open_stream(stream, channel, compression) for stream, channel in zip(streams, channels, strict=True)]
    gc.collect()
    gc.freeze()
    stopping = asyncio.Event()
    windows: list[dict[str, float]] = []
    server = int(arguments["server"])
    async with asyncio.TaskGroup() as tasks:
        senders, receivers = [], []
        for stream, call in zip(streams, calls, strict=True):
            senders.append(tasks.create_task(send(stream, call, stopping)))
            receivers.append(tasks.create_task(receive(stream, call)))
        await asyncio.sleep(arguments["warm_up_s"])
        for _ in range(arguments["windows"]):
            before = (time.monotonic(), cpu_s(server), sum(s.acked for s in streams))
            await asyncio.sleep(arguments["window_s"])
            after = (time.monotonic(), cpu_s(server), sum(s.acked for s in streams))
            wall_s, cpu, batches = (b - a for a, b in zip(before, after, strict=True))
            windows.append({"wall_s": wall_s, "cpu_s": cpu, "batches": batches})
        stopping.set()
        for stream in streams:
            stream.room.set()
        async with asyncio.timeout(DRAIN_S):
            await asyncio.wait(senders)
            for stream in streams:
                stream.is_ending = True
                if stream.acked == stream.sent:
                    stream.drained.set()
            for stream in streams:
                await stream.drained.wait()
        for receiver in receivers:
            receiver.cancel()
        for call in calls:
            call.cancel()
    for channel in channels:
        await channel.close()
    return {
        "windows": windows,
        "streams": {
            s.agent: {"sent": s.sent, "acked": s.acked, "in_flight_max": s.greatest_in_flight, "acks": s.ack_count}
            for s in streams
        },
        "credit": streams[0].credit,
        "message_bytes": len(streams[0].maker.message(1000)),
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(load(json.loads(sys.argv[1])))))
