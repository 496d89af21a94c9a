"""The judge's process: reads a running simulator's truth (or a finished log), writes verdict.json while it listens."""

from __future__ import annotations

import gzip
import json
import math
import signal
import socket
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, cast

from swingbus.faults import InvalidInput, NotFound, Unreachable
from swingbus_sim.judge.court import Court

_WRITE_EVERY_LINES = 50
_CONNECT_RETRY_S = 0.2
_SILENCE_S = 30.0


class _Stopped(Exception):
    """SIGTERM or SIGINT came: speak on what was heard."""


def judge(*, truth: Path, scenario: str | None, out: Path, confirmations: Path | None, wait_s: float) -> int:
    """Judge one run; 0 not guilty, 1 guilty.

    Raises:
        Unreachable: no truth at `truth` within `wait_s`.
        InvalidInput: it is no truth, or its limits are not the scenario's.
    """

    def stop(number: int, frame: object) -> None:
        raise _Stopped

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    court: Court | None = None
    try:
        for count, line in enumerate(_lines(truth, wait_s)):
            if court is None:
                declared = None if scenario is None else _declared(scenario)
                court = Court(line, measure_to_s=math.inf if declared is None else declared["duration_s"])
                if declared is not None:
                    _compare_limits(line, declared, name=scenario)
                continue
            court.hear(line)
            if count % _WRITE_EVERY_LINES == 0:
                _write(out, court.verdict() | {"verdict": "LISTENING"})
    except _Stopped:
        print("swingbus-sim judge: stopped before the truth ended", file=sys.stderr)
    if court is None:
        raise InvalidInput(f"{truth} held no truth at all")
    if confirmations is not None:
        court.check_confirmations(_confirmations(confirmations))
    verdict = court.verdict()
    _write(out, verdict)
    print(f"{verdict['verdict']}: {verdict['scenario']}, {verdict['seconds']:.0f} s heard")
    for reason in verdict["reasons"]:
        print(f"  {reason}")
    return 0 if verdict["verdict"] == "NOT GUILTY" else 1


def _lines(truth: Path, wait_s: float) -> Iterator[dict[str, Any]]:
    deadline_s = time.monotonic() + wait_s
    while not truth.exists():
        if time.monotonic() > deadline_s:
            raise Unreachable(f"no truth at {truth} after {wait_s:g} s; start `swingbus-sim run` first")
        time.sleep(_CONNECT_RETRY_S)
    if truth.is_socket():
        yield from _socket_lines(truth, deadline_s)
        return
    opener = cast("Callable[[Path, str], BinaryIO]", gzip.open if truth.suffix == ".gz" else open)
    with opener(truth, "rb") as handle:
        yield from _decoded(handle, str(truth))


def _socket_lines(path: Path, deadline_s: float) -> Iterator[dict[str, Any]]:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
        while True:
            try:
                connection.connect(str(path))
                break
            except OSError as error:
                if time.monotonic() > deadline_s:
                    raise Unreachable(f"nobody answers on {path}: {error}") from error
                time.sleep(_CONNECT_RETRY_S)
        connection.settimeout(_SILENCE_S)
        with connection.makefile("rb") as handle:
            yield from _decoded(handle, str(path))


def _decoded(handle: BinaryIO, name: str) -> Iterator[dict[str, Any]]:
    """Decode lines until the stream ends; a torn last line, a cut gzip stream or silence ends it (the court sees no "end")."""
    number = 0
    while True:
        try:
            raw = handle.readline()
        except (EOFError, TimeoutError, ConnectionError):
            return
        if not raw:
            return
        number += 1
        try:
            line = json.loads(raw)
        except ValueError as error:
            if not raw.endswith(b"\n"):
                return
            raise InvalidInput(f"{name}: line {number} is not JSON") from error
        yield line


def _confirmations(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise NotFound(f"no confirmations at {path}")
    with path.open(encoding="utf-8") as handle:
        for number, text in enumerate(handle, start=1):
            if not text.strip():
                continue
            try:
                line = json.loads(text)
            except ValueError as error:
                raise InvalidInput(f"{path}:{number}: not JSON") from error
            if not isinstance(line, dict):
                raise InvalidInput(f"{path}:{number}: a confirmation is an object")
            yield line


def _declared(scenario: str) -> dict[str, Any]:
    """Return the scenario file, read here by the judge itself."""
    path = Path(scenario)
    if path.suffix != ".toml":
        path = Path(__file__).parent.parent / "scenarios" / f"{scenario}.toml"
    if not path.is_file():
        raise NotFound(f"no scenario {scenario!r}")
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _compare_limits(header: dict[str, Any], declared: dict[str, Any], *, name: str | None) -> None:
    """Refuse a truth whose declared limits are not those of the scenario file."""
    limits = {n["name"]: n.get("limit_w") for n in declared["nodes"]}
    told = {n["name"]: n["limit_w"] for n in header["nodes"]}
    if limits != told:
        raise InvalidInput(f"the truth's limits {told} are not those of {name}: {limits}")


def _write(path: Path, verdict: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(json.dumps(verdict, indent=1), encoding="utf-8")
    aside.replace(path)
