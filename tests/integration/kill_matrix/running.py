"""The tiny site as processes: controller, three agents, simulator and judge; each can be killed, stopped and restarted by name.

Everything that was started is ended by `aclose`, whatever happened, workloads included.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swingbus.bundle import install_bundle
from swingbus.rpc.roles import Role
from swingbus_sim.control import ask
from swingbus_sim.demo.processes import kill_sessions_with
from swingbus_sim.nvml.build import driver_environment
from swingbus_sim.scenario_file import load_scenario
from tests.fakes.authority import issue, make_authority
from tests.integration.kill_matrix.eyes import Eyes
from tests.integration.kill_matrix.files import AGENTS, ASICS, GPUS, HELD, agent_file, site_file

SCENARIO = Path(__file__).with_name("tiny.toml")
SHIFT = 110  # clear of the judged sites', which run beside this one
CONTROLLER = "controller"
OVER = frozenset({"ACTIVE", "ROLLED_BACK", "FAILED"})
_WATCH_TENANTS_S = 0.1
_KINDS = {"mining": "mining", "inference": "inference"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a case went."""

    case: str
    hit: str
    outcome: str
    seconds: float


class TinySite:
    """One running site."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scenario = load_scenario(SCENARIO, shift=SHIFT)
        self.endings: list[Ending] = []
        self.two_tenants: list[str] = []
        self._port, self._model_port = _free_port(), _free_port()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._sessions: list[int] = []
        self._killed: list[int] = []
        self._watching = threading.Event()
        self._watcher: threading.Thread | None = None
        self._eyes_task: asyncio.Task[None] | None = None
        self._eyes: Eyes | None = None
        self._t0_s = 0.0

    @property
    def eyes(self) -> Eyes:
        """Return the operator."""
        assert self._eyes is not None
        return self._eyes

    # Start and end.

    async def start(self) -> None:
        """Write every file, start every process, return when the controller has adopted every bank."""
        folder = self.folder
        authority = make_authority(folder / "pki")
        for agent in AGENTS:
            state = folder / "agents" / agent
            install_bundle(issue(authority, agent, Role.AGENT, self._port), state / "bundle")
            text = agent_file(self.scenario, agent, folder, port=self._port, model_port=self._model_port)
            (folder / f"{agent}.toml").write_text(text)
        (folder / "site.toml").write_text(site_file(self._port))
        confirmations = folder / "confirmations.jsonl"
        confirmations.touch()
        self._t0_s = time.clock_gettime(time.CLOCK_BOOTTIME) + 0.5
        zero_unix_s = time.time() + 0.5
        sim, simulator = folder / "sim", ("swingbus_sim.main",)
        sim.mkdir()
        self.start_controller()
        self._start(
            "sim",
            [*simulator, "run", str(SCENARIO), "--dir", str(sim), "--t0", f"{self._t0_s:.3f}", "--shift", str(SHIFT)],
        )
        self._start(
            "judge",
            [
                *simulator, "judge", "--truth", str(sim / "truth.sock"), "--scenario", str(SCENARIO),
                "--out", str(folder / "verdict.json"), "--confirmations", str(confirmations),
            ],
        )  # fmt: skip
        await self._until(lambda: (sim / "sim.json").exists(), 30.0, "the simulator runs")
        for agent in AGENTS:
            self.start_agent(agent)
        self._watcher = threading.Thread(target=self._watch_tenants, name="tenants", daemon=True)
        self._watcher.start()
        await self._until(lambda: (folder / "ready").exists(), 30.0, "the controller serves")
        self._eyes = Eyes(
            issue(authority, "chief", Role.ADMIN, self._port), confirmations=confirmations, zero_unix_s=zero_unix_s
        )
        self._eyes_task = asyncio.get_running_loop().create_task(self._eyes.watch())
        await self.calm(60.0)

    async def aclose(self) -> None:
        """End everything and leave nothing behind."""
        self._watching.set()
        if self._watcher is not None:
            self._watcher.join(5.0)
        if self._eyes_task is not None:
            self._eyes_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._eyes_task
        if self._eyes is not None:
            await self._eyes.aclose()
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
        for session in self._sessions:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(session, signal.SIGKILL)
        for process in self._running.values():
            process.wait(10.0)
        kill_sessions_with(str(self.folder))

    async def judged(self) -> dict[str, Any]:
        """End the simulator, so that the judge hears the end, and return its verdict."""
        await ask(self.folder / "sim", {"do": "stop"})
        for name in ("sim", "judge"):
            await asyncio.to_thread(self._running[name].wait, 20.0)
        verdict: dict[str, Any] = json.loads((self.folder / "verdict.json").read_text())
        return verdict

    def _start(self, name: str, words: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        self._sessions.append(self._running[name].pid)

    def start_controller(self, *, adopt_empty: bool = False) -> None:
        """Start the controller on what its folder holds."""
        (self.folder / "ready").unlink(missing_ok=True)
        words = ["swingbus_controller.main", "run", "--config", str(self.folder / "site.toml")]
        words += ["--ready-file", str(self.folder / "ready")]
        self._start(CONTROLLER, words + (["--adopt-empty"] if adopt_empty else []))

    def start_agent(self, agent: str) -> None:
        """Start an agent on what its folder holds."""
        environment = driver_environment(self.folder / HELD["shelf"], base={}) if agent == "gpu" else {}
        self._start(agent, ["swingbus_agent.main", "run", "--config", str(self.folder / f"{agent}.toml")], environment)

    async def restart_agents(self, *agents: str) -> None:
        """Start agents and return when their new sessions are on the record and their reports have come in."""
        wanted = {agent: self._sessions_of(agent) + 1 for agent in agents}
        for agent in agents:
            self.start_agent(agent)
        await self._until(
            lambda: all(self._sessions_of(agent) >= count for agent, count in wanted.items()),
            30.0,
            f"{' and '.join(agents)} are connected again",
        )
        await asyncio.sleep(2.0)

    def _sessions_of(self, agent: str) -> int:
        return sum(e.kind == "agent_connected" and e.subject.endswith(f"/{agent}") for e in self.eyes.events)

    def grants_since(self, bank: str, unix_s: float) -> int:
        """Return how many grants a bank was given since a moment."""
        agent, _, name = bank.partition("/")
        return sum(
            e.kind == "grant_issued"
            and e.subject.endswith(f"agents/{agent}/banks/{name}")
            and e.event_time.ToMicroseconds() / 1e6 > unix_s
            for e in self.eyes.events
        )

    # Faults.

    def kill(self, name: str) -> None:
        """SIGKILL one process; its children must find out by themselves."""
        process = self._running[name]
        process.kill()
        process.wait(10.0)
        self._killed.append(process.pid)

    def stop(self, name: str) -> None:
        """SIGSTOP one process."""
        self._running[name].send_signal(signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        """SIGCONT one process."""
        self._running[name].send_signal(signal.SIGCONT)

    async def wait_exit(self, name: str, timeout_s: float) -> tuple[int, str]:
        """Return the exit status of a process that ends by itself, and its last words."""
        status = await asyncio.to_thread(self._running[name].wait, timeout_s)
        return status, self.log(name)[-2000:]

    def log(self, name: str) -> str:
        """Return what a process has said."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    # The controller's record.

    @property
    def journal(self) -> Path:
        """Return the journal's file."""
        return self.folder / "controller" / "journal.sqlite"

    def journaled_phase(self, flip: str) -> str:
        """Return the phase of a flip as the journal holds it."""
        with contextlib.closing(sqlite3.connect(self.journal)) as database:
            row = database.execute(
                "SELECT kind FROM entries WHERE subject LIKE ? AND kind LIKE 'flip_%' ORDER BY revision DESC LIMIT 1",
                (f"%flips/{flip}",),
            ).fetchone()
        return "" if row is None else str(row[0]).removeprefix("flip_")

    def cut_journal_after(self, kind: str, flip: str) -> tuple[int, list[str]]:
        """Let the journal end with a flip's first event of a kind, as a kill right after it would; return what is gone."""
        with contextlib.closing(sqlite3.connect(self.journal)) as database, database:
            (revision,) = database.execute(
                "SELECT min(revision) FROM entries WHERE subject LIKE ? AND kind = ?", (f"%flips/{flip}", kind)
            ).fetchone()
            rows = database.execute("SELECT kind FROM entries WHERE revision > ? ORDER BY revision", (revision,))
            gone = [str(row[0]) for row in rows]
            database.execute("DELETE FROM entries WHERE revision > ?", (revision,))
            database.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'entries'", (revision,))
        return int(revision), gone

    def copy_journal(self, to: Path) -> int:
        """Copy the journal as it is now, whole; return its newest revision."""
        with (
            contextlib.closing(sqlite3.connect(self.journal)) as source,
            contextlib.closing(sqlite3.connect(to)) as target,
        ):
            source.backup(target)
            (newest,) = target.execute("SELECT max(revision) FROM entries").fetchone()
        return int(newest)

    def back_up(self, to: Path) -> int:
        """Copy the journal as an operator does, while the controller runs; return its newest revision."""
        self._command("backup", str(to), "--data-dir", str(self.journal.parent))
        with contextlib.closing(sqlite3.connect(to)) as copy:
            (newest,) = copy.execute("SELECT max(revision) FROM entries").fetchone()
        return int(newest)

    def restore(self, backup: Path) -> str:
        """Put a backup in the journal's place as an operator does; return what was said."""
        return self._command("restore", str(backup), "--data-dir", str(self.journal.parent))

    def _command(self, *words: str) -> str:
        command = [sys.executable, "-m", "swingbus_controller.main", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60.0, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def remove_journal(self) -> None:
        """Lose the journal."""
        for tail in ("", "-wal", "-shm"):
            self.journal.with_name(self.journal.name + tail).unlink(missing_ok=True)

    def restore_journal(self, copy: Path) -> None:
        """Put an older journal in its place."""
        self.remove_journal()
        shutil.copy(copy, self.journal)

    def tear_journal(self) -> None:
        """Cut the journal's file in half."""
        with contextlib.closing(sqlite3.connect(self.journal)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        _cut_in_half(self.journal)

    # An agent's record.

    def records(self, agent: str) -> list[Path]:
        """Return the agent's records that exist: grants, order and spool (with its write-ahead log)."""
        state = self.folder / "agents" / agent
        names = ("grants.json", "order.json", "spool.sqlite3", "spool.sqlite3-wal", "spool.sqlite3-shm")
        return [path for name in names if (path := state / name).exists()]

    def copy_records(self, agent: str, to: Path) -> None:
        """Copy an agent's records as they are now."""
        to.mkdir(parents=True)
        for path in self.records(agent):
            shutil.copy(path, to / path.name)

    def lose_records(self, agent: str) -> None:
        """Remove an agent's records."""
        for path in self.records(agent):
            path.unlink()

    def restore_records(self, agent: str, copy: Path) -> None:
        """Put older records in place of an agent's."""
        self.lose_records(agent)
        for path in copy.iterdir():
            shutil.copy(path, self.folder / "agents" / agent / path.name)

    def tear_records(self, agent: str) -> None:
        """Cut an agent's records in half."""
        for path in self.records(agent):
            if not path.name.endswith("-shm"):
                _cut_in_half(path)

    # What is so.

    async def truth(self) -> dict[str, Any]:
        """Return the simulator's own state."""
        return await ask(self.folder / "sim", {"do": "status"})

    async def true_w(self, node: str = "grid") -> float:
        """Return the watts that truly flow at a node."""
        state = await self.truth()
        return float(state["nodes"][node]["power_w"])

    def tenants(self) -> list[str]:
        """Return what lives on the GPUs: `mining` and `inference`, one entry a process."""
        return [kind for _, kind in _living_workloads(str(self.folder / HELD["shelf"]))]

    def working(self) -> tuple[int, ...]:
        """Return the processes that live on the GPUs."""
        return tuple(sorted(pid for pid, _ in _living_workloads(str(self.folder / HELD["shelf"]))))

    def check_bounds(self) -> None:
        """Check what holds at any moment: nothing authorised over a limit, never two tenants, no killed program's child left."""
        assert self.authorised_ws() == 0.0, (self.folder / "verdict.json").read_text()
        assert not self.two_tenants, self.two_tenants[:3]
        left = [words for session in self._killed for words in _session_words(session)]
        assert not left, f"what a killed program started lives on: {left}"

    def _watch_tenants(self) -> None:
        shelf = str(self.folder / HELD["shelf"])
        while not self._watching.wait(_WATCH_TENANTS_S):
            found = _living_workloads(shelf)
            if len(found) > 1:
                self.two_tenants.append(f"{time.monotonic():.1f}: {found}")

    async def calm(self, timeout_s: float) -> dict[str, Any]:
        """Return the banks once no flip is open and every bank is HELD by the meter."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            self._check_alive()
            banks = await self.eyes.banks(for_s=max(1.0, deadline_s - time.monotonic()))
            flips = await self.eyes.flips()
            still = [f"{f.name} {phase_of(f)}" for f in flips if phase_of(f) not in OVER]
            unheld = [f"{name} {bank.state}" for name, bank in banks.items() if bank.state != "HELD"]
            if not still and not unheld and banks:
                return banks
            assert time.monotonic() < deadline_s, (
                f"not calm within {timeout_s:g} s: open flips {still}, banks {unheld or list(banks)}\n"
                + self.log(CONTROLLER)[-3000:]
            )
            await asyncio.sleep(0.1)

    async def mode(self) -> str:
        """Return what the controller's banks say the GPUs do."""
        counts = dict((await self.eyes.banks())[GPUS].mode_counts)
        return max(counts, key=lambda mode: counts[mode], default="").lower()

    async def mining_count(self) -> int:
        """Return how many miners truly mine."""
        states: dict[str, int] = (await self.truth())["states"]
        return states.get("M", 0)

    async def bring_gpus_to(self, mode: str) -> None:
        """Order the GPUs to a mode without any fault, if they are elsewhere."""
        await self.calm(40.0)
        now = await self.mode()
        if now != mode:
            flip = await self.eyes.request_flip(GPUS, now, mode, 8)
            await self.eyes.wait_event("flip_active", f"flips/{flip}", 40.0)
            await self.calm(40.0)

    async def bring_miners_to(self, count: int) -> None:
        """Order as many miners to work as there shall be, without any fault."""
        await self.calm(40.0)
        counts = dict((await self.eyes.banks())[ASICS].mode_counts)
        missing = count - counts.get("MINING", 0)
        if missing > 0:
            flip = await self.eyes.request_flip(ASICS, "standby", "mining", missing)
            await self.eyes.wait_event("flip_active", f"flips/{flip}", 40.0)
            await self.calm(40.0)

    def authorised_ws(self) -> float:
        """Return the watt-seconds over any limit that nobody but us explains, as the judge has it so far."""
        path = self.folder / "verdict.json"
        if not path.exists():
            return 0.0
        return float(json.loads(path.read_text())["over_cap_ws"]["authorised"])

    def _check_alive(self) -> None:
        for name, process in self._running.items():
            status = process.poll()
            assert status is None, f"{name} ended with {status}:\n{self.log(name)[-3000:]}"

    async def _until(self, is_so: Any, timeout_s: float, what: str) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not is_so():
            self._check_alive()
            assert time.monotonic() < deadline_s, f"within {timeout_s:g} s it was not so that {what}"
            await asyncio.sleep(0.05)


def phase_of(flip: Any) -> str:
    """Return a flip's phase as a word."""
    name: str = type(flip).DESCRIPTOR.fields_by_name["phase"].enum_type.values_by_number[flip.phase].name
    return name.removeprefix("FLIP_PHASE_")


def _living_workloads(shelf: str) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if "swingbus_sim.workloads" not in words or shelf not in words:
                continue
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        kind = next((word for word in words if word in _KINDS), "?")
        if state not in ("Z", "X"):
            found.append((int(entry.name), kind))
    return found


def _session_words(session: int) -> list[str]:
    """Return the command lines of a session's living processes."""
    found: list[str] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, _, _, sid = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:4]
            if int(sid) == session and state not in ("Z", "X"):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


def _cut_in_half(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
