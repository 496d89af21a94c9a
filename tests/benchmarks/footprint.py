"""What the agent costs its host: memory and CPU of all its processes, the real program against the real controller.

The agent runs as it is installed: byte code compiled, its own certificate, spool, state and metrics on. Its children (the NVML child, the
miner library's child) are counted, workloads would not be (none run). Asserted: what it read is stored at the controller, as many samples
as the period promises, with the numbers that the simulated devices showed; no process of it ended or was replaced meanwhile.

PSS is told twice: as the kernel counts it here, and as it would be on a host of its own. Here the controller and this program share
library pages with it, which makes its PSS look smaller than it will be.
"""

from __future__ import annotations

import json
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from swingbus.bundle import install_bundle, load_bundle
from swingbus.link.v1alpha import agent_link_service_pb2, link_pb2
from swingbus_sim.scenario_file import load_scenario
from tests.benchmarks import sites
from tests.benchmarks.certificates import make_authority
from tests.benchmarks.controllers import controller
from tests.benchmarks.figure import Figure, check
from tests.benchmarks.procs import command_of, cpu_s, environment, memory, running, tail, tree, wait_for_file
from tests.benchmarks.settings import Settings
from tests.fakes.gpu_host import GpuHost

AGENT = "agent-1"
GPU_COUNT, ASIC_COUNT = 8, 200
POWER_W = (612.0, 655.0)

_GPU_BANK = """
[[bank]]
name = "gpus"
kind = "gpu"
class = "h100"
unit_size = 8

[[bank.point]]
name = "full"
mode = "inference"
power_w = 700.0
throughput_ratio = 1.0

[[bank.point]]
name = "idle"
mode = "standby"
power_w = 200.0
"""
_ASIC_BANK = """
[[bank]]
name = "{name}"
kind = "asic"
class = "{name}"

[[bank.point]]
name = "normal"
mode = "mining"
power_w = 3068.0
hashrate_ths = 104.0

[[bank.point]]
name = "asleep"
mode = "standby"
power_w = 0.0
"""
_SCENARIO = """
format = 1
name = "bench"
description = "200 miners of two firmwares in one container"
seed = 7
duration_s = 3600

[site]
name = "bench"
overload_ratio = 1.6
reaction_s = 12
catch_s = 12

[market]
clock_factor = 60
inference_usd_per_gpu_hour = 2.35
gpu_mining_usd_per_gpu_hour = 0.12

[series.price_usd_per_mwh]
points = [[0, 40]]

[series.demand_gpus]
points = [[0, 0]]

[series.hashprice_usd_per_th_day]
points = [[0, 0.04649]]

[[nodes]]
name = "grid"
limit_w = 2000000

[[nodes]]
name = "c1"
parent = "grid"
limit_w = 2000000
loss_ratio = 0.004

[[miners]]
name = "lux"
node = "c1"
agent = "agent-1"
class = "s19k-pro-luxos"
count = {half}
first_address = "127.61.1.1"
start_mining = {half}

[[miners]]
name = "what"
node = "c1"
agent = "agent-1"
class = "m60s-whatsminer"
count = {half}
first_address = "127.61.2.1"
start_mining = {half}
password = "swingbus-bench"

[[meters]]
name = "site"
node = "grid"
address = "127.61.9.1"
declared_error_ratio = 0.003
"""


def measure_gpu_agent(settings: Settings) -> list[Figure]:
    """Return memory and CPU with 8 GPUs at 1 Hz on the driver stand-in."""

    @contextmanager
    def host(folder: Path) -> Iterator[tuple[str, Mapping[str, str]]]:
        gpus = GpuHost(folder / "shelf", GPU_COUNT)
        stopping = threading.Event()
        publisher = threading.Thread(target=_publish, args=(gpus, stopping))
        publisher.start()
        try:
            yield "[sampling]\ngpu_period_s = 1.0\n" + _GPU_BANK, gpus.environment
        finally:
            stopping.set()
            publisher.join()
            gpus.close()

    def is_right(bank: link_pb2.BankSamples, _: link_pb2.BankSpec) -> bool:
        return len(bank.conditions) == GPU_COUNT and all(POWER_W[0] <= watts <= POWER_W[1] for watts in _power(bank, _))

    return _measure(
        settings, "agent_gpu", host, is_right, device_count=GPU_COUNT, period_s=1.0, memory_aim=64.0, cpu_aim=1.0
    )


def measure_asic_agent(settings: Settings) -> list[Figure]:
    """Return memory and CPU with 200 simulated ASICs of two firmwares every 5 s."""
    half = 5 if settings.quick else ASIC_COUNT // 2

    @contextmanager
    def host(folder: Path) -> Iterator[tuple[str, Mapping[str, str]]]:
        path = folder / "bench.toml"
        path.write_text(_SCENARIO.format(half=half), encoding="utf-8")
        scenario = load_scenario(str(path), data=None)
        addresses = scenario.addresses()
        secret = folder / "miner-password"
        secret.write_text("swingbus-bench", encoding="utf-8")
        secret.chmod(0o600)
        parts = ["[sampling]\nasic_period_s = 5.0\n"]
        for group in scenario.miners:
            parts.append(_ASIC_BANK.format(name=group.name))
            parts.extend(
                f'[[bank.miner]]\nname = "{device}"\naddress = "{addresses[device]}"\n'
                f'firmware = "{group.asic_class.firmware}"\n'
                + (f"password_file = {json.dumps(str(secret))}\n" if group.password is not None else "")
                for device in group.device_names()
            )
        log = folder / "sim.log"
        command = [sys.executable, "-m", "swingbus_sim.main", "run", str(path), "--dir", str(folder / "sim")]
        with running(command, log) as process:
            wait_for_file(folder / "sim" / "sim.json", process, log)
            yield "".join(parts), {}

    def is_right(bank: link_pb2.BankSamples, spec: link_pb2.BankSpec) -> bool:
        return len(bank.conditions) == half and all(1500.0 <= watts <= 6000.0 for watts in _power(bank, spec))

    return _measure(
        settings, "agent_asic", host, is_right, device_count=2 * half, period_s=5.0, memory_aim=72.0, cpu_aim=5.0
    )


Host = Callable[[Path], Any]
IsRight = Callable[[link_pb2.BankSamples, link_pb2.BankSpec], bool]


def _measure(
    settings: Settings,
    name: str,
    host: Host,
    is_right: IsRight,
    *,
    device_count: int,
    period_s: float,
    memory_aim: float,
    cpu_aim: float,
) -> list[Figure]:
    warm_up_s, window_s, windows = (4.0, 5.0, 1) if settings.quick else (25.0, 30.0, 3)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swingbus-bench-")))
        bundles = make_authority(folder, [AGENT])
        site = sites.container_site(folder, [AGENT], authority="observe")
        text, env = stack.enter_context(host(folder))
        server = stack.enter_context(controller(site))
        config = _write_config(folder, bundles, server.endpoint, text)
        command = [sys.executable, "-m", "tests.benchmarks.agent_as_installed", "run", "--config", str(config)]
        log = folder / "agent.log"
        if not settings.quick:
            settings.say(f"{name}: a first start compiles what an installed agent has compiled")
            with running(command, log, env=environment(**env)):
                time.sleep(8.0)
        with running(command, log, env=environment(**env)) as process:
            settings.say(f"{name}: {warm_up_s:.0f} s warm-up, {windows} windows of {window_s:.0f} s")
            time.sleep(warm_up_s)
            check(process.poll() is None, f"the agent ended:\n{tail(log)}")
            shares: list[float] = []
            alone: list[float] = []
            plain: list[float] = []
            began_unix_s = time.time()
            pids = tree(process.pid)
            for _ in range(windows):
                before = ({pid: cpu_s(pid) for pid in pids}, time.monotonic())
                time.sleep(window_s)
                after = ({pid: cpu_s(pid) for pid in tree(process.pid)}, time.monotonic())
                check(set(after[0]) == set(pids), f"a process of the agent ended or was replaced:\n{tail(log)}")
                shares.append(100 * (sum(after[0].values()) - sum(before[0].values())) / (after[1] - before[1]))
                seen = {pid: memory(pid) for pid in pids}
                plain.append(sum(m.pss_bytes for m in seen.values()) / 1e6)
                main = seen.pop(process.pid)
                alone.append((main.rss_bytes + sum(m.private_bytes for m in seen.values())) / 1e6)
            ended_unix_s = time.time()
            details: dict[str, object] = {
                "processes_mb": {
                    command_of(pid)[-60:]: {
                        "rss": round(memory(pid).rss_bytes / 1e6, 1),
                        "pss": round(memory(pid).pss_bytes / 1e6, 1),
                        "private": round(memory(pid).private_bytes / 1e6, 1),
                    }
                    for pid in pids
                },
                "cpu_ms_per_s": {
                    command_of(pid)[-60:]: round(1000 * (after[0][pid] - before[0][pid]) / window_s, 2) for pid in pids
                },
            }
            time.sleep(2.0)  # what was read last is committed
        stored = _stored(folder / "data" / "telemetry.sqlite", began_unix_s, ended_unix_s)
    details["samples_stored"] = stored["samples"]
    wanted = device_count * (ended_unix_s - began_unix_s) / period_s
    check(
        stored["samples"] >= (0.5 if settings.quick else 0.9) * wanted,
        f"{stored['samples']} samples, {wanted:.0f} are due",
    )
    check(
        stored["frames"] and all(is_right(*frame) for frame in stored["frames"]),
        "the stored numbers are not the devices'",
    )
    asserted = (
        f"{stored['samples']} device samples of the window are in the controller's database ({wanted:.0f} are due)",
        f"the power of every device in {len(stored['frames'])} stored bank frames is what the simulated devices showed",
        "every process of the agent lived through the windows",
    )
    cpu_notes = (
        "CPU of all its processes; sampling, spool (fsync), link over mutual TLS, host readings and metrics included",
    )
    return [
        Figure(
            name=f"{name}_pss",
            unit="MB (PSS of all its processes)",
            runs=tuple(plain),
            aim=memory_aim,
            is_lower_better=True,
            asserted=asserted,
            notes=(
                "the kernel's PSS beside a controller and this program, which share its interpreter and libraries: see the next figure",
                "a real driver library's own memory comes on top",
            ),
            details=details,
        ),
        Figure(
            name=f"{name}_alone",
            unit="MB (the same on a host of its own)",
            runs=tuple(alone),
            aim=memory_aim,
            is_lower_better=True,
            asserted=asserted,
            notes=(
                "resident main process plus private pages of its children: what PSS would be, at most, where nobody shares its libraries",
            ),
        ),
        Figure(
            name=f"{name}_cpu",
            unit="% of one core",
            runs=tuple(shares),
            aim=cpu_aim,
            is_lower_better=True,
            asserted=asserted,
            notes=cpu_notes,
        ),
    ]


def _publish(gpus: GpuHost, stopping: threading.Event) -> None:
    number = 0
    while not stopping.wait(0.5):
        number += 1
        for index in range(GPU_COUNT):
            watts = POWER_W[0] + (number + index) % 40
            gpus.change(index, power_average_w=watts, power_instant_w=watts, energy_j=12345.0 + 300.0 * number)


def _write_config(folder: Path, bundles: Path, endpoint: str, text: str) -> Path:
    state = folder / "agent"
    install_bundle(load_bundle(bundles / f"{AGENT}.toml"), state / "bundle")
    head = f'name = "{AGENT}"\nstate_dir = {json.dumps(str(state))}\nwrites = true\n'
    link = f'[controller]\nendpoint = "{endpoint}"\n[metrics]\nport = {_free_port()}\n'
    path = folder / "agent.toml"
    path.write_text(head + link + text, encoding="utf-8")
    return path


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _stored(path: Path, began_unix_s: float, ended_unix_s: float) -> dict[str, Any]:
    database = sqlite3.connect(path)
    try:
        rows = database.execute(
            "SELECT b.sample_count, b.payload, i.payload FROM batches b JOIN inventories i USING (inventory_id) "
            "WHERE b.sample_unix_s BETWEEN ? AND ?",
            (began_unix_s, ended_unix_s),
        ).fetchall()
    finally:
        database.close()
    frames: list[tuple[link_pb2.BankSamples, link_pb2.BankSpec]] = []
    for _, payload, inventory in rows[-40:]:
        specs = link_pb2.Inventory.FromString(inventory).banks
        batch = agent_link_service_pb2.StreamTelemetryRequest.FromString(payload).batch
        frames.extend((bank, specs[bank.bank_index]) for bank in batch.banks)
    return {"samples": sum(row[0] for row in rows), "frames": frames}


def _power(bank: link_pb2.BankSamples, spec: link_pb2.BankSpec) -> list[float]:
    width = len(spec.value_fields)
    column = list(spec.value_fields).index("power_w")
    return list(bank.values[column::width])
