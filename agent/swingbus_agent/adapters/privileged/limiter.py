"""The worker that sets power limits as root: it may be stuck or killed at any call, so it keeps nothing.

    python -I -m swingbus_agent.adapters.privileged.limiter PARENT

Says one line when the driver is open, then answers each line `{uuid, bus_id, limit_mw}` with `{code}`, NVML's. Decides only what the
driver itself would let pass unseen: that the GPU at that address is the one that is meant, and that the limit is within its range.
"""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

from swingbus_agent.adapters.nvml import plan
from swingbus_agent.adapters.nvml.child import DriverError, as_text, call, die_with, load_driver, say, slim_down


def set_limit(bus_id: str, uuid: str, limit_mw: int) -> None:
    """Set one GPU's limit.

    Raises:
        DriverError: it is not there, or takes no such limit.
    """
    # By its address: looking for the name would touch GPUs that hang.
    handle = call("nvmlDeviceGetHandleByPciBusId", bus_id)
    if as_text(call("nvmlDeviceGetUUID", handle)) != uuid:
        raise DriverError(plan.GPU_NOT_FOUND)
    try:
        least_mw, most_mw = call("nvmlDeviceGetPowerManagementLimitConstraints", handle)
    except DriverError as error:
        if error.code not in plan.UNSUPPORTED_CODES:
            raise
    else:
        if not least_mw <= limit_mw <= most_mw:
            raise DriverError(plan.INVALID_ARGUMENT)
    call("nvmlDeviceSetPowerManagementLimit", handle, limit_mw)


def serve() -> int:
    """Answer until stdin ends."""
    code = plan.SUCCESS
    try:
        load_driver()
    except DriverError as error:
        code = error.code
    say({"code": code})
    for raw in sys.stdin:
        request: dict[str, Any] = json.loads(raw)
        answer = code
        if code == plan.SUCCESS:
            try:
                set_limit(request["bus_id"], request["uuid"], request["limit_mw"])
            except DriverError as error:
                answer = error.code
        say({"code": answer})
    return 0


def main() -> int:
    """Serve the privileged child."""
    for number in (signal.SIGINT, signal.SIGTERM):  # both are for the agent; this ends with its parent
        signal.signal(number, signal.SIG_IGN)
    die_with(int(sys.argv[1]))
    slim_down()
    return serve()


if __name__ == "__main__":
    sys.exit(main())
