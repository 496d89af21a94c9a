"""The simulator as a process: meters, miners, shelves, control socket and the judge over real sockets."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pymodbus.client import AsyncModbusTcpClient

from swingbus.faults import InvalidInput, Unreachable
from swingbus_sim.control import ask
from swingbus_sim.meters.registers import REGISTER_COUNT

_START_S = 30.0


def _sim(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "swingbus_sim.main", *arguments]


@contextmanager
def running_site(folder: Path, *, shift: int, seconds: float = 60.0) -> Iterator[subprocess.Popen[bytes]]:
    """Run the small scenario until the block ends; yields once everything listens."""
    command = _sim("run", "small", "--dir", str(folder), "--shift", str(shift), "--for", str(seconds))
    with subprocess.Popen(command) as process:
        try:
            deadline_s = time.monotonic() + _START_S
            while not (folder / "sim.json").exists():
                assert process.poll() is None, "the simulator ended early"
                assert time.monotonic() < deadline_s, "the simulator did not get ready"
                time.sleep(0.05)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=20)


def _listening_judge(truth: str, verdict_path: Path) -> subprocess.Popen[bytes]:
    command = _sim("judge", "--truth", truth, "--scenario", "small", "--out", str(verdict_path))
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


async def _registers(endpoint: str) -> list[int]:
    host, _, port = endpoint.partition(":")
    client = AsyncModbusTcpClient(host, port=int(port))
    try:
        async with asyncio.timeout(5.0):
            assert await client.connect()
            reply = await client.read_holding_registers(0, count=REGISTER_COUNT, device_id=1)
        assert not reply.isError()
        return list(reply.registers)
    finally:
        client.close()


def _float(registers: list[int], at: int, *, is_low_first: bool = False) -> float:
    words = registers[at : at + 2]
    return float(struct.unpack(">f", struct.pack(">2H", *(reversed(words) if is_low_first else words)))[0])


def _luxos(host: str) -> dict[str, Any]:
    with socket.create_connection((host, 4028), timeout=3.0) as connection:
        connection.sendall(b'{"command":"summary"}')
        connection.settimeout(3.0)
        raw = b""
        while chunk := connection.recv(4096):
            raw += chunk
    reply: dict[str, Any] = json.loads(raw.rstrip(b"\0"))
    return reply


@pytest.mark.slow
async def test_running_site_shows_the_same_truth_on_every_wire(tmp_path: Path) -> None:
    """Meter, status and truth agree; a planted fault reaches the socket it belongs to; the judge acquits a quiet site."""
    folder = tmp_path / "run"
    with running_site(folder, shift=40) as process:
        ready = json.loads((folder / "sim.json").read_text(encoding="utf-8"))
        verdict_path = tmp_path / "verdict.json"
        with _listening_judge(ready["truth_socket"], verdict_path) as judge:
            site = await _registers(ready["meters"]["site"])
            container = await _registers(ready["meters"]["c1"])
            status = await ask(folder, {"do": "status"})
            true_w = status["nodes"]["grid"]["power_w"]
            assert site[0] == 1
            assert _float(site, 2) == pytest.approx(true_w, rel=0.03)
            assert _float(container, 2, is_low_first=True) == pytest.approx(status["nodes"]["c1"]["power_w"], rel=0.03)
            assert (folder / "shelves" / "g1").stat().st_size > 0

            host = ready["miners"]["lux-001"]
            assert _luxos(host)["SUMMARY"][0]["GHS 5s"] > 100_000
            await ask(folder, {"do": "inject", "event": {"kind": "hung_socket", "targets": ["lux-001"], "for_s": 30}})
            with pytest.raises(TimeoutError):
                await asyncio.to_thread(_luxos, host)

            with pytest.raises(InvalidInput, match="no 'lux-999'"):
                await ask(folder, {"do": "inject", "event": {"kind": "hung_socket", "targets": ["lux-999"]}})
            with pytest.raises(InvalidInput, match="is unknown"):
                await ask(folder, {"do": "dance"})
            assert (await ask(folder, {"do": "series"}))["series"]["price_usd_per_mwh"]["now"] == 40.0
            assert (await ask(folder, {"do": "device", "name": "lux-002"}))["state"] == "M"

            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(judge.wait, 20) == 0
        verdict = json.loads(verdict_path.read_text(encoding="utf-8"))
        assert verdict["verdict"] == "NOT GUILTY" and verdict["is_complete"]
        assert verdict["seconds"] > 2.0
        assert "hung_socket" in verdict["fault_kinds"]


@pytest.mark.slow
async def test_controller_less_site_over_a_lowered_limit_is_judged_guilty(tmp_path: Path) -> None:
    """Nobody reduces: after ramp and reaction time the excess is held against the controller. Killed, the log still judges."""
    folder = tmp_path / "run"
    with running_site(folder, shift=41) as process:
        event = {"kind": "limit", "targets": ["grid"], "limit_w": 15_000, "for_s": 40, "ramp_s": 0}
        await ask(folder, {"do": "inject", "event": event})
        await asyncio.sleep(16.0)
        process.kill()
        process.wait(timeout=10)
    verdict_path = tmp_path / "verdict.json"
    judged = await asyncio.to_thread(
        subprocess.run,
        _sim("judge", "--truth", str(folder / "truth.jsonl.gz"), "--scenario", "small", "--out", str(verdict_path)),
        stdout=subprocess.DEVNULL,
        timeout=30,
    )
    verdict = json.loads(verdict_path.read_text(encoding="utf-8"))

    assert judged.returncode == 1
    assert verdict["verdict"] == "GUILTY"
    assert verdict["over_cap_ws"]["limit_lowered"] > 0.0
    assert verdict["over_cap_ws"]["authorised"] > 0.0
    assert not verdict["is_complete"]
    assert verdict["curtailment_seconds_to_comply"] is None


async def test_nobody_home_is_told_with_the_next_step(tmp_path: Path) -> None:
    """Asking a simulator that does not run says so."""
    with pytest.raises(Unreachable, match="swingbus-sim run"):
        await ask(tmp_path, {"do": "status"})


def test_judge_refuses_a_truth_of_another_site(tmp_path: Path) -> None:
    """A truth whose limits are not the scenario's is no evidence."""
    truth = tmp_path / "truth.jsonl"
    truth.write_text('{"type":"header","format":1}\n', encoding="utf-8")
    judged = subprocess.run(
        _sim("judge", "--truth", str(truth), "--scenario", "small", "--out", str(tmp_path / "v.json")),
        capture_output=True,
        timeout=30,
    )

    assert judged.returncode == 2
    assert b"lacks scenario" in judged.stderr
