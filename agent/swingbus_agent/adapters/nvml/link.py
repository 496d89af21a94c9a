"""The pipe to one NVML child: a request out, lines back, each within a deadline.

Decides when silence is too long and how a child is ended. Knows nothing of GPUs. Invariant: after `TooLong` or `Gone` the child
is of no more use, and `end` never waits for a process that the kernel cannot kill.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Mapping
from typing import Any

CHILD_MODULE = "swingbus_agent.adapters.nvml.child"
_LONGEST_LINE_BYTES = 1 << 20
_GRACE_SECONDS = 1.0

Line = dict[str, Any]


class TooLong(Exception):
    """The child said nothing for the whole deadline: a driver call hangs."""


class Gone(Exception):
    """The child ended by itself."""


async def start_process(*arguments: str, environment: Mapping[str, str] | None, is_talking: bool) -> Process:
    """Start the child program (by exec, never by fork alone: gRPC's threads would not survive it).

    `environment` is what it runs in, the agent's own if None.
    """
    pipe = PIPE if is_talking else DEVNULL
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        CHILD_MODULE,
        str(os.getpid()),
        *arguments,
        stdin=pipe,
        stdout=pipe,
        env=None if environment is None else dict(environment),
        limit=_LONGEST_LINE_BYTES,
    )


async def end_process(process: Process) -> bool:
    """Kill a process; return False if it is still there after a moment (stuck in the kernel)."""
    if process.returncode is None:
        try:
            process.kill()
        except ProcessLookupError:
            return True  # it ended by itself just now
    try:
        async with asyncio.timeout(_GRACE_SECONDS):
            await process.wait()
    except TimeoutError:
        return False
    return True


class ChildLink:
    """One living child."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._next_id = 1
        self._is_between_requests = True

    @property
    def pid(self) -> int:
        """The child's process number."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether the child is gone."""
        return self._process.returncode is not None

    @classmethod
    async def start(cls, *, writes: bool, environment: Mapping[str, str] | None) -> ChildLink:
        """Start a child that answers requests."""
        mode = "serve-writes" if writes else "serve"
        return cls(await start_process(mode, environment=environment, is_talking=True))

    async def ask(self, request: Line, *, deadline_s: float, on_line: Callable[[Line], None]) -> Line:
        """Send one request, hand every line to `on_line` and return the last one.

        Raises:
            TooLong: no line came for `deadline_s`.
            Gone: the child ended.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise Gone("the child was started without pipes")
        if not self._is_between_requests:  # a caller was cancelled half way: what comes now answers somebody else
            raise Gone("an earlier request to the NVML child was given up")
        self._is_between_requests = False
        request_id, self._next_id = self._next_id, self._next_id + 1
        try:
            stdin.write(json.dumps({"id": request_id, **request}, separators=(",", ":")).encode() + b"\n")
            while True:
                async with asyncio.timeout(deadline_s):
                    await stdin.drain()
                    raw = await stdout.readline()
                if not raw.endswith(b"\n"):
                    raise Gone(await self._last_words())
                line: Line = json.loads(raw)
                if line.get("done") == request_id:
                    self._is_between_requests = True
                    return line
                on_line(line)
        except TimeoutError as error:
            raise TooLong(f"no answer for {deadline_s:g} s") from error
        except (ConnectionError, ValueError) as error:  # a broken pipe, or bytes that are no JSON line
            raise Gone(f"the NVML child failed: {error}") from error

    async def end(self) -> bool:
        """Kill the child; return False if it is stuck in the kernel and had to be left."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        return await end_process(self._process)

    async def _last_words(self) -> str:
        try:
            async with asyncio.timeout(_GRACE_SECONDS):
                code = await self._process.wait()
        except TimeoutError:
            return "the NVML child closed its pipe and hangs"
        return f"the NVML child was killed by signal {-code}" if code < 0 else f"the NVML child ended with code {code}"
