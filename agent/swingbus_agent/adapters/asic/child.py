"""The ASIC child: the process in which pyasic-rs runs, so that it may hang, abort or be killed without hurting the agent.

Reads frames on stdin, answers on stdout (see `frames`), ends when stdin closes. Decides only how many miners are asked at
once: a miner that did not answer last time goes to a small lane of its own, so hung ones never take the places of good ones.
Started as `python -m swingbus_agent.adapters.asic.child`; passwords come over the pipe, never by arguments or environment.

Requests, several to a frame: `[id, op, index, ...]` with `read`, `identify`, `profiles`, `write verb argument deadline`,
and once `[0, "setup", settings, miners]`. Answers, several to a frame: `[id, "ok", payload]` or
`[id, "fault", reason, detail, started_s, ended_s]`; an answer `[0]` is a heartbeat.
"""

from __future__ import annotations

import sys

# asyncio and hashlib take along the whole of OpenSSL (5 MB) unless it is not to be had; nothing here speaks TLS.
sys.modules["ssl"] = None  # type: ignore[assignment]
sys.modules["_hashlib"] = None  # type: ignore[assignment]

import asyncio  # noqa: E402
import os  # noqa: E402
import resource  # noqa: E402
import signal  # noqa: E402
import time  # noqa: E402
from collections.abc import Coroutine  # noqa: E402
from typing import Any  # noqa: E402

from swingbus_agent.adapters.asic import frames, luxos  # noqa: E402
from swingbus_agent.adapters.asic.library import IDENTIFY_S, LibraryMiner  # noqa: E402
from swingbus_agent.adapters.asic.rpc import RpcFault  # noqa: E402

HEARTBEAT_S = 1.0
MAX_PRIVATE_BYTES = 1024 * 1024 * 1024  # a miner that streams without end kills the child, not the host
# After these, somebody else may answer at the address; after a reboot or a hang it is still the same machine.
_FORGETTABLE = frozenset({"garbage", "error_reply", "no_fields", "wrong_firmware"})
FORGET_AFTER_FAULTS = 5
# What the library may raise when an answer has a shape it did not expect: that miner's fault, not the process's end.
_ODD = (AttributeError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError)


def _now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class _Miner:
    __slots__ = ("faults_in_a_row", "is_suspect", "library", "tried_s", "vitals_due_s")

    def __init__(self, host: str, firmware: str, password: str | None, vitals_due_s: float) -> None:
        self.library = LibraryMiner(host, firmware, password)
        self.is_suspect = False
        self.faults_in_a_row = 0
        self.tried_s = 0.0
        self.vitals_due_s = vitals_due_s


class Child:
    """Serves one pipe until it closes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.WriteTransport) -> None:
        self._reader = reader
        self._writer = writer
        self._answers: list[list[Any]] = []
        self._miners: list[_Miner] = []
        self._deadline_s = 3.0
        self._vitals_every_s = 15.0
        self._lane = asyncio.Semaphore(32)
        self._suspect_places = 8
        self._suspect_lane = asyncio.Semaphore(8)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            beat = tasks.create_task(self._beat())
            try:
                while True:
                    for request in await frames.read_frame(self._reader):
                        if request[1] == "setup":
                            self._setup(*request[2:])
                        else:
                            tasks.create_task(self._serve(request))
            except EOFError:
                beat.cancel()
                # The library can abort the process while Python unwinds; nothing here needs unwinding.
                os._exit(0)

    def _setup(self, settings: list[float], miners: list[list[Any]]) -> None:
        self._deadline_s, self._vitals_every_s, lane, suspect_lane = settings
        self._lane = asyncio.Semaphore(int(lane))
        self._suspect_places = int(suspect_lane)
        self._suspect_lane = asyncio.Semaphore(self._suspect_places)
        # Every miner's first reading is a full one; the later slow parts are spread over the sweeps.
        start_s, share_s = _now_s(), self._vitals_every_s / max(1, len(miners))
        self._miners = [
            _Miner(host, firmware, password, start_s + number * share_s)
            for number, (host, firmware, password) in enumerate(miners)
        ]

    async def _beat(self) -> None:
        while True:
            self._answer([0])
            await asyncio.sleep(HEARTBEAT_S)

    async def _serve(self, request: list[Any]) -> None:
        number, op, index, *arguments = request
        miner = self._miners[index]
        started_s = _now_s()
        try:
            match op:
                case "read":
                    answer = await self._read(miner)
                case "identify":
                    answer = await self._bounded(miner, miner.library.identify(self._deadline_s), IDENTIFY_S)
                case "profiles":
                    profiles = luxos.read_profiles(miner.library.host, self._deadline_s)
                    answer = await self._bounded(miner, profiles, self._deadline_s)
                case "write":
                    verb, argument, deadline_s = arguments
                    # The half second is for giving a session back after the command is through.
                    async with asyncio.timeout(deadline_s + 0.5):
                        answer = await miner.library.write(verb, argument, deadline_s)
                case _:
                    raise RpcFault("garbage", f"no such operation: {op}")
        except TimeoutError:
            self._answer([number, "fault", "hung", "no answer within the deadline", started_s, _now_s()])
        except RpcFault as fault:
            self._answer([number, "fault", fault.reason, str(fault), started_s, _now_s()])
        except BaseExceptionGroup as group:  # from the two halves of one read: the first cause is the one to tell
            reason, detail = _told(group)
            self._answer([number, "fault", reason, detail, started_s, _now_s()])
        except _ODD as error:
            self._answer([number, "fault", *_told(error), started_s, _now_s()])
        else:
            self._answer([number, "ok", answer])

    async def _read(self, miner: _Miner) -> list[Any]:
        vitals_due = miner.library.lacks_vitals or _now_s() >= miner.vitals_due_s
        call = miner.library.read(self._deadline_s, _now_s, vitals_due)
        first_s = 0.0 if miner.library.is_known else IDENTIFY_S
        try:
            row = await self._bounded(miner, call, self._deadline_s + first_s)
        except (RpcFault, TimeoutError, BaseExceptionGroup, *_ODD) as error:
            miner.faults_in_a_row += _told(error)[0] in _FORGETTABLE
            if miner.faults_in_a_row and miner.faults_in_a_row % FORGET_AFTER_FAULTS == 0:
                miner.library.forget()
            raise
        miner.faults_in_a_row = 0
        while miner.vitals_due_s <= _now_s():
            miner.vitals_due_s += self._vitals_every_s
        packed: list[Any] = row.pack()
        return packed

    async def _bounded(self, miner: _Miner, call: Coroutine[Any, Any, Any], deadline_s: float) -> Any:
        if miner.is_suspect and _now_s() - miner.tried_s < self._suspect_pause_s():
            call.close()
            raise RpcFault("hung", "did not answer the last time, not asked again yet")
        async with self._suspect_lane if miner.is_suspect else self._lane:
            miner.tried_s = _now_s()
            try:
                async with asyncio.timeout(deadline_s):
                    answer = await call
            except (RpcFault, TimeoutError, BaseExceptionGroup) as error:
                miner.is_suspect = _told(error)[0] == "hung"
                raise
            miner.is_suspect = False
            return answer

    def _suspect_pause_s(self) -> float:
        """Return how long a suspect rests, so that all of them get their turn in the small lane."""
        suspects = sum(miner.is_suspect for miner in self._miners)
        return max(0, suspects - self._suspect_places) * self._deadline_s / self._suspect_places

    def _answer(self, answer: list[Any]) -> None:
        # Answers of one turn of the loop leave in one frame: the agent wakes up once for all of them.
        if not self._answers:
            asyncio.get_running_loop().call_soon(self._flush)
        self._answers.append(answer)

    def _flush(self) -> None:
        answers, self._answers = self._answers, []
        self._writer.write(frames.pack(answers))


def _told(error: BaseException) -> tuple[str, str]:
    """Return reason and detail of a failure that is about one miner; raises what is not (a bug, a cancellation)."""
    if isinstance(error, BaseExceptionGroup):
        return _told(error.exceptions[0])
    if isinstance(error, RpcFault):
        return error.reason, str(error)
    if isinstance(error, TimeoutError):
        return "hung", "no answer within the deadline"
    if isinstance(error, _ODD):
        return "garbage", f"unexpected answer: {type(error).__name__}: {str(error)[:160]}"
    raise error


async def _main() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=frames.MAX_FRAME_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    writer, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, sys.stdout)
    await Child(reader, writer).run()


def main() -> None:
    """Run the child on this process's stdin and stdout."""
    # Ctrl-C goes to the whole process group: the agent ends its child itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_PRIVATE_BYTES, MAX_PRIVATE_BYTES))
    asyncio.run(_main())


if __name__ == "__main__":
    main()
