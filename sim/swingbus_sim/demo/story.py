"""The run itself: build the site's files, start every process, play the timeline, end everything.

The story's second 0 is when the simulator's clock starts; what the runner must do itself (kill, restart, cut, order) happens at the
scenario's own seconds. Everything that an operator would do goes through `swingctl`.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import grpc

from swingbus.faults import SwingbusError, TimedOut, WrongState
from swingbus_sim.demo.controller import SERVER, Controller, ControllerProcess, free_port
from swingbus_sim.demo.files import (
    NO_CLUSTER,
    InCluster,
    Ports,
    agent_file,
    agents_of,
    broken_model,
    longest_flip_s,
    signals_of,
    site_file,
)
from swingbus_sim.demo.last_flips import wait_for_flips
from swingbus_sim.demo.links import Link
from swingbus_sim.demo.processes import Processes, kill_sessions_with
from swingbus_sim.demo.watcher import Watcher
from swingbus_sim.nvml.build import driver_environment
from swingbus_sim.scenario import Event, Scenario

MEND_MODEL_S = 150.0
PUSH_PERIOD_S = 1.0
PIN_AGAIN_S = 1.0
_SIM_OUTLIVES_S = 60.0


@dataclass(slots=True)
class Run:
    """One run's folder, processes and diary."""

    scenario: Scenario
    scenario_name: str
    folder: Path
    data: Path | None
    shift: int
    processes: Processes
    t0_s: float = 0.0
    diary: list[tuple[float, str]] = field(default_factory=list)
    killed_mid_flip: bool = False
    controller_killed_s: float | None = None
    waited_for_flips_s: float = 0.0

    def now(self) -> float:
        """Return the scenario's second."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.t0_s

    def note(self, text: str) -> None:
        """Write a line into the diary."""
        self.diary.append((self.now(), text))

    def bundle(self, name: str) -> Path:
        """Return where a bundle lies."""
        return self.folder / "bundles" / f"{name}.bundle"


class ClusterSide(Protocol):
    """The cluster beside a site some of whose hosts are its nodes."""

    async def prepare(self) -> None: ...

    def in_cluster(self) -> InCluster: ...

    async def offer_gpus(self, shelves: Path) -> None:
        """Let nodes offer the simulator's GPUs, which are there now."""
        ...

    async def close(self) -> None: ...


def program(module: str) -> list[str]:
    """Return the command of one of our programs in this Python."""
    return [sys.executable, "-m", module]


async def command(words: list[str], *, timeout_s: float = 30.0) -> tuple[int, str]:
    """Run one short command; return its status and output."""
    process = await asyncio.create_subprocess_exec(
        *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(timeout_s):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise TimedOut(f"{' '.join(words[:6])} took longer than {timeout_s:g} s") from None
    return process.returncode or 0, output.decode(errors="replace")


async def _must(words: list[str]) -> str:
    status, output = await command(words)
    if status != 0:
        raise WrongState(f"{' '.join(words)} failed with {status}:\n{output}")
    return output


class Story:
    """Plays one scenario with the real programs."""

    def __init__(
        self,
        run: Run,
        *,
        command: list[str] | None = None,
        controller: Controller | None = None,
        pin_before_end_s: float | None = None,
        say: Callable[[str], None] = print,
        pods: ClusterSide | None = None,
    ) -> None:
        """Take the run.

        Args:
            command: of the controller's program, if not ours in this Python.
            controller: what starts and kills it; None: it is a process of that command.
            pin_before_end_s: pin every bank so long before the end and then wait for flips that are open; None: let it decide until
                the end, and end there.
            pods: the cluster whose nodes some of the site's hosts are.
        """
        self.run = run
        self._pods = pods
        self._in_cluster = NO_CLUSTER
        self._pin_before_end_s = pin_before_end_s
        self.say = say
        self.watcher: Watcher | None = None
        self._command = command or program("swingbus_controller.main")
        own = [*self._command, "run", "--config", str(run.folder / "site.toml")]
        self.controller = controller or ControllerProcess(run.processes, own)
        self._links: dict[str, Link] = {}
        self._ports: Ports | None = None

    @property
    def endpoint(self) -> str:
        """Return the controller's address."""
        assert self._ports is not None
        return f"127.0.0.1:{self._ports.controller}"

    async def prepare(self) -> None:
        """Write every file: authority, bundles, configurations."""
        run = self.run
        if run.folder.exists():
            shutil.rmtree(run.folder)
        (run.folder / "bundles").mkdir(parents=True)
        if self._pods is not None:
            await self._pods.prepare()
            self._in_cluster = self._pods.in_cluster()
        agents = agents_of(run.scenario)
        controller_port = self.controller.take_port()
        for agent in agents:
            self._links[agent] = Link(controller_port)
        links = {agent: await link.open() for agent, link in self._links.items()}
        self._ports = Ports(controller=controller_port, metrics=free_port(), links=links)
        now = datetime.now(UTC)
        site = site_file(
            run.scenario,
            self._ports,
            start_time=(now - timedelta(minutes=1)).isoformat(timespec="seconds"),
            end_time=(now + timedelta(days=1)).isoformat(timespec="seconds"),
            cluster=self._in_cluster,
        )
        (run.folder / "site.toml").write_text(site)
        pki = str(run.folder / "pki")
        await _must([*self._command, "init", "--pki", pki, "--endpoint", self.endpoint])
        # The authority issues one after the other; agents join while it does.
        async with asyncio.TaskGroup() as joins:
            for agent in agents:
                await self._issue(["--agent", agent], agent)
                joins.create_task(self._join(agent))
        for name, role in (("desk", "operator"), ("chief", "admin"), ("guest", "viewer")):
            await self._issue(["--operator", name, "--role", role], name)

    async def _join(self, agent: str) -> None:
        assert self._ports is not None
        folder = self.run.folder / "agents"
        state = folder / agent
        state.mkdir(parents=True)
        (folder / f"{agent}.toml").write_text(
            agent_file(self.run.scenario, agent, state, self._ports, run_dir=self.run.folder, cluster=self._in_cluster)
        )
        config = str(folder / f"{agent}.toml")
        await _must([*program("swingbus_agent.main"), "join", str(self.run.bundle(agent)), "--config", config])

    async def _issue(self, holder: list[str], name: str) -> None:
        pki = str(self.run.folder / "pki")
        out = str(self.run.bundle(name))
        await _must([*self._command, "certificate", "issue", "--pki", pki, *holder, "--out", out])

    async def start(self) -> None:
        """Start simulator, judge, controller and agents; the clock starts when the controller answers."""
        run = self.run
        broken_model(run.folder).touch()
        await self.controller.start()
        watcher = Watcher(
            bundle=run.bundle("desk"),
            endpoint=self.endpoint,
            site=run.scenario.site,
            now=run.now,
            unix_at_zero=0.0,
            confirmations=run.folder / "confirmations.jsonl",
        )
        self.watcher = watcher
        run.t0_s = time.clock_gettime(time.CLOCK_BOOTTIME) + 1.0
        watcher.unix_at_zero = time.time() + run.t0_s - time.clock_gettime(time.CLOCK_BOOTTIME)
        scenario = ["--shift", str(run.shift), *(["--data", str(run.data)] if run.data else [])]
        if self._pin_before_end_s is not None:
            # It is told to end when the last flip is over; by itself only where nobody is left to tell it.
            scenario += ["--for", f"{run.scenario.duration_s + longest_flip_s() + _SIM_OUTLIVES_S:g}"]
        (run.folder / "sim").mkdir()
        run.processes.start(
            "sim",
            [
                *program("swingbus_sim.main"),
                "run",
                run.scenario_name,
                "--dir",
                str(run.folder / "sim"),
                "--t0",
                f"{run.t0_s:.3f}",
                *scenario,
            ],
        )
        run.processes.start(
            "judge",
            [
                *program("swingbus_sim.main"), "judge", "--truth", str(run.folder / "sim" / "truth.sock"),
                "--scenario", run.scenario_name, "--out", str(run.folder / "verdict.json"),
                "--confirmations", str(run.folder / "confirmations.jsonl"),
            ],
        )  # fmt: skip
        (run.folder / "confirmations.jsonl").touch()
        await self._wait_file(run.folder / "sim" / "sim.json", 30.0)
        if self._pods is not None:
            await self._pods.offer_gpus(run.folder / "sim" / "shelves")
        for agent in agents_of(run.scenario):
            self.start_agent(agent)
        await self._wait_controller()

    async def _wait_file(self, path: Path, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not path.exists():
            self._check_alive()
            if time.monotonic() > deadline_s:
                raise TimedOut(f"{path} was not made within {timeout_s:g} s")
            await asyncio.sleep(0.1)

    def _check_alive(self) -> None:
        dead = self.run.processes.ended()
        if dead:
            name, status = next(iter(dead.items()))
            tail = self.run.processes.log(name).read_text(errors="replace")[-1500:]
            raise WrongState(f"{name} ended with {status} at the start:\n{tail}")

    async def _wait_controller(self) -> None:
        assert self.watcher is not None
        for _ in range(60):
            await asyncio.sleep(0.5)
            self._check_alive()
            status, _ = await command([*self._swingctl("desk"), "site", "list"], timeout_s=20.0)
            if status == 0:
                return
        raise TimedOut(f"the controller did not answer; its log is {self.run.processes.log(SERVER)}")

    def start_agent(self, agent: str) -> None:
        """Start or restart an agent."""
        environment: dict[str, str] = {}
        host = next((h for h in self.run.scenario.hosts if h.agent == agent), None)
        if host is not None:
            environment = driver_environment(self.run.folder / "sim" / "shelves" / host.name)
        config = str(self.run.folder / "agents" / f"{agent}.toml")
        self.run.processes.start(
            agent, [*program("swingbus_agent.main"), "run", "--config", config], environment=environment
        )

    def _swingctl(self, who: str) -> list[str]:
        return [*program("swingctl.main"), "--bundle", str(self.run.bundle(who)), "--endpoint", self.endpoint]

    async def swingctl(self, *words: str, who: str = "desk") -> tuple[int, str]:
        """Run swingctl as somebody and put it into the diary."""
        status, output = await command([*self._swingctl(who), *words])
        self.run.note(f"{who}$ swingctl {' '.join(words)}  -> exit {status}")
        return status, output

    async def play(self) -> None:
        """Play the timeline until the scenario's end, and on while flips are open that can still end."""
        assert self.watcher is not None
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self.watcher.poll()),
                group.create_task(self.watcher.watch()),
                group.create_task(self.push_market()),
                group.create_task(self._mend_model()),
                group.create_task(self._pin_before_end()),
            ]
            players = [group.create_task(self._perform(event)) for event in self.run.scenario.events]
            await self._sleep_until(self.run.scenario.duration_s)
            await self._wait_for_flips()
            for task in (*tasks, *players):
                task.cancel()

    async def finish(self) -> None:
        """End the simulator first, so that the judge hears the end; agents drain what they have, then all stops."""
        if self._pin_before_end_s is not None:
            self.run.processes.send("sim", signal.SIGTERM)
        for name in ("baselines", "sim", "judge"):
            if name in self.run.processes.names():
                try:
                    await asyncio.to_thread(self.run.processes.wait, name, 20.0)
                except SwingbusError:
                    self.run.processes.send(name, signal.SIGTERM)

    async def close(self) -> None:
        """Leave nothing behind."""
        if self.watcher is not None:
            await self.watcher.close()
        await asyncio.to_thread(self.run.processes.stop_all)
        for link in self._links.values():
            await link.close()
        if self._pods is not None:
            await self._pods.close()
        kill_sessions_with(str(self.run.folder))

    # What happens when.

    async def _sleep_until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, at_s - self.run.now()))

    async def push_market(self) -> None:
        """Push the scenario's market until cancelled."""
        assert self.watcher is not None
        last: dict[str, float] = {}
        pushed_s = -1e9
        while True:
            values = signals_of(self.run.scenario, max(0.0, self.run.now()), self._in_cluster)
            if values != last or self.run.now() - pushed_s > 20.0:
                try:
                    await self.watcher.push(values, request_id=uuid.uuid4().hex)
                    last, pushed_s = values, self.run.now()
                except Exception as error:  # noqa: BLE001 - a controller that is down takes no prices: try again
                    self.run.note(f"market push failed, retried: {type(error).__name__}")
            await asyncio.sleep(PUSH_PERIOD_S)

    async def _mend_model(self) -> None:
        await self._sleep_until(MEND_MODEL_S)
        broken_model(self.run.folder).unlink(missing_ok=True)
        self.run.note("the broken model of one host was replaced")

    async def _pin_before_end(self) -> None:
        """Pin every bank shortly before the end, as an operator would before leaving: what is open finishes, nothing new begins."""
        assert self.watcher is not None
        if self._pin_before_end_s is None:
            return
        await self._sleep_until(self.run.scenario.duration_s - self._pin_before_end_s)
        left = [bank.name for bank in self.watcher.seen.banks]
        told: set[str] = set()
        while left := [name for name in left if not await self._is_pinned(name, told)]:
            await asyncio.sleep(PIN_AGAIN_S)  # the controller may have been killed a moment ago
        self.run.note("every bank pinned: open flips finish, no new ones begin")

    async def _is_pinned(self, bank: str, told: set[str]) -> bool:
        assert self.watcher is not None
        try:
            await self.watcher.pin(bank, reason="the story ends")
        except grpc.aio.AioRpcError as error:
            if bank not in told:
                self.run.note(f"{bank} is not pinned yet: {error.details()}")
                told.add(bank)
            return False
        return True

    async def _wait_for_flips(self) -> None:
        assert self.watcher is not None
        # Without a pin new ones begin all the time.
        if self._pin_before_end_s is None:
            return
        self.run.waited_for_flips_s = await wait_for_flips(
            self.watcher.flips,
            longest_s=longest_flip_s(),
            unix_at_zero=self.watcher.unix_at_zero,
            now=self.run.now,
            note=self.run.note,
        )

    async def _perform(self, event: Event) -> None:
        await self._sleep_until(event.at_s)
        match event.kind:
            case "limit":
                await self._curtail(event)
            case "kill_agent":
                await self._kill_agent(event)
            case "cut_link":
                await self._cut_link(event)
            case "kill_controller":
                await self._kill_controller(event)
            case _:
                self.run.note(f"{event.kind} {', '.join(event.targets) or event.label}")

    async def _curtail(self, event: Event) -> None:
        assert event.limit_w is not None
        status, output = await self.swingctl(
            "curtail", "start", "--site", self.run.scenario.site, "--feeder", event.targets[0], "--limit", f"{event.limit_w / 1000:g}kW",
            "--for", f"{event.duration_s:g}s", "--notice", f"{event.notice_s:g}s", "--ramp", f"{event.ramp_s:g}s",
            "--reason", "grid event of the scenario", "--yes",
        )  # fmt: skip
        if status != 0:
            self.run.note(f"curtail failed: {output.strip()}")

    async def _kill_agent(self, event: Event) -> None:
        for agent in event.targets:
            self.run.processes.send(agent, signal.SIGKILL)
            self.run.note(f"edge box {agent} killed; its machines go on")
        if event.restart_after_s is not None:
            await self._sleep_until(event.at_s + event.restart_after_s)
            for agent in event.targets:
                self.run.processes.stop(agent)
                self.start_agent(agent)
                self.run.note(f"edge box {agent} is back")

    async def _cut_link(self, event: Event) -> None:
        for agent in event.targets:
            self._links[agent].cut()
            self.run.note(f"link of {agent} cut")
        await self._sleep_until(event.at_s + (event.duration_s or 0.0))
        for agent in event.targets:
            self._links[agent].mend()
            self.run.note(f"link of {agent} mended")

    async def _kill_controller(self, event: Event) -> None:
        assert self.watcher is not None
        # In mid-flip: wait a little for one to be open, but not for ever.
        for _ in range(60):
            if any(
                phase in {"draining", "released", "settling", "starting", "verifying"} for phase in self._open_phases()
            ):
                self.run.killed_mid_flip = True
                break
            await asyncio.sleep(0.25)
        self.run.controller_killed_s = self.run.now()
        await self.controller.kill()
        self.run.note(f"controller killed{' in mid-flip' if self.run.killed_mid_flip else ''}")
        await asyncio.sleep(event.restart_after_s or 0.0)
        await self.controller.come_back()
        self.run.note("controller restarted on its journal")

    def _open_phases(self) -> set[str]:
        assert self.watcher is not None
        newest: dict[str, str] = {}
        for _, event in self.watcher.seen.events:
            if event.kind.startswith("flip_"):
                newest[event.subject] = event.facts.get("phase", "")
        return set(newest.values())


def read_json(path: Path) -> dict[str, object]:
    """Return a JSON object from a file; an empty one where it does not exist."""
    if not path.exists():
        return {}
    value: dict[str, object] = json.loads(path.read_text())
    return value
