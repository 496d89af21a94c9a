"""The agent as its container starts it: as root, and no longer root a moment later. The real program, the real driver binding."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from swingbus.bundle import format_bundle, write_private
from swingbus.faults import Forbidden
from swingbus.link.v1alpha import agent_link_service_pb2 as pb
from swingbus.link.v1alpha import link_pb2
from swingbus.rpc.roles import Role
from swingbus_agent.adapters.privileged.rights import CAP_SYS_ADMIN, read_rights
from swingbus_agent.splitting import give_folder
from swingbus_sim.nvml.build import CACHE_VARIABLE, ROOT_ONLY_VARIABLE
from tests.fakes.controllers import TestSite
from tests.fakes.gpu_host import GpuHost, gpu_uuid
from tests.fakes.kubelet import FakeKubelet, running_kubelet
from tests.fakes.other_user import GROUP, USER, as_other_user, python_for_other_user
from tests.fakes.scripted_controller import ScriptedController, desired_state, until

DOCUMENTED = "+chown,+setuid,+setgid,+sys_admin"  # docs/agent.md, "On a Kubernetes node"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder that another user may enter: pytest's own are closed to it, and too long for a socket."""
    path = Path(tempfile.mkdtemp(prefix="parted-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def python(folder: Path) -> Path:
    """Return a Python that the other user can run; without one, or without root, say loudly that nothing is tested."""
    found = python_for_other_user(folder)
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture
def host(folder: Path, monkeypatch: pytest.MonkeyPatch) -> GpuHost:
    """Return a host with two GPUs that everybody may read and only root may limit."""
    monkeypatch.setenv(CACHE_VARIABLE, str(folder / "library"))
    host = GpuHost(folder / "shelf", 2)
    (folder / "shelf").chmod(0o666)
    (folder / "library").chmod(0o755)
    return host


@dataclass
class Running:
    """The agent's process and what it wrote."""

    process: asyncio.subprocess.Process
    log: Path
    folder: Path

    @property
    def keeper(self) -> psutil.Process:
        """The child that stayed root."""
        return next(each for each in self.children() if "keeper" in " ".join(each.cmdline()))

    def children(self) -> list[psutil.Process]:
        """Return every process below the agent."""
        return psutil.Process(self.process.pid).children(recursive=True)

    async def end(self) -> int:
        """Stop it as a container does."""
        if self.process.returncode is None:
            self.process.terminate()
        return await self.process.wait()


def is_gone(process: psutil.Process) -> bool:
    """Tell whether a process has ended, also where nobody has asked for its end yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def write_config(folder: Path, kubelet: FakeKubelet, endpoint: str, *, gpus: list[str], user: int = USER) -> Path:
    """Write the agent's file: one bank whose workloads are pods."""
    path = folder / "agent.toml"
    path.write_text(
        f"""
name = "node-1"
state_dir = "{folder / "state"}"
writes = true
[node]
run_as_user = {user}
run_as_group = {GROUP if user else 0}
[controller]
endpoint = "{endpoint}"
insecure_loopback = true
backoff_max_s = 0.5
[metrics]
port = 0
[sampling]
gpu_period_s = 0.2
[execution]
tick_s = 0.1
quarantine_s = 1.0
[pods]
socket = "{kubelet.pod_resources}"
miner_namespace = "mining"
[[bank]]
name = "h100"
kind = "gpu"
class = "h100-sxm"
runs = "pods"
gpus = {gpus}
""",
        encoding="utf-8",
    )
    return path


@asynccontextmanager
async def running(
    folder: Path, python: Path, config: Path, host: GpuHost, *, capabilities: str = ""
) -> AsyncIterator[Running]:
    """Run the program as a container's entry does: with these of root's capabilities and no way to more (default: all)."""
    limited = (
        ["setpriv", f"--bounding-set=-all,{capabilities}", "--inh-caps=-all", "--no-new-privs"] if capabilities else []
    )
    log = folder / "log"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *(*limited, str(python), "-m", "swingbus_agent.main", "run", "--config", str(config)),
            env={**host.environment, ROOT_ONLY_VARIABLE: "1"},
            stdout=out,
            stderr=out,
            cwd="/",
        )
    agent = Running(process=process, log=log, folder=folder)
    try:
        yield agent
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
async def site() -> AsyncIterator[tuple[FakeKubelet, ScriptedController]]:
    """Return a kubelet whose socket is root's alone, with one miner on the first GPU, and a controller."""
    async with running_kubelet() as kubelet, ScriptedController().serve() as controller:
        kubelet.pod_resources.chmod(0o700)
        kubelet.hold("mining", "m-0", gpu_uuid(0))
        yield kubelet, controller


def counting() -> pb.Adopt:
    """Return an adoption that counts the bank."""
    bank = link_pb2.BankCounting(bank="h100", gpu_limit_ratio=1.07, rest_w=214.0, device_ceiling_w=749.0, fixed_w=500.0)
    return pb.Adopt(epoch=1, controller_instance="ctl-1", counting=[bank])


def order(controller: ScriptedController, limit_w: float) -> link_pb2.DesiredState:
    """Return an order of both GPUs to one limit, for this run of the agent."""
    bank = link_pb2.BankDesired(
        bank="h100",
        generation=1,
        grant_w=2000.0,
        device_budget_w=1500.0,
        points=[
            link_pb2.PointCount(point="mine", mode=link_pb2.MODE_MINING, power_w=limit_w, count=2, workload="mining")
        ],
        for_instance=controller.newest.instance_uid,
    )
    return desired_state([bank], epoch=1, generation=1)


@pytest.mark.parametrize("capabilities", ["", DOCUMENTED])
async def test_agent_that_gave_root_up_reads_pods_and_sets_limits(
    folder: Path, python: Path, host: GpuHost, site: tuple[FakeKubelet, ScriptedController], capabilities: str
) -> None:
    """Seen in /proc: user, group, groups, capabilities are gone, for all threads; seen in the driver: the limits are set.

    With all of root's capabilities, and with no more than the documented ones.
    """
    kubelet, controller = site
    controller.adopt = counting()
    config = write_config(folder, kubelet, controller.endpoint, gpus=[gpu_uuid(0), gpu_uuid(1)])
    async with running(folder, python, config, host, capabilities=capabilities) as agent:
        await until(lambda: bool(controller.reports and controller.newest.banks), "a report with a bank")
        bank = controller.bank("h100")
        assert [(each.unit, list(each.holders)) for each in bank.unit_holdings] == [(0, ["mining/m-0"]), (1, [])]

        pid = agent.process.pid
        for thread in os.listdir(f"/proc/{pid}/task"):
            rights = read_rights(f"{pid}/task/{thread}")
            assert rights.users == (USER,) * 4 and rights.groups == (GROUP,) * 4 and rights.supplementary == ()
            assert rights.inheritable == rights.permitted == rights.effective == rights.ambient == 0
            # Without SETPCAP nobody can empty the bounding set: then it is no_new_privs alone that keeps the rest away.
            assert (rights.bounding == 0 or capabilities) and rights.has_no_new_privileges
        keeper = agent.keeper
        kept = read_rights(keeper.pid)
        assert kept.users == (0,) * 4 and kept.permitted == kept.effective == 1 << CAP_SYS_ADMIN
        assert (kept.bounding == 1 << CAP_SYS_ADMIN or capabilities) and kept.has_no_new_privileges
        (limiter,) = keeper.children()
        assert read_rights(limiter.pid).effective == 1 << CAP_SYS_ADMIN
        readers = [each for each in agent.children() if "nvml.child" in " ".join(each.cmdline())]
        assert readers and all(
            each.uids().effective == USER and "serve-writes" not in each.cmdline() for each in readers
        )

        controller.send(order(controller, 300.0))
        await until(lambda: host.shelf.requested_limits_w() == (300.0, 300.0), "both limits")
        for index in range(2):
            host.change(index, enforced_limit_w=300.0, requested_limit_w=300.0)
        await until(lambda: controller.bank("h100").applied_generation == 1, "read back")
        state = folder / "state"
        assert {path.stat().st_uid for path in (state, *state.rglob("*"))} == {USER}

        assert await agent.end() == 0
        await until(lambda: is_gone(keeper) and is_gone(limiter), "their end")
        text = agent.log.read_text()
        assert "privileges_parted" in text and "Traceback" not in text


async def test_gpu_outside_the_file_cannot_be_limited_even_by_the_agents_own_user(
    folder: Path, python: Path, host: GpuHost, site: tuple[FakeKubelet, ScriptedController]
) -> None:
    """The bank has one GPU: its neighbour keeps its limit whoever asks, for the rules were read before root was given up."""
    kubelet, controller = site
    controller.adopt = counting()
    config = write_config(folder, kubelet, controller.endpoint, gpus=[gpu_uuid(0)])
    async with running(folder, python, config, host) as agent:
        await until(lambda: bool(controller.reports and controller.newest.banks), "a report with a bank")
        rules = agent.keeper.cmdline()[-1]
        assert gpu_uuid(0) in rules and gpu_uuid(1) not in rules
        command = [
            str(python),
            "-c",
            "import pynvml as n; n.nvmlInit(); n.nvmlDeviceSetPowerManagementLimit(n.nvmlDeviceGetHandleByIndex(1), 300000)",
        ]
        process = await asyncio.create_subprocess_exec(
            *as_other_user(command),
            env={**host.environment, ROOT_ONLY_VARIABLE: "1"},
            stderr=subprocess.PIPE,
        )
        _, said = await process.communicate()
        assert b"Insufficient Permissions" in said
        assert host.shelf.requested_limits_w()[1] is None


async def test_agent_ends_with_its_privileged_child(
    folder: Path, python: Path, host: GpuHost, site: tuple[FakeKubelet, ScriptedController]
) -> None:
    """Without it no limit could be lowered: exit code 1 and why, so that both are started again; nothing is left running."""
    kubelet, controller = site
    config = write_config(folder, kubelet, controller.endpoint, gpus=[])
    async with running(folder, python, config, host) as agent:
        await until(lambda: bool(controller.reports), "a report")
        children = agent.children()
        os.kill(agent.keeper.pid, signal.SIGKILL)
        async with asyncio.timeout(15):
            assert await agent.process.wait() == 1
        assert "the privileged child was killed by signal 9" in agent.log.read_text()
        await until(lambda: all(is_gone(each) for each in children), "the end of all")


async def test_agent_of_another_user_goes_on_and_says_so(
    folder: Path, python: Path, host: GpuHost, site: tuple[FakeKubelet, ScriptedController]
) -> None:
    """Not root at its start: no child, a warning, and what that user may not do is refused by driver and kubelet."""
    kubelet, controller = site
    config = write_config(folder, kubelet, controller.endpoint, gpus=[])
    give_folder(folder / "state", USER, GROUP)
    log = folder / "log"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *as_other_user([str(python), "-m", "swingbus_agent.main", "run", "--config", str(config)]),
            env={**host.environment, ROOT_ONLY_VARIABLE: "1"},
            stdout=out,
            stderr=out,
            cwd="/",
        )
    try:
        await until(lambda: bool(controller.reports and controller.newest.banks), "a report with a bank")
        assert not [each for each in psutil.Process(process.pid).children() if "keeper" in " ".join(each.cmdline())]
        assert "privileges_not_parted" in log.read_text()
        assert all(each.has_process for each in controller.bank("h100").unit_holdings)  # nobody can say who holds them
    finally:
        process.terminate()
        assert await process.wait() == 0


async def test_agent_without_the_setting_stays_root_as_before(
    folder: Path, python: Path, host: GpuHost, site: tuple[FakeKubelet, ScriptedController]
) -> None:
    """No `run_as_user`: nothing is parted, and no child is there."""
    kubelet, controller = site
    config = write_config(folder, kubelet, controller.endpoint, gpus=[], user=0)
    async with running(folder, python, config, host) as agent:
        await until(lambda: bool(controller.reports and controller.newest.banks), "a report with a bank")
        assert psutil.Process(agent.process.pid).uids().effective == 0
        assert not [each for each in agent.children() if "keeper" in " ".join(each.cmdline())]


async def test_agent_without_pods_and_writes_has_no_privileged_child(
    folder: Path, python: Path, host: GpuHost, site: tuple[FakeKubelet, ScriptedController]
) -> None:
    """Nothing that it does needs root: it gives root up and leaves nobody behind."""
    kubelet, controller = site
    config = write_config(folder, kubelet, controller.endpoint, gpus=[])
    text = config.read_text().replace("writes = true", "writes = false").replace('runs = "pods"\n', "")
    config.write_text(text, encoding="utf-8")
    async with running(folder, python, config, host) as agent:
        await until(lambda: bool(controller.reports and controller.newest.banks), "a report with a bank")
        assert {each.uids().effective for each in (psutil.Process(agent.process.pid), *agent.children())} == {USER}
        assert await agent.end() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED HERE: only root can give a folder away")
def test_state_folder_is_given_once_and_links_in_it_to_nobody(folder: Path) -> None:
    """Root's folder becomes the user's with all in it; afterwards nothing in it is given away, a third one's is refused."""
    state = folder / "state"
    (state / "bundle").mkdir(parents=True)
    (state / "bundle" / "key").write_text("k")
    secret = folder / "secret"
    secret.write_text("s")
    (state / "link").symlink_to(secret)
    give_folder(state, USER, GROUP)
    assert {path.lstat().st_uid for path in (state, *state.rglob("*"))} == {USER}
    assert secret.stat().st_uid == 0
    (state / "planted").write_text("p")  # root's own, later
    give_folder(state, USER, GROUP)
    assert (state / "planted").stat().st_uid == 0
    with pytest.raises(Forbidden, match="belongs to user"):
        give_folder(state, USER + 5, GROUP)


def test_private_folder_is_given_with_what_is_in_it(folder: Path, python: Path) -> None:
    """By a root with CHOWN alone, which can't look into what it has given away: a bundle that was there before `run_as_user` was named."""
    state = folder / "state"
    (state / "bundle").mkdir(parents=True)
    (state / "bundle").chmod(0o700)
    (state / "bundle" / "bundle.toml").write_text("b")
    code = f"from swingbus_agent.splitting import *; give_folder(Path({str(state)!r}), {USER}, {GROUP})"
    command = ("setpriv", "--inh-caps=-all", "--bounding-set=-all,+chown", str(python), "-c", code)
    subprocess.run(command, check=True, timeout=60)
    assert {path.lstat().st_uid for path in (state, *state.rglob("*"))} == {USER}


def test_root_that_cannot_be_given_up_is_an_end(folder: Path, python: Path, host: GpuHost) -> None:
    """A container without SETUID: the agent says which capability it lacks and does not start as root."""
    config = folder / "agent.toml"
    config.write_text(f'name = "n"\nstate_dir = "{folder / "s"}"\n[node]\nrun_as_user = {USER}\n[metrics]\nport = 0\n')
    command = ["setpriv", "--bounding-set=-setuid,-setgid", "--inh-caps=-all"]
    done = subprocess.run(
        [*command, str(python), "-m", "swingbus_agent.main", "run", "--config", str(config)],
        env=dict(host.environment),
        capture_output=True,
        timeout=60,
        check=False,
        text=True,
    )
    assert done.returncode == 1
    assert "needs the capabilities SETUID and SETGID" in done.stderr


def join(folder: Path, python: Path, capabilities: str) -> subprocess.CompletedProcess[str]:
    """Install a bundle for agent node-1 as an init container does: as root with these capabilities alone."""
    if not (folder / "bundle.toml").exists():
        (folder / "site").mkdir()
        bundle = TestSite(folder / "site").authority.issue("node-1", Role.AGENT, now=datetime.now(UTC))
        write_private(folder / "bundle.toml", format_bundle(bundle))
    config = folder / "join.toml"
    config.write_text(
        f'name = "node-1"\nstate_dir = "{folder / "state"}"\n[node]\nrun_as_user = {USER}\n', encoding="utf-8"
    )
    command = [str(python), "-m", "swingbus_agent.main", "join", str(folder / "bundle.toml"), "--config", str(config)]
    return subprocess.run(
        ["setpriv", f"--bounding-set=-all,{capabilities}", "--inh-caps=-all", "--no-new-privs", *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_bundle_that_root_installs_is_the_users(folder: Path, python: Path) -> None:
    """The first time into root's folder, the second into the user's: private, and readable for the user alone."""
    first = join(folder, python, "+chown")
    assert first.returncode == 0, first.stderr
    give_folder(folder / "state", USER, GROUP)
    (folder / "state").chmod(0o700)
    again = join(folder, python, "+chown,+dac_override")
    assert again.returncode == 0, again.stderr
    for path in (folder / "state" / "bundle", folder / "state" / "bundle" / "bundle.toml"):
        assert path.stat().st_uid == USER and path.stat().st_mode & 0o077 == 0
    assert list((folder / "state" / "bundle").iterdir()) == [folder / "state" / "bundle" / "bundle.toml"]


def test_bundle_is_not_installed_through_a_link_of_the_user(folder: Path, python: Path) -> None:
    """A user that has taken the agent over must not have root write or give away anything elsewhere."""
    (folder / "state").mkdir()
    os.chown(folder / "state", USER, GROUP)
    roots = folder / "roots"
    roots.mkdir()
    (folder / "state" / "bundle").symlink_to(roots)
    done = join(folder, python, "+chown,+dac_override")
    assert done.returncode == 1 and "is a link" in done.stderr
    assert roots.stat().st_uid == 0 and list(roots.iterdir()) == []

    (folder / "state" / "bundle").unlink()
    (folder / "state" / "bundle").mkdir()
    secret = folder / "secret"
    secret.write_text("s", encoding="ascii")
    secret.chmod(0o600)
    (folder / "state" / "bundle" / "bundle.toml").symlink_to(secret)
    join(folder, python, "+chown,+dac_override")
    assert secret.stat().st_uid == 0 and secret.read_text(encoding="ascii") == "s"
