"""The site of these tests: that of the tests of pods with watts for one GPU that serves, little patience, a controller that kills if told.

Looks all the time whether a GPU has two tenants and whether more than one may draw what serving takes. Keeps how each case went.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc.aio

from swingbus_sim.demo.controller import SERVER
from swingbus_sim.demo.files import MINING_LIMIT_W
from swingbus_sim.demo_kube.manifests import CUSTOMERS, MINERS
from tests.cluster.kills.strikes import CONTROLLER, Strike, Strikes, Struck
from tests.cluster.pods_site import GPUS, PodsSite

SCENARIO = Path(__file__).parents[1] / "scenarios" / "kills.toml"
NAME, SHIFT = "tests-kills", 44
WEB = "web"
ALL = 2 * GPUS
AWAY_S = 1.0
_LOOK_S = 0.25
_STRIKES_WITHIN_S = 60.0
# With three devices kept free (the default) no limit would be near what eight GPUs can draw. These never stray: they are simulated.
_NO_SPARE = '\n[protocol.margin_device_count]\nvalue = 0\nwhy = "a limit that binds eight GPUs"\n'
# Limits of these GPUs are in force within a second: what is waited for elsewhere because real ones are slow would be most of these tests.
_QUICKER_SITE = (
    ("settle_s = 10.0", "settle_s = 2.0"),
    ("[protocol.disturbance_s]\nvalue = 15.0", "[protocol.disturbance_s]\nvalue = 2.0"),
    # Two starts of the controller, one after the other, on a busy machine: no grant shall run out meanwhile, for that rests miners.
    ("[protocol.ttl_s]\nvalue = 20.0", "[protocol.ttl_s]\nvalue = 60.0"),
)
_QUICKER_AGENT = (("quarantine_s = 12.0", "quarantine_s = 2.0"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a case went; `flips` says what became of each flip of it."""

    case: str
    flips: str
    seconds: float


class KillSite(PodsSite):
    """The running site."""

    def __init__(self, folder: Path, images: Path, say: Callable[[str], None]) -> None:
        strikes = folder / "strikes"
        strikes.mkdir()
        controller = [sys.executable, "-m", "tests.cluster.kills.struck_controller", str(strikes)]
        super().__init__(folder, images, say, scenario_file=SCENARIO, name=NAME, shift=SHIFT, controller=controller)
        self.strikes = Strikes(strikes)
        self.endings: list[Ending] = []
        self.wrong: list[str] = []
        self.customers_seen: set[str] = set()
        self._looking: asyncio.Task[None] | None = None
        self._price_usd = self.run.scenario.market.inference_usd_per_gpu_hour

    async def prepare(self) -> None:
        await super().prepare()
        folder = self.run.folder
        _change(folder / "site.toml", _QUICKER_SITE, _NO_SPARE)
        for host in self.run.scenario.hosts:
            _change(folder / "agents" / f"{host.agent}.toml", _QUICKER_AGENT)

    async def start(self) -> None:
        await super().start()
        await self.pods.set_pool(timing={"dwellMining": "1s", "dwellInference": "1s", "liftDeadline": "20s"})
        await self.at_rest(serving=0)
        self._looking = asyncio.create_task(self._look())
        self._tasks.append(self._looking)

    @property
    def is_looking(self) -> bool:
        """Whether `wrong` and `customers_seen` are of now."""
        return self._looking is not None and not self._looking.done()

    async def _look(self) -> None:
        """Look at what is physically so, and which customers' pods ever were, until cancelled."""
        while True:
            raised: list[str] = []
            for number, host in enumerate(self.pods.hosts):
                counts = Counter(process.gpu for process in self.working(number))
                self._note_wrong(f"{n} tenants on {host}-gpu{gpu}" for gpu, n in counts.items() if n > 1)
                enforced = enumerate(await self.enforced_w(number))
                raised += [f"{host}-gpu{gpu} may draw {watts:g} W" for gpu, watts in enforced if watts > MINING_LIMIT_W]
            self._note_wrong([", ".join(raised)] if len(raised) > 1 else [])
            self.customers_seen |= {pod["metadata"]["uid"] for pod in await self.pods.pods(CUSTOMERS)}
            await asyncio.sleep(_LOOK_S)

    def _note_wrong(self, what: Iterable[str]) -> None:
        self.wrong += [f"{self.run.now():.1f} s: {each}" for each in what]

    # Waiting.

    async def at_rest(self, *, serving: int, waiting: int = 0) -> None:
        """Wait until so many serve, everybody else mines, so many wait gated, no flip is open and the meter has proven every limit."""

        async def is_so() -> bool:
            if self.tenants() != {"mining": ALL - serving, "inference": serving}:
                return False
            if await self.gated_count() != waiting:
                return False
            pods = [pod for name in (CUSTOMERS, MINERS) for pod in await self.pods.pods(name)]
            is_still = len(pods) == ALL + waiting and not any(p["metadata"].get("deletionTimestamp") for p in pods)
            return is_still and not self.flips() and await self._is_held()

        await self.until(
            is_so, f"{serving} GPUs serve, {ALL - serving} mine, {waiting} pods wait, and all is quiet and proven"
        )

    async def _is_held(self) -> bool:
        assert self.story.watcher is not None
        try:
            await self.story.watcher.look()
        except grpc.aio.AioRpcError:
            return False
        return {bank.state for bank in self.story.watcher.seen.banks} == {"HELD"}

    async def says(self, statuses: Mapping[str, str], *, reason: tuple[str, str] | None = None) -> None:
        """Wait until the pool's conditions have these statuses, and one of them its reason."""

        async def is_so() -> bool:
            conditions = (await self.pods.pool()).get("status", {}).get("conditions", [])
            told = {c["type"]: c["status"] for c in conditions}
            is_told = reason is None or reason in {(c["type"], c["reason"]) for c in conditions}
            return is_told and statuses.items() <= told.items()

        await self.until(is_so, f"the pool says {dict(statuses)} {reason or ''}", timeout_s=30.0)

    # What the market does.

    def pay_for_inference(self, *, pays: bool) -> None:
        """Let inference pay what the scenario says, or nothing."""
        price_usd = self._price_usd if pays else 0.0
        market = replace(self.run.scenario.market, inference_usd_per_gpu_hour=price_usd)
        self.run.scenario = replace(self.run.scenario, market=market)

    # Strikes.

    def arm(self, *strikes: Strike) -> None:
        """Have these strike, one after the other."""
        self._name_agents()
        self.strikes.arm(strikes)

    def _name_agents(self) -> None:
        hosts = self.run.scenario.hosts
        self.strikes.name_agents({host.agent: self.run.processes.pid(host.agent) for host in hosts})

    async def struck(self, number: int) -> Struck:
        """Return what the strike of a number has struck, whose process is dead by now."""

        def has_struck() -> bool:
            return len(self.strikes.struck()) > number

        await self.until(has_struck, f"strike {number + 1} strikes", timeout_s=_STRIKES_WITHIN_S)
        struck = self.strikes.struck()[number]
        name = SERVER if struck.victim == CONTROLLER else struck.agent
        assert self.run.processes.pid(name) == struck.pid
        status = await asyncio.to_thread(self.run.processes.wait, name, 10.0)
        assert status == -signal.SIGKILL, f"{name} ended with {status}"
        return struck

    async def is_missed(self, struck: Struck) -> None:
        """Wait until the pool says that the agent that was struck is missed."""
        await self.says({"AgentsReporting": "False"}, reason=("AgentsReporting", "AgentSilent"))
        assert struck.agent in (await self.condition("AgentsReporting"))["message"]

    async def bring_back(self, struck: Struck) -> None:
        """Start again who was struck, on what its folder holds."""
        if struck.victim == CONTROLLER:
            await self.story.controller.come_back()
        else:
            self.run.processes.stop(struck.agent)
            self.story.start_agent(struck.agent)
            self._name_agents()

    # What the record and the cluster say.

    def revision(self) -> int:
        """Return the newest revision of the controller's record, read past the controller."""
        ((newest,),) = self.ask_journal("SELECT max(revision) FROM entries")
        return int(newest)

    def kinds_of_flips(self, after_revision: int) -> dict[str, list[str]]:
        """Return the kinds of the records of each change of tenants since a revision, oldest first."""
        found: dict[str, list[str]] = {}
        for subject, kind in self.ask_journal(
            "SELECT subject, kind FROM entries WHERE revision > ? AND kind LIKE 'flip~_%' ESCAPE '~' "
            "AND json_extract(facts, '$.is_mode_flip') = 'true' ORDER BY revision",
            after_revision,
        ):
            found.setdefault(str(subject).rpartition("/")[2], []).append(str(kind))
        return found

    def ask_journal(self, question: str, *values: object) -> list[Any]:
        """Ask the journal's file."""
        path = self.run.folder / "controller" / "journal.sqlite"
        # Read only: what a controller that was killed left there, it has to mend itself.
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            return database.execute(question, values).fetchall()

    async def explain(self) -> str:
        """Tell how things stand and what the record says of the last changes, for a failed wait."""
        entries = self.ask_journal(
            "SELECT revision, subject, kind, facts FROM entries WHERE kind != 'bank_placed' ORDER BY revision DESC LIMIT 80"
        )
        return "\n".join([await super().explain(), *(" ".join(map(str, entry)) for entry in reversed(entries))])

    async def gated_count(self) -> int:
        """Return how many pods wait behind the gate."""
        return sum(bool(pod["spec"].get("schedulingGates")) for pod in await self.pods.pods(CUSTOMERS))

    async def events(self, reason: str) -> list[dict[str, Any]]:
        """Return the cluster's events of a reason in both namespaces."""
        found = []
        for namespace in (CUSTOMERS, MINERS):
            answer = await asyncio.to_thread(self.pods.up.api.get, f"/api/v1/namespaces/{namespace}/events")
            found += [event for event in answer["items"] if event["reason"] == reason]
        return found

    async def pod(self, name: str) -> dict[str, Any] | None:
        """Return a pod by `namespace/name`, None where it is gone."""
        namespace, _, short = name.partition("/")
        return next((p for p in await self.pods.pods(namespace) if p["metadata"]["name"] == short), None)


def _change(path: Path, changes: Iterable[tuple[str, str]], more: str = "") -> None:
    """Change a file of the site; what is to be changed has to be there."""
    text = path.read_text()
    for before, after in changes:
        assert before in text, f"{path} does not say {before}"
        text = text.replace(before, after)
    path.write_text(text + more)
