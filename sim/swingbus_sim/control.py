"""The control socket: tests and the demo's runner ask for the state and plant faults, one JSON object a line.

Requests: {"do": "status"}, {"do": "series"}, {"do": "ledger"}, {"do": "device", "name": N}, {"do": "inject", "event": {...}} (the keys
of a scenario's [[events]] without at_s), {"do": "stop"}. Replies: {"ok": true, ...} or {"ok": false, "reason": R, "message": M}.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from swingbus.faults import InvalidInput, NotFound, SwingbusError, Unreachable, WrongState
from swingbus_sim.physics.world import World
from swingbus_sim.scenario_file import event_from_mapping

_MAX_LINE = 256 * 1024
_ASK_S = 5.0


class ControlSocket:
    """Listens on RUN_DIR/control.sock. Use as an async context manager."""

    def __init__(
        self, folder: Path, world: World, *, stop: Callable[[], None], health: Callable[[], dict[str, Any]]
    ) -> None:
        self.path = folder / "control.sock"
        self._world = world
        self._stop = stop
        self._health = health
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> ControlSocket:
        self.path.unlink(missing_ok=True)
        try:
            self._server = await asyncio.start_unix_server(self._serve, path=self.path, limit=_MAX_LINE)
        except OSError as error:
            raise WrongState(f"cannot listen on {self.path}: {error}; choose a shorter --dir") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(json.dumps(self.answer(line)).encode() + b"\n")
                async with asyncio.timeout(_ASK_S):
                    await writer.drain()
        except (ConnectionError, TimeoutError, ValueError):
            return  # gone, not reading, or a line over the limit
        finally:
            writer.close()

    def answer(self, line: bytes) -> dict[str, Any]:
        """Answer one request."""
        try:
            return {"ok": True, **self._do(line)}
        except SwingbusError as error:
            return {"ok": False, "reason": error.reason, "message": str(error)}

    def _do(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except ValueError as error:
            raise InvalidInput(f"not JSON: {error}") from error
        if not isinstance(request, dict):
            raise InvalidInput('a request is an object like {"do": "status"}')
        world = self._world
        match request.get("do"):
            case "status":
                return self._status()
            case "series":
                return self._series()
            case "ledger":
                return {
                    "entries": [
                        {
                            "at_s": e.at_s,
                            "id": e.id,
                            "kind": e.kind,
                            "phase": e.phase,
                            "targets": list(e.targets),
                            "detail": e.detail,
                        }
                        for e in world.faults.entries
                    ]
                }
            case "device":
                return self._device(str(request.get("name")))
            case "inject":
                event = request.get("event")
                if not isinstance(event, dict):
                    raise InvalidInput('inject needs "event": {"kind": ..., ...}, the keys of a scenario\'s [[events]]')
                return {"id": world.faults.inject(event_from_mapping(event, world.scenario, now_s=world.now_s))}
            case "stop":
                self._stop()
                return {}
            case other:
                raise InvalidInput(f"do: {other!r} is unknown; choose status, series, ledger, device, inject or stop")

    def _status(self) -> dict[str, Any]:
        world = self._world
        tick = world.tick
        return {
            "now_s": world.now_s,
            "nodes": {
                name: {"power_w": tick.node_w[i], "limit_w": tick.limit_w[i], "potential_w": tick.potential_w[i]}
                for i, name in enumerate(world.tree.names)
            },
            "states": {letter: tick.states.count(letter) for letter in sorted(set(tick.states))},
            "disobedient": [
                {"device": world.device_names[d.device], "extra_w": d.extra_w, "since_s": d.since_s, "cause": d.cause}
                for d in tick.disobedient
            ],
            "health": self._health(),
        }

    def _series(self) -> dict[str, Any]:
        world = self._world
        return {
            "now_s": world.now_s,
            "clock_factor": world.scenario.market.clock_factor,
            "series": {
                name: {
                    "now": series.value(world.now_s),
                    "source": series.source,
                    "points": [[at, value] for at, value in zip(series.at_s, series.values, strict=True)],
                }
                for name, series in world.scenario.series.items()
            },
        }

    def _device(self, name: str) -> dict[str, Any]:
        world = self._world
        if name not in world.device_names:
            raise NotFound(f"no device {name!r}")
        index = world.device_names.index(name)
        tick = world.tick
        answer: dict[str, Any] = {"power_w": tick.device_w[index], "state": tick.states[index]}
        if name in world.asics:
            asic = world.asics[name]
            answer |= {
                "potential_w": asic.potential_w,
                "is_ordered_to_mine": asic.is_ordered_to_mine,
                "reported_w": asic.reading(world.now_s).power_w,
            }
        else:
            _, gpu = world.gpu(name)
            answer |= {"enforced_w": gpu.enforced_w, "kind": gpu.kind, "load_ratio": gpu.load_ratio}
        return answer


async def ask(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Ask a running simulator one thing and return its reply.

    Raises:
        Unreachable: no simulator answers in that folder.
        InvalidInput: it refused; the message says why.
    """
    path = folder / "control.sock"
    try:
        async with asyncio.timeout(_ASK_S):
            reader, writer = await asyncio.open_unix_connection(path, limit=4 * 1024 * 1024)
            try:
                writer.write(json.dumps(request).encode() + b"\n")
                await writer.drain()
                line = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        raise Unreachable(f"no simulator answers on {path}: {error}; start one with `swingbus-sim run`") from error
    if not line:
        raise Unreachable(f"the simulator on {path} closed the line")
    reply: dict[str, Any] = json.loads(line)
    if not reply.get("ok"):
        raise InvalidInput(str(reply.get("message")), reason=str(reply.get("reason")))
    return reply
