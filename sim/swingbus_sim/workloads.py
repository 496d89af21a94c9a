"""Toy workloads for simulated GPUs: real processes, so that GPUs draw power only while somebody really works.

    python -m swingbus_sim.workloads mining    --shelf PATH --gpus 0,1,2,3
    python -m swingbus_sim.workloads inference --shelf PATH --gpus 0,1,2,3 --port 9001 --load-s 5
    python -m swingbus_sim.workloads mining    --gpus visible        # in a pod: what the device plugin gave it

Decides what the process says of itself in the shelf's process table and over HTTP. Knows nothing of power, modes or who
started it. Inference loads its weights for `--load-s` seconds first: until then `/health/ready` answers 503;
`POST /load?ratio=0.4` sets how busy it is. Both leave on SIGTERM, after `--drain-s`. Invariant: a process holds its
seat exactly while it lives.
"""

from __future__ import annotations

import argparse
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from swingbus.faults import NotFound, SwingbusError
from swingbus_sim.nvml.build import SHELF_VARIABLE
from swingbus_sim.nvml.looking import look_at_shelf
from swingbus_sim.nvml.processes import Seat
from swingbus_sim.nvml.shelf import Shelf

MEMORY_BYTES = {"mining": 6 << 30, "inference": 68 << 30}
_LOADING_RATIO = 0.15  # copying weights keeps a GPU a little busy
_REQUEST_SECONDS = 2.0


@dataclass(slots=True, kw_only=True)
class Inference:
    """What the toy server answers with: when it is ready and how busy it is."""

    ready_at_s: float
    fails_ready: bool
    load_ratio: float

    def is_ready(self, now_s: float) -> bool:
        """Tell whether the weights are loaded."""
        return not self.fails_ready and now_s >= self.ready_at_s

    def seat_load(self, now_s: float) -> float:
        """Return how busy the GPUs are now, 0 to 1."""
        return self.load_ratio if self.is_ready(now_s) else _LOADING_RATIO

    def answer(self, method: str, target: str, now_s: float) -> tuple[int, str]:
        """Answer one HTTP request with a status and a line of text."""
        url = urlsplit(target)
        match method, url.path:
            case "GET", "/health/live":
                return 200, "alive"
            case "GET", "/health/ready":
                if self.fails_ready:
                    return 503, "the weights do not fit"
                return (
                    (200, "ready") if self.is_ready(now_s) else (503, f"loading, {self.ready_at_s - now_s:.1f} s left")
                )
            case "GET", "/load":
                return 200, f"{self.load_ratio:.3f}"
            case "POST", "/load":
                return self._set_load(url.query)
            case _:
                return 404, f"no {method} {url.path}: there are /health/live, /health/ready and /load"

    def _set_load(self, query: str) -> tuple[int, str]:
        words = parse_qs(query).get("ratio", [])
        try:
            ratio = float(words[0])
        except (IndexError, ValueError):
            return 400, "say POST /load?ratio=R with R from 0 to 1"
        if not 0.0 <= ratio <= 1.0:
            return 400, f"ratio {ratio} is not from 0 to 1"
        self.load_ratio = ratio
        return 200, f"{ratio:.3f}"


def parse_gpus(text: str) -> tuple[int, ...] | None:
    """Parse `0,1,4-7` into GPU numbers of the host; `visible` is None: those of NVIDIA_VISIBLE_DEVICES."""
    if text == "visible":
        return None
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            numbers.extend(range(int(first), int(last if dash else first) + 1))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no list of GPU numbers such as 0,1 or 0-7") from None
    if not numbers or min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} names no GPU: write numbers such as 0,1 or 0-7")
    return tuple(numbers)


def find_visible(shelf: Path, uuids: str) -> tuple[int, ...]:
    """Return the numbers of GPUs by their UUIDs (comma-separated) on a host; raise NotFound where one is not there."""
    order = [gpu.uuid for gpu in look_at_shelf(shelf) or ()]
    missing = [uuid for uuid in uuids.split(",") if uuid not in order]
    if missing:
        raise NotFound(
            f"NVIDIA_VISIBLE_DEVICES names {', '.join(missing) or 'no GPU'}, which {shelf} does not have: "
            "run it where the device plugin gave GPUs, or write their numbers"
        )
    return tuple(order.index(uuid) for uuid in uuids.split(","))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one toy workload until SIGTERM; return the process's exit code."""
    options = _parser().parse_args(arguments)
    try:
        shelf = Shelf(options.shelf)
        gpus = options.gpus
        if gpus is None:
            gpus = find_visible(options.shelf, os.environ.get("NVIDIA_VISIBLE_DEVICES", ""))
    except SwingbusError as error:
        print(f"{options.kind}: {error}", file=sys.stderr)
        return 1
    beyond = [gpu for gpu in gpus if gpu >= shelf.gpu_count]
    if beyond:
        print(f"{options.kind}: this host has GPUs 0 to {shelf.gpu_count - 1}, not {beyond}", file=sys.stderr)
        return 1
    if options.crash_after_s == 0:
        print(f"{options.kind}: simulated crash at start", file=sys.stderr)
        return 3

    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # the number arrives through the pipe
    signal.signal(signal.SIGINT, lambda number, frame: None)

    load_ratio = 1.0 if options.kind == "mining" else options.load_ratio
    seat = shelf.process_table.take_seat(
        kind=options.kind,
        gpus=gpus,
        memory_used_bytes=MEMORY_BYTES[options.kind],
        load_ratio=load_ratio if options.kind == "mining" else _LOADING_RATIO,
    )
    print(f"{options.kind}: pid {os.getpid()} on GPUs {','.join(map(str, gpus))}", flush=True)
    ends_s = None if options.crash_after_s is None else time.monotonic() + options.crash_after_s
    try:
        if options.kind == "mining":
            crashed = _wait(wake_read, ends_s)
        else:
            state = Inference(
                ready_at_s=time.monotonic() + options.load_s, fails_ready=options.fail_ready, load_ratio=load_ratio
            )
            crashed = _serve(state, seat, options.port, wake_read, ends_s)
        if crashed:
            print(f"{options.kind}: simulated crash", file=sys.stderr)
            return 3
        seat.set_load(0.0)
        time.sleep(options.drain_s)
    finally:
        seat.leave()
    return 0


def _wait(wake: int, ends_s: float | None) -> bool:
    """Sleep until a signal (False) or the planned crash (True)."""
    with selectors.DefaultSelector() as selector:
        selector.register(wake, selectors.EVENT_READ)
        return not selector.select(None if ends_s is None else max(0.0, ends_s - time.monotonic()))


def _serve(state: Inference, seat: Seat, port: int, wake: int, ends_s: float | None) -> bool:
    """Answer HTTP on loopback until a signal (False) or the planned crash (True); one request at a time is enough."""
    with socket.create_server(("127.0.0.1", port)) as server, selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        selector.register(wake, selectors.EVENT_READ)
        while True:
            now_s = time.monotonic()
            seat.set_load(state.seat_load(now_s))
            alarms_s = [
                at for at in (ends_s, None if state.is_ready(now_s) or state.fails_ready else state.ready_at_s) if at
            ]
            ready = selector.select(max(0.0, min(alarms_s) - now_s) if alarms_s else None)
            if ends_s is not None and time.monotonic() >= ends_s:
                return True
            for key, _ in ready:
                if key.fileobj == wake:
                    return False
                _answer(server, state)


def _answer(server: socket.socket, state: Inference) -> None:
    connection, _ = server.accept()
    with connection:
        connection.settimeout(_REQUEST_SECONDS)
        try:
            raw = b""
            while b"\r\n\r\n" not in raw and len(raw) < 8192:
                chunk = connection.recv(4096)
                if not chunk:
                    return
                raw += chunk
            words = raw.split(b"\r\n", 1)[0].decode("latin-1").split()
            status, text = (
                (400, "no HTTP request") if len(words) != 3 else state.answer(words[0], words[1], time.monotonic())
            )
            body = f"{text}\n".encode()
            head = f"HTTP/1.1 {status} -\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode() + body)
        except OSError as error:  # the caller went away: its loss, the server goes on
            print(f"inference: a caller was dropped: {error}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="swingbus_sim.workloads", description="A toy workload for simulated GPUs.")
    parser.add_argument("kind", choices=("mining", "inference"))
    told = os.environ.get(SHELF_VARIABLE)
    parser.add_argument(
        "--shelf",
        type=Path,
        required=told is None,
        default=None if told is None else Path(told),
        help=f"the simulated host's shared file (default: ${SHELF_VARIABLE})",
    )
    parser.add_argument(
        "--gpus",
        type=parse_gpus,
        required=True,
        help="GPU numbers of the host, such as 0,1 or 0-7; `visible`: those of NVIDIA_VISIBLE_DEVICES",
    )
    parser.add_argument("--port", type=int, default=0, help="loopback port of inference (default: any free one)")
    parser.add_argument("--load-s", type=float, default=5.0, help="seconds that loading the weights takes (default 5)")
    parser.add_argument("--load-ratio", type=float, default=1.0, help="how busy inference is at first, 0 to 1")
    parser.add_argument("--fail-ready", action="store_true", help="inference never gets ready")
    parser.add_argument("--drain-s", type=float, default=0.0, help="seconds between SIGTERM and the end (default 0)")
    parser.add_argument("--crash-after-s", type=float, default=None, help="die with code 3 after so long (0: at once)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
