"""The agent's side of the ASIC child: a `MinerDriver` that stays whole whatever miners, library or child do.

Starts the child, restarts it with a growing pause when it ends or falls silent, and gives every call its own deadline.
Decides which failures make a miner `Hung` and since when; keeps no readings. Invariant: no call waits longer than its
deadline plus `GRACE_S`, and none raises for what a miner, the library or the child did.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from swingbus.faults import InvalidInput, NotFound
from swingbus_agent.adapters.asic import frames, rows
from swingbus_agent.domain.miner import (
    CAPABILITIES,
    Hung,
    MinerAddress,
    MinerCapabilities,
    MinerIdentity,
    MinerOutcome,
    MinerProfile,
    Unavailable,
    UnavailableReason,
    Unsupported,
    WriteOutcome,
    WriteVerdict,
)

GRACE_S = 1.0
CONTACT_S = 10.0  # the child's own limit for identifying a miner that answers slowly
SILENCE_S = 6.0  # six heartbeats missed: the child is stuck, in a call that does not come back or stopped from outside
STABLE_S = 60.0
_log = structlog.get_logger()


def boottime_s() -> float:
    """Return seconds since boot, suspension included: the clock the child stamps its readings with."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True, kw_only=True)
class AsicSettings:
    """How the driver asks.

    `read_deadline_s` and `write_deadline_s`: seconds for one look, for one command (both under 5 s, the library's own
    limit, after which it reports what it has not been told). `vitals_every_s`: how often temperatures, pools and errors are read too.
    `max_concurrent`: miners asked at once; `suspect_places`: of those that did not answer last time.
    `restart_pause_s`: least and greatest pause before the child is started again.
    """

    read_deadline_s: float = 3.0
    write_deadline_s: float = 4.0
    vitals_every_s: float = 30.0
    max_concurrent: int = 32
    suspect_places: int = 8
    restart_pause_s: tuple[float, float] = (0.2, 10.0)

    def __post_init__(self) -> None:
        if not 0 < self.read_deadline_s < 5 or not 0 < self.write_deadline_s < 5:
            raise InvalidInput(
                f"asic read_deadline_s={self.read_deadline_s:g}, write_deadline_s={self.write_deadline_s:g}: "
                "both must be above 0 and under 5 seconds; change the agent's [asic] section"
            )
        if self.max_concurrent < 1 or self.suspect_places < 1:
            raise InvalidInput("asic max_concurrent and suspect_places must be at least 1; change the [asic] section")


class _ChildDown(Exception):
    """The child went away or stayed silent while a call waited."""


class AsicDriver:
    """Miners by name, through the child process. Run `run()` beside the calls; until it runs, miners are `DRIVER_DOWN`."""

    def __init__(
        self,
        miners: Sequence[MinerAddress],
        settings: AsicSettings | None = None,
        now: Callable[[], float] = boottime_s,
        command: Sequence[str] = (sys.executable, "-m", "swingbus_agent.adapters.asic.child"),
    ) -> None:
        self._settings = settings if settings is not None else AsicSettings()
        self._addresses = {miner.name: miner for miner in miners}
        if len(self._addresses) != len(miners):
            raise InvalidInput("two miners have the same name; give each its own in the agent's configuration")
        self._index = {name: index for index, name in enumerate(self._addresses)}
        self._now = now
        self._command = tuple(command)
        self._hung_since_s: dict[str, float] = {}
        self._outgoing: list[list[Any]] = []
        self._waiting: dict[int, asyncio.Future[list[Any]]] = {}
        self._last_number = 0
        self._process: asyncio.subprocess.Process | None = None
        self._ready = asyncio.Event()
        self.restarts = 0

    @property
    def child_pid(self) -> int | None:
        """The child's process id while it is up, for figures and tests."""
        return self._process.pid if self._process is not None else None

    async def run(self) -> None:
        """Keep a child running until cancelled; it ends with this coroutine."""
        shortest_s, longest_s = self._settings.restart_pause_s
        pause_s = shortest_s
        while True:
            began_s = self._now()
            reason = await self._serve_one_child()
            lived_s = self._now() - began_s
            pause_s = shortest_s if lived_s > STABLE_S else pause_s
            self.restarts += 1
            _log.warning("asic_child_ended", reason=reason, lived_s=round(lived_s, 3), pause_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(longest_s, pause_s * 2)

    async def wait_ready(self, timeout_s: float = 10.0) -> None:
        """Wait until the child has spoken; raises `TimeoutError`."""
        async with asyncio.timeout(timeout_s):
            await self._ready.wait()

    # ----- the port -----------------------------------------------------------------------------------------------

    def capabilities(self, miner: str) -> MinerCapabilities:
        return CAPABILITIES[self._address(miner).firmware]

    async def read(self, miner: str) -> MinerOutcome:
        answer = await self._ask(miner, "read")
        if not isinstance(answer, list):
            return answer
        try:
            return rows.unpack(miner, answer)
        except (ValueError, TypeError, KeyError) as error:
            now_s = self._now()
            detail = f"driver gave an unreadable row: {error}"
            return Unavailable(reason=UnavailableReason.GARBAGE, detail=detail, started_s=now_s, ended_s=now_s)

    async def identify(self, miner: str) -> MinerIdentity | Unavailable | Hung:
        answer = await self._ask(miner, "identify")
        if not isinstance(answer, list):
            return answer
        make, model, firmware, version, mac, serial = answer
        return MinerIdentity(
            make=make, model=model, firmware=firmware, firmware_version=version, mac=mac, serial_number=serial
        )

    async def profiles(self, miner: str) -> tuple[MinerProfile, ...] | Unsupported | Unavailable | Hung:
        if not self.capabilities(miner).can_set_profile:
            return Unsupported(detail=f"{self._address(miner).firmware.value} has no power profiles")
        answer = await self._ask(miner, "profiles")
        if not isinstance(answer, list):
            return answer
        return tuple(MinerProfile(name=name, power_w=watts, hashrate_ths=rate) for name, watts, rate in answer)

    async def sleep(self, miner: str) -> WriteOutcome:
        return await self._write(miner, "sleep", None)

    async def wake(self, miner: str) -> WriteOutcome:
        return await self._write(miner, "wake", None)

    async def set_profile(self, miner: str, profile: str) -> WriteOutcome:
        if not self.capabilities(miner).can_set_profile:
            return self._unsupported(miner, "no power profiles: use a power limit")
        if not profile or "," in profile or not profile.isprintable():
            return WriteOutcome(
                verdict=WriteVerdict.REFUSED, detail=f"not a profile name: {profile!r}", ended_s=self._now()
            )
        return await self._write(miner, "profile", profile)

    async def set_power_limit(self, miner: str, power_w: float) -> WriteOutcome:
        if not self.capabilities(miner).can_set_power_limit:
            return self._unsupported(miner, "no power limit: use a profile")
        if not 0 < power_w <= rows.MAX_POWER_W:
            detail = f"power limit {power_w:g} W is not within 0 and {rows.MAX_POWER_W:g} W"
            return WriteOutcome(verdict=WriteVerdict.REFUSED, detail=detail, ended_s=self._now())
        return await self._write(miner, "limit", power_w)

    # ----- calls over the pipe ------------------------------------------------------------------------------------

    def _address(self, miner: str) -> MinerAddress:
        address = self._addresses.get(miner)
        if address is None:
            raise NotFound(f"no miner {miner!r} in this agent's configuration", metadata={"miner": miner})
        return address

    def _unsupported(self, miner: str, detail: str) -> WriteOutcome:
        firmware = self._address(miner).firmware.value
        return WriteOutcome(verdict=WriteVerdict.UNSUPPORTED, detail=f"{firmware}: {detail}", ended_s=self._now())

    async def _ask(self, miner: str, operation: str) -> list[Any] | Unavailable | Hung:
        # A call may wait for a place among the concurrent ones, and a first one identifies the miner too.
        self._address(miner)
        started_s = self._now()
        try:
            answer = await self._call(miner, [operation], 2 * self._settings.read_deadline_s + CONTACT_S + GRACE_S)
        except _ChildDown as error:
            ended_s = self._now()
            return Unavailable(
                reason=UnavailableReason.DRIVER_DOWN, detail=str(error), started_s=started_s, ended_s=ended_s
            )
        if answer[1] == "ok":
            self._hung_since_s.pop(miner, None)
            payload: list[Any] = answer[2]
            return payload
        _, _, reason, detail, fault_started_s, ended_s = answer
        if reason == "hung":
            return Hung(since_s=self._hung_since_s.setdefault(miner, fault_started_s), ended_s=ended_s)
        self._hung_since_s.pop(miner, None)
        return Unavailable(reason=UnavailableReason(reason), detail=detail, started_s=fault_started_s, ended_s=ended_s)

    async def _write(self, miner: str, verb: str, argument: object) -> WriteOutcome:
        self._address(miner)
        deadline_s = self._settings.write_deadline_s
        try:
            answer = await self._call(miner, ["write", verb, argument, deadline_s], deadline_s + GRACE_S)
        except _ChildDown as error:
            # It may have gone out before the child died.
            return WriteOutcome(verdict=WriteVerdict.TIMED_OUT, detail=str(error), ended_s=self._now())
        if answer[1] == "ok":
            return WriteOutcome(verdict=WriteVerdict.ACCEPTED, detail=str(answer[2]), ended_s=self._now())
        _, _, reason, detail, _, ended_s = answer
        # A connection that broke after the command was sent leaves it open whether the miner obeys.
        is_open = reason in ("hung", "truncated")
        verdict = WriteVerdict.TIMED_OUT if is_open else WriteVerdict.REFUSED
        return WriteOutcome(verdict=verdict, detail=detail, ended_s=ended_s)

    async def _call(self, miner: str, request: list[Any], timeout_s: float) -> list[Any]:
        if self._process is None:
            raise _ChildDown("the ASIC driver process is not up")
        self._last_number += 1
        number = self._last_number
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._send([number, request[0], self._index[miner], *request[1:]])
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError as error:
            raise _ChildDown(f"the ASIC driver process gave no answer within {timeout_s:g} s") from error
        finally:
            self._waiting.pop(number, None)

    def _send(self, request: list[Any]) -> None:
        # Requests of one turn of the loop leave in one frame, as the answers do.
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outgoing.append(request)

    def _flush(self) -> None:
        requests, self._outgoing = self._outgoing, []
        process = self._process
        if process is not None and process.stdin is not None and not process.stdin.is_closing():
            process.stdin.write(frames.pack(requests))

    # ----- the child's life ---------------------------------------------------------------------------------------

    async def _serve_one_child(self) -> str:
        environment = {
            # Least memory for the library's runtime; passwords and the agent's own settings stay out.
            "TOKIO_WORKER_THREADS": "1",
            "MALLOC_ARENA_MAX": "2",
            **{name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ},
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=environment
            )
        except OSError as error:
            return f"cannot start {self._command[0]}: {error}"
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(frames.pack([[0, "setup", self._setup_settings(), self._setup_miners()]]))
            self._process = process
            return await self._read_answers(process.stdout)
        finally:
            self._process = None
            self._ready.clear()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(_ChildDown("the ASIC driver process ended"))
            await self._end(process)

    async def _read_answers(self, stdout: asyncio.StreamReader) -> str:
        while True:
            try:
                async with asyncio.timeout(SILENCE_S):
                    answers = await frames.read_frame(stdout)
            except TimeoutError:
                return f"silent for {SILENCE_S:g} s"
            except EOFError:
                return "exited"
            except ValueError as error:
                return f"spoke nonsense: {error}"
            self._ready.set()
            for answer in answers:
                future = self._waiting.get(answer[0])
                if future is not None and not future.done():
                    future.set_result(answer)

    @staticmethod
    async def _end(process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        process.stdin.close()  # the child leaves at the end of its input
        try:
            async with asyncio.timeout(1.0):
                await process.wait()
        except (TimeoutError, asyncio.CancelledError) as error:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            if isinstance(error, asyncio.CancelledError):
                raise

    def _setup_settings(self) -> list[float]:
        settings = self._settings
        return [
            settings.read_deadline_s,
            settings.vitals_every_s,
            settings.max_concurrent,
            settings.suspect_places,
        ]

    def _setup_miners(self) -> list[list[str | None]]:
        return [[miner.host, miner.firmware.value, miner.password] for miner in self._addresses.values()]
