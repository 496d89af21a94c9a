"""The process that alone talks to the driver: it may be stuck or killed at any call, so it keeps nothing.

    python -m swingbus_agent.adapters.nvml.child PARENT serve|serve-writes   answers requests on stdin until it ends
    python -m swingbus_agent.adapters.nvml.child PARENT probe BUS_ID|INDEX   reads one GPU once; exit 0: it answers

PARENT is the agent's process number: when that process ends, so does this one, even in the middle of a call.

One JSON object per line each way. GPUs are answered in the order asked, each in a line of its own as soon as it is read: the
first that is missing when the client's deadline passes is the one that hangs. Imports stay few: this process counts in the
agent's memory. Requests: `open` (bus ids, or null to look), `sample` (positions, slow?, processes?), `limit` (position, mW).
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import time
from typing import Any

from swingbus_agent.adapters.nvml import plan

try:
    import pynvml
except ImportError:
    pynvml = None

_XID_EVENT = 8
_SENTINELS = frozenset({0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF})
_VALUE_ATTRIBUTES = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
_MOST_EVENTS_PER_ROUND = 64

Reading = tuple[list[float | None], dict[str, int]]
Answer = tuple[float | None, int]
Memo = dict[tuple[str, tuple[int, ...]], Any]


class Driver:
    """NVML with handles by position; every method may hang."""

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._events: Any = None
        self._is_open = False

    def open(self, bus_ids: list[str] | None, skip: list[int], with_events: bool) -> None:
        """Load the driver library, find GPUs (all but the indices in `skip`, or exactly `bus_ids`) and announce each."""
        if self._is_open:
            call("nvmlShutdown")
            self._is_open = False
        load_driver()
        self._is_open = True
        self._handles = []
        self._events = None
        count = len(bus_ids) if bus_ids is not None else call("nvmlDeviceGetCount")
        say({"count": count, "driver": text_or_none("nvmlSystemGetDriverVersion")})
        for position in range(count):
            if position in skip:
                self._handles.append(None)
                say({"gpu": None})
                continue
            try:
                if bus_ids is None:
                    handle = call("nvmlDeviceGetHandleByIndex", position)
                else:
                    handle = call("nvmlDeviceGetHandleByPciBusId", bus_ids[position])
                found = self._describe(handle)
            except DriverError as error:
                self._handles.append(None)
                say({"gpu": {"code": error.code}})
                continue
            self._handles.append(handle)
            say({"gpu": found})
        if with_events:
            self._watch_events()

    def sample(self, positions: list[int], slow: bool, processes: bool) -> dict[str, Any]:
        """Read GPUs one after another, announce each, and return what the driver's event queue holds."""
        for position in positions:
            handle = self._handles[position]
            started = boottime_ns()
            line: dict[str, Any] = {"at": position, "s": started}
            if handle is None:
                line["code"] = plan.GPU_IS_LOST
            else:
                try:
                    line["fast"] = read_tier(handle, plan.FAST_FIELDS, plan.FAST_CALLS)
                    if slow:
                        line["slow"] = read_tier(handle, plan.SLOW_FIELDS, plan.SLOW_CALLS)
                    if processes:
                        line["processes"] = read_processes(handle)
                except DriverError as error:
                    line = {"at": position, "s": started, "code": error.code}
            line["e"] = boottime_ns()
            say(line)
        return {"xids": self._xids()}

    def limit(self, position: int, limit_mw: int) -> None:
        """Ask for a power limit: the only write there is."""
        handle = self._handles[position]
        if handle is None:
            raise DriverError(plan.GPU_IS_LOST)
        call("nvmlDeviceSetPowerManagementLimit", handle, limit_mw)

    def _describe(self, handle: Any) -> dict[str, Any]:
        slow, slow_codes = read_tier(handle, plan.SLOW_FIELDS, plan.SLOW_CALLS)
        fast, fast_codes = read_tier(handle, plan.FAST_FIELDS, plan.FAST_CALLS)
        by_name = dict(zip((*plan.SLOW_COLUMNS, *plan.FAST_COLUMNS), (*slow, *fast), strict=True))
        try:
            is_mig: bool | None = bool(call("nvmlDeviceGetMigMode", handle)[0])
        except DriverError as error:
            if error.code in plan.LOST_CODES:
                raise
            is_mig = None
        return {
            "uuid": text_or_none("nvmlDeviceGetUUID", handle),
            "model": text_or_none("nvmlDeviceGetName", handle),
            "bus_id": as_text(call("nvmlDeviceGetPciInfo", handle).busId),
            "serial_number": text_or_none("nvmlDeviceGetSerial", handle),
            "vbios": text_or_none("nvmlDeviceGetVbiosVersion", handle),
            "default_limit_w": by_name["power_limit_default_w"],
            "min_limit_w": by_name["power_limit_min_w"],
            "max_limit_w": by_name["power_limit_max_w"],
            "memory_total_bytes": by_name["memory_total_bytes"],
            "is_mig_enabled": is_mig,
            "codes": {**fast_codes, **slow_codes},
        }

    def _watch_events(self) -> None:
        """Listen for XID errors where the driver can tell them; where it cannot, `xids` stays null."""
        try:
            events = call("nvmlEventSetCreate")
            heard = 0
            for handle in self._handles:
                if handle is None:
                    continue
                try:
                    call("nvmlDeviceRegisterEvents", handle, _XID_EVENT, events)
                    heard += 1
                except DriverError as error:
                    print(f"nvml: no XID events of one GPU: {plan.code_text(error.code)}", file=sys.stderr)
            self._events = events if heard else None
        except DriverError as error:
            print(f"nvml: no XID events: {plan.code_text(error.code)}", file=sys.stderr)

    def _xids(self) -> list[list[int]] | None:
        if self._events is None:
            return None
        found: list[list[int]] = []
        addresses = [
            ctypes.cast(handle, ctypes.c_void_p).value if handle is not None else None for handle in self._handles
        ]
        for _ in range(_MOST_EVENTS_PER_ROUND):
            try:
                event = call("nvmlEventSetWait", self._events, 0)
            except DriverError:  # a time-out is the end of the queue; a lost GPU is told by its own line
                break
            if event.eventType & _XID_EVENT:
                address = ctypes.cast(event.device, ctypes.c_void_p).value
                found.append([addresses.index(address) if address in addresses else -1, int(event.eventData)])
        return found


class DriverError(Exception):
    """The driver answered with a return code."""

    def __init__(self, code: int) -> None:
        super().__init__(plan.code_text(code))
        self.code = code


def load_driver() -> None:
    """Load the driver's library.

    Raises:
        DriverError: there is none, or no binding for it.
    """
    if pynvml is None:
        raise DriverError(plan.NO_BINDING)
    call("nvmlInit")


def call(function: str, *arguments: Any) -> Any:
    """Call one function of the binding and turn its errors into codes."""
    try:
        return getattr(pynvml, function)(*arguments)
    except pynvml.NVMLError as error:
        raise DriverError(int(error.value)) from error
    except AttributeError as error:  # this version of the binding does not know the function
        raise DriverError(plan.FUNCTION_NOT_FOUND) from error


def as_text(raw: Any) -> str:
    """Return the binding's text, which is bytes in places."""
    return raw.decode() if isinstance(raw, bytes) else str(raw)


def text_or_none(function: str, *arguments: Any) -> str | None:
    """Return a text, None where the driver has none; a lost GPU still raises."""
    try:
        return as_text(call(function, *arguments))
    except DriverError as error:
        if error.code in plan.LOST_CODES:
            raise
        return None


def read_tier(handle: Any, fields: dict[str, plan.Ways], calls: dict[str, plan.Call]) -> Reading:
    """Return one tier's readings in column order (None where there is none) and the code of each that is missing.

    Raises:
        DriverError: the GPU is lost.
    """
    values: list[float | None] = []
    codes: dict[str, int] = {}
    wanted = [field for ways, _ in fields.values() for way in ways for field in way]
    answers: dict[int, Answer] = {}
    all_code = plan.NOT_SUPPORTED
    try:
        answers = {answer.fieldId: decode(answer) for answer in call("nvmlDeviceGetFieldValues", handle, wanted)}
    except DriverError as error:
        if error.code in plan.LOST_CODES:
            raise
        all_code = error.code
    for name, (ways, unit) in fields.items():
        value, code = None, all_code
        for way in ways:
            found = [answers[field] for field in way if field in answers]
            numbers = [number for number, _ in found if number is not None]
            if numbers:
                value, code = sum(numbers) / unit, plan.SUCCESS
                break
            code = found[0][1] if found else all_code
        values.append(settle(handle, name, value, code, codes))
    memo: Memo = {}
    for name, each in calls.items():
        value, code = ask(handle, each, memo)
        values.append(settle(handle, name, value, code, codes))
    return values, codes


def read_processes(handle: Any) -> list[list[int | None]] | int:
    """Return process numbers and their memory on this GPU, or the code that says why not."""
    try:
        found = call("nvmlDeviceGetComputeRunningProcesses", handle)
    except DriverError as error:
        if error.code in plan.LOST_CODES:
            raise
        return error.code
    return [[each.pid, each.usedGpuMemory] for each in found]


def settle(handle: Any, name: str, value: float | None, code: int, codes: dict[str, int]) -> float | None:
    """Return the value, or the fallback's where this way is unsupported; note the code if there is neither."""
    if code in plan.UNSUPPORTED_CODES and name in plan.FALLBACKS:
        value, code = ask(handle, plan.FALLBACKS[name], {})
    if code in plan.LOST_CODES:
        raise DriverError(code)
    if code != plan.SUCCESS:
        codes[name] = code
        return None
    return value


def decode(answer: Any) -> Answer:
    """Return one field value, still in NVML's unit, and its own return code."""
    if answer.nvmlReturn != plan.SUCCESS:
        return None, int(answer.nvmlReturn)
    if not 0 <= answer.valueType < len(_VALUE_ATTRIBUTES):
        return None, plan.NOT_SUPPORTED
    raw = getattr(answer.value, _VALUE_ATTRIBUTES[answer.valueType])
    return (None, plan.SENTINEL) if raw in _SENTINELS else (raw, plan.SUCCESS)


def ask(handle: Any, question: plan.Call, memo: Memo) -> Answer:
    """Call a getter (once per tier: two fields may share one answer) and return its value in our unit and a code."""
    function, arguments, attribute, unit = question
    key = (function, arguments)
    if key not in memo:
        try:
            memo[key] = call(function, handle, *arguments)
        except DriverError as error:
            memo[key] = error
    answer = memo[key]
    if isinstance(answer, DriverError):
        return None, answer.code
    if attribute is not None:
        answer = answer[int(attribute)] if attribute.isdigit() else getattr(answer, attribute)
    return (None, plan.SENTINEL) if answer in _SENTINELS else (answer / unit, plan.SUCCESS)


def boottime_ns() -> int:
    """Return CLOCK_BOOTTIME."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def say(line: dict[str, Any]) -> None:
    """Send one line now: what was said before a hang must have left."""
    sys.stdout.write(json.dumps(line, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def serve(driver: Driver, *, writes: bool) -> None:
    """Answer requests until stdin ends."""
    for raw in sys.stdin:
        request = json.loads(raw)
        try:
            result: dict[str, Any] = {}
            match request["op"]:
                case "open":
                    driver.open(request["bus_ids"], request["skip"], request["events"])
                case "sample":
                    result = driver.sample(request["gpus"], request["slow"], request["processes"])
                case "limit" if writes:
                    driver.limit(request["gpu"], request["limit_mw"])
                case "limit":
                    raise DriverError(plan.WRITES_ARE_OFF)
                case other:
                    raise ValueError(f"the agent asked its child for {other!r}, which there is not")
        except DriverError as error:
            say({"done": request["id"], "code": error.code})
        else:
            say({"done": request["id"], **result})


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when the agent ends, even in the middle of a call."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it ended before the kernel was asked
        sys.exit(0)


def probe(name: str) -> int:
    """Open and read one GPU, named by its bus id or its number; return 0 if it answers, 1 if it is lost, or never return."""
    if pynvml is None:
        return 1
    try:
        call("nvmlInit")
        if ":" in name:
            handle = call("nvmlDeviceGetHandleByPciBusId", name)
        else:
            handle = call("nvmlDeviceGetHandleByIndex", int(name))
        read_tier(handle, plan.FAST_FIELDS, plan.FAST_CALLS)
        read_tier(handle, plan.SLOW_FIELDS, plan.SLOW_CALLS)
        read_processes(handle)
    except DriverError:
        return 1
    return 0


def slim_down() -> None:
    """Give back what importing needed: compiling the binding, where no bytecode is cached, leaves 11 MB behind."""
    gc.collect()
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, others may not
    if trim is not None:
        trim(0)


def main() -> int:
    """Serve the agent, or probe one GPU."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the agent, which closes our stdin
    die_with(int(sys.argv[1]))
    slim_down()
    if sys.argv[2] == "probe":
        return probe(sys.argv[3])
    serve(Driver(), writes=sys.argv[2] == "serve-writes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
