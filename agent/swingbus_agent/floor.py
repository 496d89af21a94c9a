"""Set every GPU of the agent's banks to the least limit that it takes, once, and read it back: before a kubelet starts anything.

After a reboot GPUs have their default limits, bound pods start again at once and pass no gate, and the agent's own pod starts beside them.
A host unit runs this before all of them. Decides which GPUs are at their floor. Needs no controller, no grant and no state. Invariant: a
GPU is told to be at its floor only by a driver session that began after the one that set it ended: without persistence a driver forgets a
limit with its last user.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence

from swingbus.faults import SwingbusError
from swingbus_agent.adapters.nvml.source import NvmlGpus
from swingbus_agent.check import Finding, Grade
from swingbus_agent.domain.asking import is_close
from swingbus_agent.domain.gpu import GpuIdentity, GpuInventory, GpuRound
from swingbus_agent.domain.readings import Kind
from swingbus_agent.settings import AgentSettings, BankSettings

_RETRY_S = 1.0
_READ_BACK_S = 3.0  # a limit shows after up to a second
_LOOK_S = 0.2

MakeSource = Callable[[bool], NvmlGpus]


async def set_floors(
    settings: AgentSettings, *, wait_s: float, make_source: MakeSource = lambda writes: NvmlGpus(writes=writes)
) -> list[Finding]:
    """Return one finding per GPU, and what else is wrong.

    Args:
        settings: the agent's.
        wait_s: how long the driver may take to show every GPU that the banks name; a host that boots may not be ready.
        make_source: makes a driver session, that may set limits or not.
    """
    banks = [bank for bank in settings.banks if bank.kind is Kind.GPU]
    if not banks:
        return [_wrong("floor", "this file names no bank of GPUs: nothing was set; add a [[bank]] of kind gpu")]
    if not settings.writes:
        return [_wrong("floor", "this file has writes = false: nothing may be set; set writes = true")]
    findings, floors = await _set_all(banks, wait_s, make_source)
    return [*findings, *await _read_back(floors, make_source)]


async def _set_all(
    banks: Sequence[BankSettings], wait_s: float, make_source: MakeSource
) -> tuple[list[Finding], dict[str, tuple[float, float | None]]]:
    """Set limits; return what went wrong, and for each GPU that took its floor the watts set and those before."""
    findings: list[Finding] = []
    floors: dict[str, tuple[float, float | None]] = {}
    source, inventory = await _wait_for(banks, wait_s, make_source)
    try:
        if not isinstance(inventory, GpuInventory):
            return [_wrong("driver", f"{inventory}; nothing was set")], {}
        found = {gpu.uuid: gpu for gpu in inventory.gpus}
        before = await _limits(source)
        for uuid in _wanted(banks, inventory):
            gpu = found.get(uuid)
            if gpu is None:
                findings.append(_wrong("gpu", f"{uuid} is not on this host; mend `gpus`, or look at the machine"))
                continue
            try:
                floor_w = _floor_of(gpu)
                await source.set_power_limit(uuid, floor_w)
                floors[uuid] = (floor_w, before.get(uuid))
            except (SwingbusError, ValueError) as error:
                findings.append(_wrong("gpu", f"{uuid}: {error}"))
    finally:
        await source.aclose()
    return findings, floors


async def _wait_for(
    banks: Sequence[BankSettings], wait_s: float, make_source: MakeSource
) -> tuple[NvmlGpus, GpuInventory | str]:
    """Return a session that sees every GPU wanted, or the last one tried and what it saw."""
    ends_s = asyncio.get_running_loop().time() + wait_s
    while True:
        source = make_source(True)
        answer = await source.inventory()
        if isinstance(answer, GpuInventory):
            found = {gpu.uuid for gpu in answer.gpus}
            wanted = _wanted(banks, answer)
            if wanted and found.issuperset(wanted):
                return source, answer
        if asyncio.get_running_loop().time() + _RETRY_S > ends_s:
            if isinstance(answer, GpuInventory):
                return source, answer if answer.gpus else "the driver answers, but there is no GPU"
            return source, answer.reason
        await source.aclose()  # a driver that comes later is seen by a new session only
        await asyncio.sleep(_RETRY_S)


def _wanted(banks: Sequence[BankSettings], inventory: GpuInventory) -> list[str]:
    """Return the GPUs of the banks: the named ones, or all where a bank takes all."""
    named = [uuid for bank in banks for uuid in bank.gpus]
    rest = [gpu.uuid for gpu in inventory.gpus if gpu.uuid not in named]
    return [*named, *(rest if any(not bank.gpus for bank in banks) else [])]


def _floor_of(gpu: GpuIdentity) -> float:
    if gpu.min_limit_w is None or gpu.min_limit_w <= 0:
        raise ValueError("its driver does not say the least limit that it takes")
    return gpu.min_limit_w


async def _limits(source: NvmlGpus) -> dict[str, float]:
    """Return what each GPU enforces, as far as it says."""
    answer = await source.sample()
    if not isinstance(answer, GpuRound):
        return {}
    said = {gpu.uuid: gpu.values.get("power_limit_enforced_w") for gpu in answer.gpus}
    return {uuid: watts for uuid, watts in said.items() if watts is not None}


async def _read_back(floors: dict[str, tuple[float, float | None]], make_source: MakeSource) -> list[Finding]:
    """Return whether each GPU is at its floor, by a session of its own."""
    if not floors:
        return []
    source = make_source(False)
    try:
        ends_s = asyncio.get_running_loop().time() + _READ_BACK_S
        while True:
            seen = await _limits(source)
            is_done = all(is_close(seen.get(uuid), floor_w) for uuid, (floor_w, _) in floors.items())
            if is_done or asyncio.get_running_loop().time() >= ends_s:
                return [_judge(uuid, floor_w, was_w, seen.get(uuid)) for uuid, (floor_w, was_w) in floors.items()]
            await asyncio.sleep(_LOOK_S)
    finally:
        await source.aclose()


def _judge(uuid: str, floor_w: float, was_w: float | None, seen_w: float | None) -> Finding:
    if seen_w is None:
        return _wrong("gpu", f"{uuid}: set to {floor_w:g} W, but it does not say what it enforces; look at the machine")
    if not is_close(seen_w, floor_w):
        return _wrong(
            "gpu",
            f"{uuid}: set to {floor_w:g} W, but enforces {seen_w:g} W; if it is the default again, the driver forgot it when its last user "
            "left: switch persistence on (nvidia-persistenced)",
        )
    was = "" if was_w is None or is_close(was_w, floor_w) else f"; was {was_w:g} W"
    return Finding(grade=Grade.SEEN, what="gpu", text=f"{uuid}: {floor_w:g} W, the least that it takes, read back{was}")


def _wrong(what: str, text: str) -> Finding:
    hint = "" if os.geteuid() == 0 or "permission" not in text else f" (this is user {os.geteuid()})"
    return Finding(grade=Grade.WRONG, what=what, text=text + hint)
