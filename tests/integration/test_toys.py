"""The toys as processes on a simulated host: what their GPUs show, what callers get, and how they leave."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from swingbus_sim.cluster.processes import wait_until
from tests.fakes.gpu_host import GpuHost, gpu_uuid

_ROOT = Path(__file__).parents[2]
_TIMEOUT_S = 15.0


@pytest.fixture
def host(tmp_path: Path) -> Iterator[GpuHost]:
    """Return a host with four GPUs."""
    host = GpuHost(tmp_path / "shelf", 4)
    yield host
    host.close()


@contextmanager
def toy(host: GpuHost, name: str, *flags: str, gpus: tuple[int, ...] = (1, 2)) -> Iterator[subprocess.Popen[str]]:
    """Run a toy as the device plugin would have it see its host, and end it whatever happens."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{_ROOT / 'sim'}:{_ROOT / 'protos'}",
        "SWINGBUS_SIM_SHELF": str(host.shelf.path),
        "NVIDIA_VISIBLE_DEVICES": ",".join(gpu_uuid(index) for index in gpus),
    }
    command = (sys.executable, "-m", f"swingbus_sim.toys.{name}", *flags)
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


@contextmanager
def server(host: GpuHost, *flags: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run the inference server on a free port of loopback."""
    with toy(host, "inference", "--host=127.0.0.1", "--port=0", *flags) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        assert "serves on 127.0.0.1:" in lines[-1], lines
        yield process, int(lines[-1].rpartition(":")[2])


def ask(port: int, method: str, target: str) -> tuple[int, dict[str, Any]]:
    """Ask the server once."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        connection.request(method, target, body=b"{}" if method == "POST" else None)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def shown(host: GpuHost) -> dict[int, float]:
    """Return each GPU's load as its host sees it."""
    return {process.gpu: round(process.load_ratio, 2) for process in host.shelf.processes()}


def test_miner_works_on_its_gpus_until_it_is_told_to_leave(host: GpuHost) -> None:
    """On all it was given and no other; it drains with its GPUs busy, then they are free and it ends with 0."""
    with toy(host, "miner", "--drain-s=1", "--intensity=0.8") as process:
        wait_until(lambda: shown(host) == {1: 0.8, 2: 0.8}, what="the miner's work", timeout_s=_TIMEOUT_S)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert shown(host) == {1: 0.8, 2: 0.8}
        assert process.wait(_TIMEOUT_S) == 0
        assert shown(host) == {}


def test_killed_miner_frees_its_gpus(host: GpuHost) -> None:
    """The kernel drops its seat with it."""
    with toy(host, "miner") as process:
        wait_until(lambda: shown(host) == {1: 1.0, 2: 1.0}, what="the miner's work", timeout_s=_TIMEOUT_S)
        process.kill()
        process.wait(_TIMEOUT_S)
        assert shown(host) == {}


def test_toy_without_a_gpu_says_what_to_do(host: GpuHost) -> None:
    """A pod that asked for no GPU, or one of another host, does not pretend to work."""
    for name in ("miner", "inference"):
        with toy(host, name, gpus=()) as process:
            assert "ask for nvidia.com/gpu" in process.communicate(timeout=_TIMEOUT_S)[0]
            assert process.returncode == 1
        with toy(host, name, gpus=(7,)) as process:
            assert "does not have" in process.communicate(timeout=_TIMEOUT_S)[0]
            assert process.returncode == 1


def test_wrong_flag_is_usage(host: GpuHost) -> None:
    """A number out of range is told with the flag's name."""
    with toy(host, "inference", "--level=2") as process:
        assert "--level" in process.communicate(timeout=_TIMEOUT_S)[0]
        assert process.returncode == 2


def test_server_loads_then_serves_and_its_gpus_show_it(host: GpuHost) -> None:
    """Alive at once, ready later; its load follows the level that somebody sets, and requests."""
    with server(host, "--load-s=1.5", "--slots=2", "--tokens-per-s=100") as (process, port):
        assert ask(port, "GET", "/healthz")[0] == 200
        assert ask(port, "GET", "/readyz")[0] == 503
        assert 0 < shown(host)[1] < 0.5
        wait_until(lambda: ask(port, "GET", "/readyz")[0] == 200, what="ready", timeout_s=_TIMEOUT_S, poll_s=0.1)
        assert ask(port, "POST", "/load?level=0.7")[0] == 200
        wait_until(lambda: shown(host) == {1: 0.7, 2: 0.7}, what="the level", timeout_s=_TIMEOUT_S)
        assert ask(port, "POST", "/load?level=0")[0] == 200
        answers: list[tuple[int, dict[str, Any]]] = []
        callers = [
            threading.Thread(target=lambda: answers.append(ask(port, "GET", "/generate?tokens=100"))) for _ in range(3)
        ]
        for caller in callers:
            caller.start()
        wait_until(lambda: shown(host) == {1: 1.0, 2: 1.0}, what="both slots", timeout_s=_TIMEOUT_S)
        for caller in callers:
            caller.join(_TIMEOUT_S)
        assert sorted(status for status, _ in answers) == [200, 200, 429]
        assert process.poll() is None


def test_server_finishes_what_runs_and_takes_nothing_new(host: GpuHost) -> None:
    """SIGTERM in the middle of a generation: its caller gets the answer, the next one is sent away, then it ends with 0."""
    with server(host, "--load-s=0", "--tokens-per-s=100", "--grace-s=10") as (process, port):
        wait_until(lambda: ask(port, "GET", "/readyz")[0] == 200, what="ready", timeout_s=_TIMEOUT_S, poll_s=0.1)
        answers: list[tuple[int, dict[str, Any]]] = []
        caller = threading.Thread(target=lambda: answers.append(ask(port, "GET", "/generate?tokens=200")))
        caller.start()
        wait_until(lambda: ask(port, "GET", "/load")[1]["running"] == 1, what="a generation", timeout_s=_TIMEOUT_S)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: ask(port, "GET", "/readyz")[0] == 503, what="draining", timeout_s=_TIMEOUT_S)
        assert ask(port, "GET", "/generate")[0] == 503
        caller.join(_TIMEOUT_S)
        assert answers == [(200, {"tokens": 200})]
        assert process.wait(_TIMEOUT_S) == 0
        assert shown(host) == {}
        assert process.stdout is not None and "served 1, refused 0, cut off 0" in process.stdout.read()


def test_server_cuts_off_what_outlasts_its_grace(host: GpuHost) -> None:
    """It ends when it said it would, and says how many it left without an answer."""
    with server(host, "--load-s=0", "--tokens-per-s=10", "--grace-s=0.5") as (process, port):
        wait_until(lambda: ask(port, "GET", "/readyz")[0] == 200, what="ready", timeout_s=_TIMEOUT_S, poll_s=0.1)
        lost: list[Exception] = []

        def call() -> None:
            try:
                ask(port, "GET", "/generate?tokens=1000")
            except (http.client.HTTPException, OSError) as error:
                lost.append(error)

        caller = threading.Thread(target=call)
        caller.start()
        wait_until(lambda: ask(port, "GET", "/load")[1]["running"] == 1, what="a generation", timeout_s=_TIMEOUT_S)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(_TIMEOUT_S) == 0 and time.monotonic() - began < 5
        caller.join(_TIMEOUT_S)
        assert len(lost) == 1
        assert process.stdout is not None and "cut off 1" in process.stdout.read()
