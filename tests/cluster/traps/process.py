"""Our controller as a process that a test may kill and start again, always at the same address on the same volume."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from tests.benchmarks.procs import environment, running, tail, wait_for_file

_READY_S = 90.0


class ControllerProcess:
    """`swingbus-controller run` on a site file."""

    def __init__(self, site: Path) -> None:
        self._site = site
        self._exits = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._starts_count = 0
        self._listen = "127.0.0.1:0"

    @property
    def endpoint(self) -> str:
        """Where agents find it."""
        return self._listen

    @property
    def log(self) -> Path:
        """The newest start's log."""
        return self._site.parent / f"controller-{self._starts_count}.log"

    @property
    def is_running(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it and return when it listens."""
        self._starts_count += 1
        ready = self._site.parent / "ready"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "swingbus_controller.main", "run", "--config", str(self._site)]
        options = ["--ready-file", str(ready), "--log-level", "info"]
        env = environment(SWINGBUS_LISTEN=self._listen)
        self._process = self._exits.enter_context(running([*command, *options], self.log, env=env))
        self._listen = f"127.0.0.1:{wait_for_file(ready, self._process, self.log, _READY_S)}"

    def kill(self) -> None:
        """Kill it as a crash does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10.0)
        self._exits.close()

    def stop(self) -> None:
        """End it in order."""
        self._exits.close()

    def said(self, word: str) -> list[str]:
        """Return the lines of the newest log with a word in them."""
        return [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if word in line]

    def tail(self, lines: int = 25) -> str:
        """Return the end of the newest log."""
        return tail(self.log, lines)
