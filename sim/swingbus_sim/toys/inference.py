"""A toy inference server: HTTP on the GPUs that its pod was given.

    toy-inference                flags, or the variables TOY_PORT, TOY_LOAD_S, TOY_LEVEL, TOY_SLOTS, TOY_TOKENS_PER_S, TOY_GRACE_S

`/healthz` answers from the first moment, `/readyz` once the weights are loaded; `/generate?tokens=N` takes its time and a slot, and is
refused (429) when there is none; `POST /load?level=R` keeps the GPUs that busy without any request. SIGTERM: no longer ready, nothing new
is taken, what runs is finished within `--grace-s`, then it ends with 0 and its GPUs are free. Give the pod a longer grace period.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence

from swingbus.faults import SwingbusError
from swingbus_sim.nvml.processes import Seat
from swingbus_sim.toys.gpus import parse_ratio, parse_seconds, take_given
from swingbus_sim.toys.serving import Answer, Serving, format_answer

_HEAD_BYTES_MAX, _BODY_BYTES_MAX = 8192, 1 << 20
_REQUEST_TIMEOUT_S = 5.0
_TICK_S = 0.2


class Server:
    """One server on one seat; connections beyond twice the slots and some probes are closed unread."""

    def __init__(self, serving: Serving, seat: Seat) -> None:
        self._serving = serving
        self._seat = seat
        self._open = 0
        self._open_max = 2 * serving.slots + 16

    async def run(self, host: str, port: int, *, grace_s: float, stop: asyncio.Event) -> int:
        """Serve until `stop`, finish what runs, and return how many generations were cut off."""
        server = await asyncio.start_server(self._connected, host, port, limit=_HEAD_BYTES_MAX)
        address = server.sockets[0].getsockname()
        print(f"toy-inference: serves on {address[0]}:{address[1]}", flush=True)
        while not stop.is_set():
            self._tell_load()
            try:
                await asyncio.wait_for(stop.wait(), _TICK_S)
            except TimeoutError:
                continue
        self._serving.is_draining = True
        # It listens on: who still comes is told to go elsewhere, and probes see that it is alive.
        ends_s = time.monotonic() + grace_s
        while self._serving.running and time.monotonic() < ends_s:
            self._tell_load()
            await asyncio.sleep(_TICK_S / 4)
        await asyncio.sleep(0)  # the last answer leaves before its connection is closed
        server.close()
        return self._serving.running

    def _tell_load(self) -> None:
        self._seat.set_load(self._serving.load_ratio(time.monotonic()))

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open >= self._open_max:
            writer.close()
            return
        self._open += 1
        try:
            await self._answer(reader, writer)
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass  # the caller went away or sent no HTTP: its loss
        finally:
            self._open -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_REQUEST_TIMEOUT_S):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            await reader.readexactly(_body_bytes(head))
        words = head.split("\r\n", 1)[0].split()
        if len(words) != 3:
            answer = Answer(400, {"error": "no HTTP request"})
        else:
            answer = self._serving.answer(words[0], words[1], time.monotonic())
        if answer.work_s:
            self._tell_load()
            try:
                await asyncio.sleep(answer.work_s)
            finally:
                self._serving.finish()
        writer.write(format_answer(answer))
        async with asyncio.timeout(_REQUEST_TIMEOUT_S):
            await writer.drain()


def _body_bytes(head: str) -> int:
    """Return how much of a body follows; it is read so that the caller sees an answer, not a reset."""
    for line in head.split("\r\n")[1:]:
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-length" and value.strip().isdigit():
            return min(int(value), _BODY_BYTES_MAX)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code."""
    options = _parser().parse_args(arguments)
    serving = Serving(
        ready_at_s=time.monotonic() + options.load_s,
        level=options.level,
        slots=options.slots,
        tokens_per_s=options.tokens_per_s,
    )
    try:
        seat, uuids = take_given("inference", load_ratio=serving.load_ratio(time.monotonic()))
    except SwingbusError as error:
        print(f"toy-inference: {error}", file=sys.stderr)
        return 1
    print(f"toy-inference: loads on {','.join(uuids)} for {options.load_s:g} s", flush=True)
    try:
        cut = asyncio.run(_serve(Server(serving, seat), options))
    except OSError as error:
        print(f"toy-inference: {options.host}:{options.port} can't be served: {error}; choose another", file=sys.stderr)
        return 1
    finally:
        seat.leave()
    print(f"toy-inference: left; served {serving.served}, refused {serving.refused}, cut off {cut}", flush=True)
    return 0


async def _serve(server: Server, options: argparse.Namespace) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return await server.run(options.host, options.port, grace_s=options.grace_s, stop=stop)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="toy-inference", description="Serve HTTP on this pod's simulated GPUs.")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (default: all of the pod's)")
    for flag, parse, default, what in (
        ("port", _parse_port, "8000", "port; 0 takes any free one"),
        ("load-s", parse_seconds, "5", "seconds that loading the weights takes"),
        ("level", parse_ratio, "0", "how busy the GPUs are kept whatever is asked, 0 to 1"),
        ("slots", _parse_slots, "8", "generations at the same time"),
        ("tokens-per-s", _parse_rate, "64", "of one generation"),
        ("grace-s", parse_seconds, "20", "how long running generations may take after SIGTERM"),
    ):
        variable = f"TOY_{flag.upper().replace('-', '_')}"
        parser.add_argument(
            f"--{flag}",
            type=parse,
            default=os.environ.get(variable, default),
            help=f"{what} (default: ${variable}, else {default})",
        )
    return parser


def _parse_port(text: str) -> int:
    return _whole(text, 0, 65_535)


def _parse_slots(text: str) -> int:
    return _whole(text, 1, 1024)


def _parse_rate(text: str) -> float:
    rate = float(text)
    if not 1.0 <= rate <= 100_000.0:
        raise ValueError(f"{text} is not from 1 to 100000")
    return rate


def _whole(text: str, least: int, most: int) -> int:
    value = int(text)
    if not least <= value <= most:
        raise ValueError(f"{text} is not from {least} to {most}")
    return value


if __name__ == "__main__":
    sys.exit(main())
