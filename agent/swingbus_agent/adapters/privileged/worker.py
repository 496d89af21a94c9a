"""One worker of the privileged child: a process that may hang or crash at any call, and is then killed and started anew.

Decides when silence is too long and when to start again. Knows nothing of GPUs. Invariants: `ask` comes back within its deadlines, also
where the kernel cannot end the process; a worker that was given up never answers a later request.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from typing import Any

_LONGEST_LINE_BYTES = 4096
_KILL_GRACE_S = 1.0
_LONGEST_BACKOFF_S = 30.0
_SHORT_PAUSE_S = 0.5
_MOST_STUCK = 3

Line = dict[str, Any]


class NotStarted(Exception):
    """There is no worker now; nothing was asked."""


class NoAnswer(Exception):
    """It was asked and did not answer: what was asked may or may not have been done."""


class Worker:
    """At most one living process of a module that says one line when it is ready and one line per line that it is told."""

    def __init__(
        self, module: str, *, call_deadline_s: float, start_deadline_s: float = 5.0, backoff_s: float = 0.2
    ) -> None:
        self._module = module
        self._call_deadline_s = call_deadline_s
        self._start_deadline_s = start_deadline_s
        self._first_backoff_s = self._backoff_s = backoff_s
        self._not_before_s = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        self._rest = b""
        self._stuck: list[subprocess.Popen[bytes]] = []

    @property
    def pid(self) -> int | None:
        """The process number while there is one."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process, if there is none and it may be tried now; does not wait for it.

        Raises:
            NotStarted: too soon after a failure, no process to be had, or too many that cannot be killed.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.end()
        self._stuck = [each for each in self._stuck if each.poll() is None]
        if len(self._stuck) >= _MOST_STUCK:
            raise NotStarted("several driver calls cannot even be killed: this host needs a reboot")
        left_s = self._not_before_s - time.monotonic()
        if left_s > _SHORT_PAUSE_S:
            raise NotStarted(f"its process failed; it is started again within {left_s:.1f} s")
        if left_s > 0:
            time.sleep(left_s)  # a limit now is worth more than an answer at once
        self._not_before_s = time.monotonic() + self._backoff_s
        self._backoff_s = min(self._backoff_s * 2, _LONGEST_BACKOFF_S)
        try:
            self._process = subprocess.Popen(
                # Isolated: no module from a working folder or from PYTHONPATH is ever run as root.
                [sys.executable, "-I", "-m", self._module, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd="/",
            )
        except OSError as error:
            raise NotStarted(f"its process cannot be started: {error}") from error
        self._is_ready, self._rest = False, b""

    def ask(self, line: Line) -> Line:
        """Tell the process one line and return its answer.

        Raises:
            NotStarted: nothing was asked.
            NoAnswer: it hung or ended; it is gone now.
        """
        self.start()
        if not self._is_ready:
            try:
                self._read_line(self._start_deadline_s)
            except NoAnswer as error:
                raise NotStarted(f"the driver does not let it begin: {error}") from error
            self._is_ready, self._backoff_s = True, self._first_backoff_s
        process = self._process
        assert process is not None
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
            process.stdin.flush()
        except OSError as error:
            self.end()
            raise NoAnswer(f"its process ended: {error}") from error
        return self._read_line(self._call_deadline_s)

    def end(self) -> None:
        """Kill the process; one that the kernel cannot end is left and counted."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what was not yet written has nobody to read it
                    continue
        process.kill()
        try:
            process.wait(_KILL_GRACE_S)
        except subprocess.TimeoutExpired:
            self._stuck.append(process)

    def _read_line(self, deadline_s: float) -> Line:
        assert self._process is not None
        assert self._process.stdout is not None
        file = self._process.stdout.fileno()
        waiting = select.poll()
        waiting.register(file, select.POLLIN)
        ends_s = time.monotonic() + deadline_s
        why = f"no answer for {deadline_s:g} s"
        while b"\n" not in self._rest and len(self._rest) <= _LONGEST_LINE_BYTES:
            left_s = ends_s - time.monotonic()
            if left_s <= 0 or not waiting.poll(left_s * 1000):
                break
            chunk = os.read(file, _LONGEST_LINE_BYTES)
            if not chunk:
                why = "its process ended"
                break
            self._rest += chunk
        raw, newline, self._rest = self._rest.partition(b"\n")
        try:
            answer = json.loads(raw) if newline else None
        except ValueError:
            answer, why = None, "its process said nonsense"
        if not isinstance(answer, dict):
            self.end()
            raise NoAnswer(why)
        return answer
