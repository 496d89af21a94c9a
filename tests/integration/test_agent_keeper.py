"""The privileged child against whoever holds its socket: two verbs, nothing else, and an end whatever hangs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from swingbus.clock import SystemClock
from swingbus_agent.adapters.pod_workloads.kubelet import KubeletPods
from swingbus_agent.adapters.privileged.door import KubeletDoor
from swingbus_agent.adapters.privileged.link import KeeperLink, start_keeper
from swingbus_agent.adapters.privileged.words import REQUEST_MAX_BYTES, Outcome, Rules
from swingbus_agent.adapters.privileged.worker import NotStarted, Worker
from swingbus_agent.domain.answers import Hung, Unavailable
from swingbus_sim.ports import GpuHealth
from tests.fakes.gpu_host import GpuHost, gpu_uuid
from tests.fakes.kubelet import FakeKubelet, running_kubelet

BUS_IDS = ["00000000:01:00.0", "00000000:02:00.0"]


@pytest.fixture
def host(tmp_path: Path) -> GpuHost:
    """Return a host with two GPUs."""
    return GpuHost(tmp_path / "shelf", 2)


@pytest.fixture
async def kubelet() -> AsyncIterator[FakeKubelet]:
    """Return a kubelet that listens."""
    async with running_kubelet() as kubelet:
        yield kubelet


@pytest.fixture
async def link(host: GpuHost, kubelet: FakeKubelet) -> AsyncIterator[KeeperLink]:
    """Return a child that may limit the first GPU and reach the kubelet."""
    rules = Rules(may_limit=True, gpus=(gpu_uuid(0),), kubelet_socket=str(kubelet.pod_resources), call_deadline_s=0.5)
    link = start_keeper(rules, environment=host.environment)
    yield link
    link.close()


def says(link: KeeperLink, raw: bytes) -> dict[str, Any]:
    """Send one datagram past the link's own checks and return the answer."""
    link._end.settimeout(5.0)
    link._end.send(raw)
    answer: dict[str, Any] = json.loads(link._end.recv(4096))
    return answer


def workers(link: KeeperLink) -> list[psutil.Process]:
    """Return the child's own children."""
    return psutil.Process(link.pid).children()


def is_gone(process: psutil.Process) -> bool:
    """Tell whether a process has ended, also where nobody has asked for its end yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def until(is_met: Callable[[], bool], what: str) -> None:
    """Wait until it is so."""
    async with asyncio.timeout(10):
        while not is_met():
            await asyncio.sleep(0.02)
    assert is_met(), what


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense",
        b"\x00\xff\xfe",
        b"[]",
        b'{"id":1,"verb":"exec","command":"id"}',
        b'{"id":1,"verb":"kubelet","path":"/etc/shadow"}',
        b'{"id":1,"verb":"limit"}',
        b'{"id":1,"verb":"limit","uuid":"x","bus_id":"y","limit_mw":1}',
        b'{"id":1,"verb":"kubelet"}' + b" " * REQUEST_MAX_BYTES,
        b"[" * REQUEST_MAX_BYTES,
    ],
)
async def test_malformed_frame_is_refused_and_the_child_goes_on(link: KeeperLink, raw: bytes) -> None:
    """Each is answered with a refusal, none is carried out, and the next good one is served."""
    answer = says(link, raw)
    assert answer["outcome"] == "refused" and answer["id"] == 0 and answer["why"].startswith("malformed")
    link._end.settimeout(0)
    assert (await link.set_limit(gpu_uuid(0), BUS_IDS[0], 350_000)).outcome is Outcome.DONE


async def test_file_that_is_sent_along_is_not_taken(link: KeeperLink) -> None:
    """Nothing that the agent holds gets into the child."""
    assert (await link.set_limit(gpu_uuid(0), BUS_IDS[0], 350_000)).outcome is Outcome.DONE  # its worker is there
    asyncio.get_running_loop().remove_reader(link._end.fileno())
    before = psutil.Process(link.pid).num_fds()
    for _ in range(20):
        socket.send_fds(link._end, [b"nonsense"], [link._end.fileno()])
    link._end.settimeout(5.0)
    for _ in range(20):
        link._end.recv(4096)
    assert psutil.Process(link.pid).num_fds() == before


async def test_limit_is_set_on_the_gpu_of_the_file_and_on_no_other(link: KeeperLink, host: GpuHost) -> None:
    """Another GPU, the right name at the wrong place, a limit out of range: each refused by its kind, nothing is written."""
    other = await link.set_limit(gpu_uuid(1), BUS_IDS[1], 300_000)
    assert other.outcome is Outcome.REFUSED and "in no bank" in other.why
    misplaced = await link.set_limit(gpu_uuid(0), BUS_IDS[1], 300_000)
    assert (misplaced.outcome, misplaced.code) == (Outcome.DRIVER, 28)
    for limit_mw in (199_999, 700_001):
        outside = await link.set_limit(gpu_uuid(0), BUS_IDS[0], limit_mw)
        assert (outside.outcome, outside.code) == (Outcome.DRIVER, 2)
    assert host.shelf.requested_limits_w() == (None, None)
    assert (await link.set_limit(gpu_uuid(0), BUS_IDS[0], 200_000)).outcome is Outcome.DONE
    assert host.shelf.requested_limits_w() == (200.0, None)


async def test_limit_that_hangs_is_given_up_and_the_next_one_is_set(link: KeeperLink, host: GpuHost) -> None:
    """The worker is killed at its deadline and made anew; meanwhile the kubelet is reached as ever."""
    await until(lambda: len(workers(link)) == 1, "a worker")
    (first,) = workers(link)
    assert (await link.set_limit(gpu_uuid(0), BUS_IDS[0], 300_000)).outcome is Outcome.DONE
    host.change(0, health=GpuHealth.HUNG)
    async with asyncio.TaskGroup() as group:
        hung = group.create_task(link.set_limit(gpu_uuid(0), BUS_IDS[0], 400_000))
        began_s = time.monotonic()
        answer = await link.connect_kubelet(2.0)
        assert answer.connection is not None and time.monotonic() - began_s < 0.4
        answer.connection.close()
    assert hung.result().outcome is Outcome.NO_ANSWER and "no answer for 0.5 s" in hung.result().why
    assert is_gone(first)
    host.change(0, health=GpuHealth.OK)
    assert (await link.set_limit(gpu_uuid(0), BUS_IDS[0], 400_000)).outcome is Outcome.DONE
    assert host.shelf.requested_limits_w() == (400.0, None)


async def test_worker_that_is_killed_is_made_anew(link: KeeperLink, host: GpuHost) -> None:
    """A crash of the driver's library costs one answer at most."""
    assert (await link.set_limit(gpu_uuid(0), BUS_IDS[0], 300_000)).outcome is Outcome.DONE
    (first,) = workers(link)
    first.kill()
    outcomes = [(await link.set_limit(gpu_uuid(0), BUS_IDS[0], 310_000)).outcome for _ in range(2)]
    assert outcomes[-1] is Outcome.DONE and outcomes[0] in (Outcome.DONE, Outcome.NO_ANSWER)
    assert host.shelf.requested_limits_w() == (310.0, None)


async def test_child_that_stands_still_is_told_within_the_deadline(link: KeeperLink) -> None:
    """Stopped as a debugger would: the question ends as unanswered; when it runs again the late answer meets nobody."""
    os.kill(link.pid, signal.SIGSTOP)
    try:
        answer = await link.connect_kubelet(0.3)
        assert answer.reply.outcome is Outcome.NO_ANSWER and "within 0.3 s" in answer.reply.why
    finally:
        os.kill(link.pid, signal.SIGCONT)
    before = psutil.Process().num_fds()
    again = await link.connect_kubelet(5.0)
    assert again.connection is not None
    again.connection.close()
    # The connection that came late was closed, not kept; the kubelet lives in this process too and lets go a moment later.
    await until(lambda: psutil.Process().num_fds() <= before, "no connection left over")


async def test_child_that_is_gone_is_told_at_once_and_takes_its_worker_along(link: KeeperLink) -> None:
    """Every later question is answered at once; nothing is left running."""
    assert (await link.set_limit(gpu_uuid(0), BUS_IDS[0], 300_000)).outcome is Outcome.DONE
    (worker,) = workers(link)
    os.kill(link.pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        assert await link.wait_gone() == "was killed by signal 9"
        assert (await link.set_limit(gpu_uuid(0), BUS_IDS[0], 300_000)).outcome is Outcome.UNAVAILABLE
        assert (await link.connect_kubelet(5.0)).reply.outcome is Outcome.UNAVAILABLE
    await until(lambda: is_gone(worker), "the worker's end")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_child_ends_by_its_socket_and_not_by_the_agents_signals(link: KeeperLink, number: int) -> None:
    """A stop that reaches the whole group must not take limits away before the agent is done."""
    os.kill(link.pid, number)
    assert (await link.set_limit(gpu_uuid(0), BUS_IDS[0], 300_000)).outcome is Outcome.DONE
    child = psutil.Process(link.pid)
    (worker,) = child.children()
    link.close()
    await until(lambda: is_gone(child) and is_gone(worker), "their end")


async def test_socket_reaches_no_program_that_the_agent_starts(link: KeeperLink) -> None:
    """A workload that inherited it could set limits."""
    process = await asyncio.create_subprocess_exec("sleep", "5", close_fds=False)
    inherited = [os.readlink(f"/proc/{process.pid}/fd/{name}") for name in os.listdir(f"/proc/{process.pid}/fd")]
    process.kill()
    await process.wait()
    assert os.readlink(f"/proc/self/fd/{link._end.fileno()}") not in inherited


def held_by(kubelet: FakeKubelet) -> None:
    """Let one pod hold a GPU."""
    kubelet.hold("mining", "m-0", gpu_uuid(0))


async def test_pods_are_read_through_the_door(link: KeeperLink, kubelet: FakeKubelet, tmp_path: Path) -> None:
    """The answer is the kubelet's own; after it restarted the next question finds it; a silent one is hung, a gone one says why."""
    held_by(kubelet)
    door = KubeletDoor(tmp_path, link, deadline_s=1.0)
    pods = KubeletPods(kubelet.pod_resources, timeout_s=1.0, clock=SystemClock(), door=door)
    held = await pods.list_held()
    assert isinstance(held, tuple) and [each.holder for each in held] == ["mining/m-0"]
    socket_file = tmp_path / "kubelet.sock"
    assert stat.S_ISSOCK(socket_file.stat().st_mode) and socket_file.stat().st_mode & 0o077 == 0

    await kubelet.stop()
    gone = await pods.list_held()
    for _ in range(20):  # the connection that breaks is told first; the one after it was refused by the system
        if isinstance(gone, Unavailable) and "No such file" in gone.reason:
            break
        await asyncio.sleep(0.1)
        gone = await pods.list_held()
    assert isinstance(gone, Unavailable) and "No such file" in gone.reason and str(kubelet.pod_resources) in gone.reason

    await kubelet.start()
    async with asyncio.timeout(10):
        while not isinstance(await pods.list_held(), tuple):
            await asyncio.sleep(0.05)

    kubelet.may_answer.clear()
    assert isinstance(await pods.list_held(), Hung)
    kubelet.may_answer.set()
    await pods.aclose()
    await door.aclose()
    assert not socket_file.exists()


async def test_child_that_may_not_reach_the_kubelet_says_so(host: GpuHost) -> None:
    """No bank of the file runs pods: the verb is refused."""
    link = start_keeper(Rules(may_limit=False, gpus=(), kubelet_socket=""), environment=host.environment)
    answer = await link.connect_kubelet(2.0)
    assert answer.connection is None and answer.reply.outcome is Outcome.REFUSED
    assert not workers(link)  # and without writes there is no process that could set a limit
    link.close()


def test_worker_that_cannot_begin_is_not_started_over_and_over() -> None:
    """A module that is not there: told as not started, and not tried again before its pause is over."""
    worker = Worker("swingbus_agent.no_such_module", call_deadline_s=1.0, backoff_s=30.0)
    with pytest.raises(NotStarted, match="its process ended"):
        worker.ask({})
    with pytest.raises(NotStarted, match=r"started again within [23]\d"):
        worker.ask({})
