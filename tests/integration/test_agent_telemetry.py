"""The agent's spool and link together: acknowledgement, outage, restart, SIGKILL, damage, a rolled-back disk."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from swingbus.bundle import install_bundle, write_private
from swingbus.fleet.v1alpha import fleet_service_pb2 as fleet_rpc
from swingbus.fleet.v1alpha import fleet_service_pb2_grpc
from swingbus.link.v1alpha.agent_link_service_pb2_grpc import add_AgentLinkServiceServicer_to_server
from swingbus.rpc.caller import current_caller
from swingbus.rpc.roles import Role
from swingbus.rpc.server import ServerSettings
from swingbus_agent.settings import AgentSettings
from tests.fakes.agent_site import BANK, running_agent, served_miners, settings_for
from tests.fakes.authority import issue, make_authority, serving
from tests.fakes.controllers import TestSite
from tests.fakes.scripted_controller import ScriptedController, until


def host_only(folder: Path, endpoint: str, **extra: object) -> AgentSettings:
    """Return settings of an agent that samples its host alone, several times a second."""
    return settings_for(folder, endpoint, {}, sampling={"host_period_s": 0.1}, **extra)  # type: ignore[arg-type]


def stored(folder: Path) -> list[int]:
    """Return the sequences on the agent's disk."""
    with sqlite3.connect(folder / "agent" / "spool.sqlite3") as database:
        return [row[0] for row in database.execute("SELECT sequence FROM batches ORDER BY sequence")]


async def test_acknowledged_batches_leave_the_disk(tmp_path: Path) -> None:
    """Batches arrive in order without a gap, and what is acknowledged is deleted."""
    async with ScriptedController().serve() as controller, running_agent(host_only(tmp_path, controller.endpoint)):
        await until(lambda: len(controller.batches) >= 10, "ten batches")
        assert sorted(controller.batches)[:10] == list(range(1, 11))
        await until(lambda: len(stored(tmp_path)) <= 2, "the disk is drained")


async def test_unacknowledged_batches_are_sent_again_in_the_next_session(tmp_path: Path) -> None:
    """Without acknowledgements the agent stops at its credit; after a reconnect it sends everything, each once stored."""
    async with ScriptedController().serve() as controller, running_agent(host_only(tmp_path, controller.endpoint)):
        controller.acks_enabled = False
        await until(lambda: len(controller.order) >= controller.credit, "the credit is used up")
        await asyncio.sleep(0.5)
        assert len(controller.order) == controller.credit
        port = controller.port
        await controller.stop()
        controller.acks_enabled = True
        await controller.start(port)
        await until(lambda: set(range(1, 21)) <= controller.batches.keys(), "everything arrives")
        assert len(controller.hellos) >= 2


async def test_after_an_outage_the_newest_comes_first_then_the_backlog(tmp_path: Path) -> None:
    """The first batch of the new session is the newest, then the backlog follows, oldest first, until none is missing."""
    controller = ScriptedController()
    await controller.start()
    port = controller.port
    async with running_agent(host_only(tmp_path, controller.endpoint)) as agent:
        await until(lambda: len(controller.batches) >= 3, "first batches")
        await controller.stop()
        before = agent.rounds.round_count if agent.rounds else 0
        await until(
            lambda: agent.rounds is not None and agent.rounds.round_count >= before + 15, "an outage of 15 rounds"
        )
        controller.order.clear()
        await controller.start(port)
        await until(lambda: len(controller.order) >= 12, "the backlog flows")
        newest = controller.hellos[-1].newest_sequence
        assert controller.order[0] >= newest
        backlog = [sequence for sequence in controller.order if sequence < newest]
        assert backlog == sorted(backlog)
        await until(lambda: set(range(1, newest + 1)) <= controller.batches.keys(), "nothing is missing")
    await controller.stop()


async def test_refused_batch_is_told_and_does_not_come_again(tmp_path: Path) -> None:
    """A batch that the controller can never store is counted, reported as an event and dropped."""
    controller = ScriptedController()
    controller.reject[3] = "malformed by the test"
    async with controller.serve(), running_agent(host_only(tmp_path, controller.endpoint)) as agent:
        await until(
            lambda: any(e.kind == "batch_refused" for b in controller.batches.values() for e in b.events), "it is told"
        )
        assert controller.order.count(3) == 1
        assert (await agent.spool.state()).rejected_count == 1


async def test_restarted_agent_goes_on_counting(tmp_path: Path) -> None:
    """Sequences are never given out twice, and the spool keeps its identity over a restart."""
    async with ScriptedController().serve() as controller:
        settings = host_only(tmp_path, controller.endpoint)
        async with running_agent(settings):
            await until(lambda: len(controller.batches) >= 5, "first batches")
        held = max(controller.batches)
        async with running_agent(settings):
            await until(lambda: max(controller.batches) > held + 5, "batches after the restart")
        assert controller.hellos[0].spool_uid == controller.hellos[-1].spool_uid
        assert controller.hellos[0].instance_uid != controller.hellos[-1].instance_uid
        assert sorted(controller.batches) == list(range(1, max(controller.batches) + 1))


async def test_damaged_spool_is_set_aside_and_told(tmp_path: Path) -> None:
    """A file that is no database is kept beside; a new spool with a new identity begins and says so."""
    folder = tmp_path / "agent"
    folder.mkdir()
    (folder / "spool.sqlite3").write_bytes(b"no database at all" * 500)
    async with ScriptedController().serve() as controller, running_agent(host_only(tmp_path, controller.endpoint)):
        await until(lambda: 1 in controller.batches, "a new spool begins")
        assert any(event.kind == "spool_damaged" for event in controller.batches[1].events)
        assert len(list(folder.glob("spool.damaged-*.sqlite3"))) == 1


async def test_rolled_back_disk_begins_a_new_spool(tmp_path: Path) -> None:
    """A restored old copy of the spool would give numbers out again: it is set aside instead."""
    async with ScriptedController().serve() as controller:
        settings = host_only(tmp_path, controller.endpoint)
        async with running_agent(settings):
            await until(lambda: len(controller.batches) >= 3, "first batches")
        copy = tmp_path / "old.sqlite3"
        shutil.copy(tmp_path / "agent" / "spool.sqlite3", copy)
        async with running_agent(settings):
            await until(lambda: len(controller.batches) >= 12, "more batches")
        for path in (tmp_path / "agent").glob("spool.sqlite3*"):
            path.unlink()
        shutil.copy(copy, tmp_path / "agent" / "spool.sqlite3")
        first_uid = controller.hellos[-1].spool_uid
        async with running_agent(settings):
            await until(
                lambda: len(controller.hellos) > 2 and controller.hellos[-1].spool_uid == first_uid, "the old copy"
            )
            controller.batches.clear()  # a new spool counts from 1 at the controller
            await until(lambda: controller.hellos[-1].spool_uid != first_uid, "a new identity")
            await until(
                lambda: any(e.kind == "spool_rolled_back" for b in controller.batches.values() for e in b.events),
                "told",
            )


async def test_killed_agent_loses_nothing_that_was_stored(tmp_path: Path) -> None:
    """SIGKILL in the middle of sampling: the file opens whole, and every number up to the newest is there or acknowledged."""
    config = tmp_path / "agent.toml"
    config.write_text(
        f'name = "edge-1"\nstate_dir = "{tmp_path / "agent"}"\n[sampling]\nhost_period_s = 0.05\n[metrics]\nport = 0\n',
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "swingbus_agent.main", "run", "--config", str(config), "--log-level", "error"]
    process = await asyncio.create_subprocess_exec(*command)
    try:
        await until(lambda: (tmp_path / "agent" / "spool.sqlite3").exists() and _count(tmp_path) >= 5, "a few rounds")
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()
    sequences = stored(tmp_path)
    assert sequences == list(range(1, len(sequences) + 1))
    async with ScriptedController().serve() as controller, running_agent(host_only(tmp_path, controller.endpoint)):
        await until(lambda: set(sequences) <= controller.batches.keys(), "all of it arrives")
        assert not any(e.kind == "spool_damaged" for b in controller.batches.values() for e in b.events)


def _count(folder: Path) -> int:
    try:
        return len(stored(folder))
    except sqlite3.OperationalError:
        return 0


async def test_sigterm_ends_the_program_cleanly(tmp_path: Path) -> None:
    """SIGTERM ends with 0 and leaves a whole spool."""
    config = tmp_path / "agent.toml"
    config.write_text(f'name = "edge-1"\nstate_dir = "{tmp_path / "agent"}"\n[metrics]\nport = 0\n', encoding="utf-8")
    command = [sys.executable, "-m", "swingbus_agent.main", "run", "--config", str(config)]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    await until(lambda: (tmp_path / "agent" / "spool.sqlite3").exists() and _count(tmp_path) >= 1, "a first round")
    process.terminate()
    async with asyncio.timeout(15):
        _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert b"agent_left" in errors


async def test_miners_rows_carry_conditions_and_absent_readings(tmp_path: Path) -> None:
    """Every miner has its row, its own time of reading and its fields; one that says no watts has none, never zero."""
    async with served_miners(3) as (asics, hosts), ScriptedController().serve() as controller:
        asics["m2"].says_power = False
        async with running_agent(settings_for(tmp_path, controller.endpoint, hosts, writes=False)):
            await until(lambda: any(batch.banks for batch in controller.batches.values()), "a bank's round")
            bank = controller.inventories[-1].banks[0]
            samples = next(batch.banks[0] for batch in reversed(controller.batches.values()) if batch.banks)
    assert [device.device for device in bank.devices] == ["m1", "m2", "m3"] and bank.bank == BANK
    width = len(bank.value_fields)
    watts = [samples.values[row * width + list(bank.value_fields).index("power_w")] for row in range(3)]
    assert watts[0] > 2000 and watts[1] != watts[1] and watts[2] > 2000
    assert list(samples.conditions) == [1, 1, 1] and all(samples.read_boottime_ns)


@asynccontextmanager
async def joined(folder: Path, site: TestSite) -> AsyncIterator[AgentSettings]:
    """Install a real certificate and return settings for mutual TLS."""
    bundle = site.authority.issue("edge-1", Role.AGENT, now=datetime.now(UTC))
    install_bundle(bundle, folder / "agent" / "bundle")
    yield settings_for(
        folder,
        f"127.0.0.1:{site.port}",
        {},
        controller={"insecure_loopback": False},
        sampling={"host_period_s": 0.1},
    )


async def test_real_controller_stores_what_the_agent_says_is_acknowledged(tmp_path: Path) -> None:
    """Over mutual TLS with the real controller, every acknowledged number is in its database."""
    (tmp_path / "site").mkdir()
    site = TestSite(tmp_path / "site")
    async with site.serve(), joined(tmp_path, site) as settings, running_agent(settings) as agent:
        await until(
            lambda: agent.reporter is not None and agent.reporter.acknowledged_sequence >= 10, "ten acknowledged"
        )
        assert agent.reporter is not None
        acked = agent.reporter.acknowledged_sequence
        uid = (await agent.spool.state()).spool_uid
        async with site.channel("vera", Role.VIEWER) as channel:
            fleet = fleet_service_pb2_grpc.FleetServiceStub(channel)
            request = fleet_rpc.VerifySequencesRequest(
                name="sites/north/agents/edge-1", spool_uid=uid, ranges=[1, acked]
            )
            found = await fleet.VerifySequences(request, timeout=10)
        assert found.stored_count == acked and not found.missing


class WatchedController(ScriptedController):
    """Notes with which certificate each stream came."""

    def __init__(self) -> None:
        super().__init__()
        self.serials: dict[str, list[str]] = {"telemetry": [], "control": []}

    async def StreamTelemetry(self, request_iterator: Any, context: Any) -> Any:
        self.serials["telemetry"].append(current_caller().serial)
        async for answer in super().StreamTelemetry(request_iterator, context):
            yield answer

    async def StreamControl(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        self.serials["control"].append(current_caller().serial)
        await super().StreamControl(request_iterator, context)

    def told(self, kind: str) -> bool:
        """Tell whether the agent sent an event of a kind."""
        return any(event.kind == kind for batch in self.batches.values() for event in batch.events)


async def test_renewed_certificate_is_shown_without_a_restart(tmp_path: Path) -> None:
    """Connections end with their age; the next shows the bundle that was joined meanwhile, a broken one changes nothing."""
    authority = make_authority(tmp_path / "pki")
    controller = WatchedController()
    aging = ServerSettings(max_connection_age_s=0.5, max_connection_grace_s=0.2)
    async with serving(
        authority, lambda server: add_AgentLinkServiceServicer_to_server(controller, server), settings=aging
    ) as port:
        first = issue(authority, "edge-1", Role.AGENT, port)
        folder = tmp_path / "agent" / "bundle"
        path = install_bundle(first, folder)
        settings = settings_for(
            tmp_path, "", {}, controller={"insecure_loopback": False}, sampling={"host_period_s": 0.1}
        )
        async with running_agent(settings) as agent:
            await until(lambda: len(controller.serials["telemetry"]) >= 2, "a second session")
            write_private(path, "torn on its way")
            await until(lambda: controller.told("bundle_refused"), "the broken bundle is told")
            count = len(controller.serials["telemetry"])
            await until(lambda: len(controller.serials["telemetry"]) > count, "a session after the broken bundle")
            assert {serial for serials in controller.serials.values() for serial in serials} == {first.serial}
            second = replace(
                authority.issue("edge-1", Role.AGENT, now=datetime.now(UTC), renew=True), endpoint=f"127.0.0.1:{port}"
            )
            install_bundle(second, folder, replace=True)
            await until(
                lambda: all(serials[-1] == second.serial for serials in controller.serials.values()), "both streams"
            )
            await until(lambda: controller.told("bundle_renewed"), "the renewal is told")
            assert (await agent.spool.state()).rejected_count == 0
            # What was on its way when a connection ended comes again behind what is newer.
            await until(
                lambda: sorted(controller.batches) == list(range(1, max(controller.batches) + 1)),
                "all that was sampled",
            )
        assert {hello.instance_uid for hello in controller.hellos} == {agent.steward.instance_uid}
