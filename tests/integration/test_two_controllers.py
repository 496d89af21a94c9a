"""Two real controllers and one cluster: on one data folder the newer takes over at once; with a folder of its own it waits for the lease.

Each speaks to the API server's double with its own token, so every write is known by who sent it. No agent is there: the pool says so.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from swingbus_controller.domain.cluster.lease_term import LeaseTerms
from tests.fakes.api_server.certificates import write_certificates
from tests.fakes.api_server.server import FakeApiServer
from tests.fakes.controllers import TestSite
from tests.fakes.site_files import BANK, FEEDER, SITE

pytestmark = pytest.mark.slow
TERMS = LeaseTerms()
LEASE = ("leases", "swingbus-system", "swingbus-controller")
POOL = ("capacitypools", "", "pool")
_READS = ("get", "list", "watch")
_HEAD = """
[controller]
listen = "127.0.0.1:0"
metrics_listen = "off"
data_dir = "data"
pki_dir = "pki"

[kubernetes]
kubeconfig = "{kubeconfig}"
"""
_KUBECONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "here",
    "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
}


def site_text(kubeconfig: Path) -> str:
    """Return a site of one GPU host that runs pods."""
    text = SITE.format(
        limit_w=20_000.0,
        authority="control",
        protocol='adopt_grace_s = {value = 1.0, why = "tests"}',
        feeders=FEEDER.format(name="g1", kind="pdu", losses_ratio=0.0, agent="gpu1"),
        banks=BANK.format(agent="gpu1", bank="gpus", feeder="g1", klass="h100", count=8)
        + 'workloads = "kubernetes"\nnode = "n1"\npool = "pool"\n',
        reservation="",
    )
    return _HEAD.format(kubeconfig=kubeconfig) + text


@dataclass
class Witness(FakeApiServer):
    """The double, and who wrote what: (token, verb, resource)."""

    writes: list[tuple[str, str, str]] = field(default_factory=list)

    def _authorize(self, request: web.Request, verb: str, plural: str, subresource: str) -> None:
        super()._authorize(request, verb, plural, subresource)
        if verb not in _READS:
            token = request.headers["Authorization"].removeprefix("Bearer ")
            self.writes.append((token, verb, f"{plural}/{subresource}" if subresource else plural))

    def written_by(self, token: str) -> list[tuple[str, str]]:
        """Return what somebody wrote."""
        return [(verb, what) for who, verb, what in self.writes if who == token]

    @property
    def holder(self) -> str:
        """Who holds the lease, empty if nobody."""
        lease = self.store.objects.get(LEASE)
        return str(lease["spec"]["holderIdentity"]) if lease else ""

    @property
    def pool_status(self) -> dict[str, Any]:
        """What is told of the pool."""
        return dict(self.store.objects[POOL].get("status") or {})


@dataclass
class Running:
    """A controller process."""

    token: str
    log: Path
    process: asyncio.subprocess.Process

    def says(self, event: str) -> list[dict[str, Any]]:
        """Return the lines of its log of one kind."""
        lines = self.log.read_text(encoding="utf-8").splitlines()
        parsed = [json.loads(line) for line in lines if line.startswith("{")]
        return [line for line in parsed if line["event"] == event]

    async def kill(self) -> None:
        """SIGKILL; return when it is dead."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


@dataclass
class Rig:
    """A site, its cluster, and controllers that a test starts."""

    site: TestSite
    server: Witness
    started: list[Running] = field(default_factory=list)

    async def start(self, token: str, folder: str) -> Running:
        """Start a controller that shows this token and keeps its journal there."""
        kubeconfig = self.site.folder / f"{token}.yaml"
        cluster = {"server": self.server.url, "certificate-authority": str(self.server.ca_path)}
        known = {
            **_KUBECONFIG,
            "clusters": [{"name": "here", "cluster": cluster}],
            "users": [{"name": "me", "user": {"token": token}}],
        }
        kubeconfig.write_text(json.dumps(known))
        config = self.site.folder / f"{token}.toml"
        config.write_text(site_text(kubeconfig), encoding="utf-8")
        (self.site.folder / folder).mkdir(exist_ok=True)
        command = ["-m", "swingbus_controller.main", "run", "--config", str(config), "--data-dir"]
        log = self.site.folder / f"{token}.log"
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                sys.executable, *command, str(self.site.folder / folder), stderr=file, stdout=file
            )
        self.started.append(Running(token, log, process))
        return self.started[-1]

    async def until(self, holds: Callable[[], bool], *, within_s: float = 60.0) -> float:
        """Wait until something holds; return for how many seconds that took."""
        began_s = time.perf_counter()
        try:
            async with asyncio.timeout(within_s):
                while not holds():
                    await asyncio.sleep(0.05)
        except TimeoutError:
            logs = [each.log.read_text(encoding="utf-8")[-3000:] for each in self.started]
            raise AssertionError("\n\n".join(logs)) from None
        return time.perf_counter() - began_s


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """Return a cluster of one node and one pool."""
    tokens: dict[str, set[tuple[str, str]]] = {"first": set(), "second": set()}
    site = TestSite(tmp_path, "")
    async with Witness(tmp_path, write_certificates(tmp_path), tokens=tokens) as server:
        status = {"allocatable": {"nvidia.com/gpu": "8"}, "conditions": [{"type": "Ready", "status": "True"}]}
        server.make("nodes", "", "n1", metadata={"labels": {"gpu": "h100"}}, status=status)
        spec = {"site": "north", "container": "grid", "nodeSelector": {"gpu": "h100"}, "caps": {}, "mode": "Auto"}
        server.make("capacitypools", "", "pool", spec=spec)
        made = Rig(site, server)
        yield made
        for each in made.started:
            await each.kill()


async def test_on_one_folder_the_newer_takes_over_at_once(rig: Rig) -> None:
    """It is the same holder, so it waits for nobody but the first one's end: that one sees the newer epoch, ends FENCED, writes no more."""
    first = await rig.start("first", "data")
    await rig.until(lambda: bool(rig.server.pool_status))
    holder = rig.server.holder
    second = await rig.start("second", "data")
    took_s = await rig.until(lambda: bool(second.says("lease_acquired")))
    print(f"the newer one writes after {took_s:.1f} s")
    assert took_s < 15.0
    assert await first.process.wait() == 1
    assert "(FENCED" in first.log.read_text()
    writes = len(rig.server.written_by("first"))
    await rig.until(lambda: ("patch", "capacitypools/status") in rig.server.written_by("second"))
    assert rig.server.pool_status["epoch"] == 2
    assert len(rig.server.written_by("first")) == writes
    assert rig.server.holder == holder


async def test_with_a_folder_of_its_own_it_writes_nothing_until_the_lease_is_over(rig: Rig) -> None:
    """Longer than a lease lasts it only reads, and says who holds it; the first is killed: a lease later it writes."""
    first = await rig.start("first", "data")
    await rig.until(lambda: bool(rig.server.pool_status))
    holder = rig.server.holder
    second = await rig.start("second", "other")
    await rig.until(lambda: bool(second.says("cluster_seen")))
    await asyncio.sleep(TERMS.duration_s + 2 * TERMS.retry_s)
    assert rig.server.written_by("second") == []
    assert rig.server.holder == holder
    (waiting,) = second.says("lease_awaited")
    assert waiting["holder"] == holder
    assert "NoWritePermit" in waiting["message"]
    assert first.process.returncode is None
    await first.kill()
    took_s = await rig.until(lambda: rig.server.holder != holder)
    print(f"the lease of a dead one is taken after {took_s:.1f} s")
    assert TERMS.duration_s - TERMS.retry_s - 1.0 <= took_s <= TERMS.duration_s + 2 * TERMS.retry_s + 1.0
    assert rig.server.store.objects[LEASE]["spec"]["leaseTransitions"] == 1
    pool = rig.server.store.get(POOL)
    pool["spec"]["mode"] = "Advisory"  # a status is written on change only
    rig.server.store.update(POOL, pool)
    await rig.until(lambda: ("patch", "capacitypools/status") in rig.server.written_by("second"))


async def test_one_that_is_told_to_end_lets_the_other_write_at_once(rig: Rig) -> None:
    """The lease is given back, nobody waits for its end."""
    first = await rig.start("first", "data")
    await rig.until(lambda: bool(rig.server.pool_status))
    holder = rig.server.holder
    second = await rig.start("second", "other")
    await rig.until(lambda: bool(second.says("lease_awaited")))
    first.process.terminate()
    assert await first.process.wait() == 0
    assert rig.server.holder == ""
    took_s = await rig.until(lambda: bool(rig.server.holder))
    print(f"a lease that was given back is taken after {took_s:.1f} s")
    assert took_s < TERMS.retry_s + 2.0
    assert rig.server.holder != holder and ("update", "leases") in rig.server.written_by("second")
