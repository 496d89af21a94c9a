"""What may be asked of the running nodes over their socket: what is true now, and that something goes wrong.

One JSON object a line: `do` is status, fault or stop. Decides nothing about nodes.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from swingbus.faults import InvalidInput, SwingbusError
from swingbus_sim.kwok_site.kubelet import PodFaults

if TYPE_CHECKING:
    from swingbus_sim.kwok_site.running import KwokSite


class ControlDesk:
    """Answers at one socket."""

    def __init__(self, site: KwokSite) -> None:
        self._site = site

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one caller, line by line, until it leaves."""
        try:
            while line := await reader.readline():
                try:
                    answer = self._answer(json.loads(line))
                except (SwingbusError, ValueError, KeyError, TypeError) as error:
                    answer = {"error": f"{type(error).__name__}: {error}"}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        match request["do"]:
            case "status":
                return status_of(self._site)
            case "fault":
                inject_at(self._site, str(request["kind"]), str(request["node"]), float(request.get("seconds", 0.0)))
                return {}
            case "stop":
                self._site.stop()
                return {}
            case other:
                raise InvalidInput(f"{other!r} is none of status, fault, stop")


def status_of(site: KwokSite) -> dict[str, Any]:
    """Return what is true now."""
    gpus = [gpu for server in site.servers for gpu in server.gpus]
    now_s = site.clock.boottime_s()
    agents = [link.agent for link in site.links.values()]
    return {
        "pid": os.getpid(),
        "has_listed": site.has_listed,
        "watch_fault": site.watch_fault,
        "idle": sum(gpu.tenant is None for gpu in gpus),
        "mining": sum(gpu.tenant == "mining" for gpu in gpus),
        "inference": sum(gpu.tenant == "inference" for gpu in gpus),
        "power_w": sum(server.power_w for server in site.servers),
        "agents": len(agents),
        "agents_granted": sum(not agent.holding.is_lapsed(now_s) for agent in agents),
        "agents_applied": sum(agent.applied is not None for agent in agents),
        "faults": sorted({link.fault for link in site.links.values() if link.fault})[:5],
        "refusals": sorted({agent.holding.refusal for agent in agents if agent.holding.refusal})[:5],
    }


def inject_at(site: KwokSite, kind: str, node: str, seconds: float = 0.0) -> None:
    """Let something go wrong at a node, or right again (`heal`).

    Kinds: outlive (processes live on for `seconds`), stuck (containers do not end), silent (its agent leaves the wire), reboot.
    """
    kubelet, now_s = site.kubelets.get(node), site.clock.boottime_s()
    if kubelet is None:
        raise InvalidInput(f"no node {node!r} in this plan")
    link = site.links.get(node)
    match kind:
        case "outlive":
            kubelet.set_faults(PodFaults(outlive_s=seconds), now_s)
        case "stuck":
            kubelet.set_faults(PodFaults(never_stops=True), now_s)
        case "silent" if link is not None:
            link.go_silent()
        case "reboot":
            kubelet.reboot(now_s)
            if link is not None:
                link.reboot()
        case "heal":
            kubelet.set_faults(PodFaults(), now_s)
            if link is not None:
                link.come_back()
        case _:
            raise InvalidInput(f"{kind!r} is no fault that can be injected here")
