"""The controller of a story, as who plays it sees it: it starts, is killed without a word, and comes back on the same data."""

from __future__ import annotations

import signal
import socket
from collections.abc import Sequence
from typing import Protocol

from swingbus_sim.demo.processes import Processes

SERVER = "swingbus-controller"


class Controller(Protocol):
    """Where it runs is its own affair. Its output is the log SERVER of the run's processes, over all its lives."""

    def take_port(self) -> int:
        """Return the port of loopback that it will be reached at; asked once, before a certificate is made for it."""
        ...

    async def start(self) -> None:
        """Start it on the site file and certificates that lie in the run's folder now."""
        ...

    async def kill(self) -> None:
        """Kill it: it must not get to write or say anything more."""
        ...

    async def come_back(self) -> None:
        """Have it again on the same data."""
        ...


class ControllerProcess:
    """One that is a process like all others of the run."""

    def __init__(self, processes: Processes, command: Sequence[str]) -> None:
        self._processes = processes
        self._command = command

    def take_port(self) -> int:
        """Take one that is free; its site file tells it."""
        return free_port()

    async def start(self) -> None:
        """Start the process."""
        self._processes.start(SERVER, self._command)

    async def kill(self) -> None:
        """Kill the process."""
        self._processes.send(SERVER, signal.SIGKILL)

    async def come_back(self) -> None:
        """Start the same command again."""
        self._processes.stop(SERVER)
        self._processes.start(SERVER, self._command)


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
