"""Power limits through the privileged child: implements the port `GpuActuator`.

Decides what an answer of the child means for whoever asked. Reads GPUs from the source, which runs without root. Invariant: a limit that
may have been set is TimedOut, never refused.
"""

from __future__ import annotations

from swingbus.faults import Forbidden, NotFound, TimedOut, Unreachable
from swingbus_agent.adapters.nvml.source import raise_for_code, refuse_outside
from swingbus_agent.adapters.privileged.link import KeeperLink
from swingbus_agent.adapters.privileged.words import Outcome
from swingbus_agent.domain.gpu import GpuInventory
from swingbus_agent.ports.gpu import GpuSource


class KeptLimits:
    """Asks the child for the limits of the source's GPUs."""

    def __init__(self, source: GpuSource, link: KeeperLink) -> None:
        self._source = source
        self._link = link

    async def set_power_limit(self, uuid: str, power_w: float) -> None:
        """Ask for a limit (see the port for what it raises)."""
        inventory = await self._source.inventory()
        if not isinstance(inventory, GpuInventory):
            raise Unreachable(f"GPU {uuid} cannot be asked now: {inventory.reason}", reason="GPU_UNREACHABLE")
        gpu = next((each for each in inventory.gpus if each.uuid == uuid), None)
        if gpu is None:
            raise NotFound(f"no GPU {uuid} on this host: `swingbus-agent check` lists them", reason="NO_SUCH_GPU")
        if gpu.bus_id is None:
            raise Unreachable(f"GPU {uuid} did not say where it is: its limit cannot be set", reason="GPU_UNREACHABLE")
        refuse_outside(gpu, power_w)
        reply = await self._link.set_limit(uuid, gpu.bus_id, round(power_w * 1000))
        match reply.outcome:
            case Outcome.DONE:
                return
            case Outcome.DRIVER:
                raise_for_code(reply.code, uuid, power_w)
            case Outcome.REFUSED:
                raise Forbidden(
                    f"the privileged child refuses a limit of {uuid}: {reply.why}", reason="LIMIT_NOT_PERMITTED"
                )
            case Outcome.UNAVAILABLE:
                raise Unreachable(f"GPU {uuid} cannot be asked now: {reply.why}", reason="GPU_UNREACHABLE")
            case Outcome.NO_ANSWER:
                raise TimedOut(f"GPU {uuid}: {reply.why}; the limit may or may not be set")
