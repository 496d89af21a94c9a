"""Serves one meter's registers over Modbus TCP. The only module that knows pymodbus's server side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from swingbus.faults import WrongState
from swingbus_sim.meters.meter import Meter
from swingbus_sim.meters.registers import REGISTER_COUNT

_START_S = 5.0


def _device(meter: Meter, now: Callable[[], float]) -> SimDevice:
    async def refresh(
        function_code: int,
        start_address: int,
        address: int,
        count: int,
        current_registers: list[int],
        set_values: list[int] | list[bool] | None,
    ) -> ExcCodes | None:
        """Fill the whole map before it is read, so that one request sees one window; refuse writes."""
        if set_values is not None:
            return ExcCodes.ILLEGAL_FUNCTION
        fresh = meter.registers(now())
        if fresh is None:
            return ExcCodes.DEVICE_BUSY
        current_registers[:] = fresh
        return None

    registers = SimData(address=0, count=REGISTER_COUNT, values=0, datatype=DataType.REGISTERS)
    return SimDevice(id=0, simdata=registers, action=refresh)


@asynccontextmanager
async def serve_meters(meters: Sequence[Meter], now: Callable[[], float]) -> AsyncIterator[None]:
    """Serve every meter on its own address until the block ends; `now` gives the world's seconds.

    Raises:
        WrongState: an address is taken.
    """
    servers: list[ModbusTcpServer] = []
    try:
        for meter in meters:
            server = ModbusTcpServer(_device(meter, now), address=(meter.spec.address, meter.spec.port))
            try:
                async with asyncio.timeout(_START_S):
                    await server.serve_forever(background=True)
            except (RuntimeError, OSError) as error:
                raise WrongState(
                    f"meter {meter.spec.name}: cannot listen on {meter.spec.address}:{meter.spec.port}: {error}; "
                    "end the other simulator, or give --shift"
                ) from error
            servers.append(server)
        yield
    finally:
        for server in servers:
            async with asyncio.timeout(_START_S):
                await server.shutdown()  # type: ignore[no-untyped-call]  # pymodbus leaves it unannotated
