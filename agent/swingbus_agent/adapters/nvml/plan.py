"""Which NVML question answers which of our fields, for the child and its client alike.

Knows NVML's field ids, functions and units; knows nothing of processes or time. Kept free of imports: the child stays small.
Invariant: every field of `fields.GPU_FIELDS` is here exactly once.
"""

from __future__ import annotations

# name: (ways to read it, what one of our units is in NVML's). A way is a tuple of NVML field ids whose sum it is, over those
# that this GPU answers; the first way with any answer counts.
Ways = tuple[tuple[tuple[int, ...], ...], float]
FAST_FIELDS: dict[str, Ways] = {
    "energy_j": (((83,),), 1e3),
    "power_w": (((185,),), 1e3),
    "power_instant_w": (((186,),), 1e3),
    "power_limit_enforced_w": (((190,),), 1e3),
    "power_limit_requested_w": (((192,),), 1e3),
    "memory_temperature_c": (((82,),), 1),
}
SLOW_FIELDS: dict[str, Ways] = {
    "power_limit_default_w": (((189,),), 1e3),
    "power_limit_min_w": (((187,),), 1e3),
    "power_limit_max_w": (((188,),), 1e3),
    "row_remap_pending": (((144,),), 1),
    "row_remap_failed": (((145,),), 1),
    "recovery_action": (((230,),), 1),
    "throttle_power_s": (((74,),), 1e9),
    "throttle_sync_boost_s": (((76,),), 1e9),
    "throttle_thermal_s": (((269, 270), (75,)), 1e9),
    "throttle_power_brake_s": (((271,),), 1e9),
    "ecc_corrected_count": (((3,),), 1),
    "ecc_uncorrected_count": (((4,),), 1),
    "remapped_rows_count": (((142, 143),), 1),
    "pcie_replay_count": (((94,),), 1),
    "nvlink_error_count": (((38, 45, 52, 59), (161, 162, 163)), 1),
}

# name: (function, its arguments after the handle, attribute or place in the answer or None, what one of our units is in NVML's)
Call = tuple[str, tuple[int, ...], str | None, float]
FAST_CALLS: dict[str, Call] = {
    "temperature_c": ("nvmlDeviceGetTemperatureV", (0,), None, 1),
    "sm_clock_mhz": ("nvmlDeviceGetClockInfo", (1,), None, 1),
    "memory_clock_mhz": ("nvmlDeviceGetClockInfo", (2,), None, 1),
    "utilisation_ratio": ("nvmlDeviceGetUtilizationRates", (), "gpu", 100),
    "memory_utilisation_ratio": ("nvmlDeviceGetUtilizationRates", (), "memory", 100),
    "memory_used_bytes": ("nvmlDeviceGetMemoryInfo", (), "used", 1),
    "memory_total_bytes": ("nvmlDeviceGetMemoryInfo", (), "total", 1),
    "throttle_reasons": ("nvmlDeviceGetCurrentClocksEventReasons", (), None, 1),
}
SLOW_CALLS: dict[str, Call] = {
    "pcie_generation": ("nvmlDeviceGetCurrPcieLinkGeneration", (), None, 1),
    "pcie_width": ("nvmlDeviceGetCurrPcieLinkWidth", (), None, 1),
}

# Asked instead where the first way is unsupported (older drivers); each means the same, but that `power_w` of GA100 and older
# chips is then one instant instead of a mean.
FALLBACKS: dict[str, Call] = {
    "energy_j": ("nvmlDeviceGetTotalEnergyConsumption", (), None, 1e3),
    "power_w": ("nvmlDeviceGetPowerUsage", (), None, 1e3),
    "power_limit_enforced_w": ("nvmlDeviceGetEnforcedPowerLimit", (), None, 1e3),
    "power_limit_requested_w": ("nvmlDeviceGetPowerManagementLimit", (), None, 1e3),
    "power_limit_default_w": ("nvmlDeviceGetPowerManagementDefaultLimit", (), None, 1e3),
    "power_limit_min_w": ("nvmlDeviceGetPowerManagementLimitConstraints", (), "0", 1e3),
    "power_limit_max_w": ("nvmlDeviceGetPowerManagementLimitConstraints", (), "1", 1e3),
    "temperature_c": ("nvmlDeviceGetTemperature", (0,), None, 1),
    "throttle_reasons": ("nvmlDeviceGetCurrentClocksThrottleReasons", (), None, 1),
    "pcie_replay_count": ("nvmlDeviceGetPcieReplayCounter", (), None, 1),
    "ecc_corrected_count": ("nvmlDeviceGetTotalEccErrors", (0, 0), None, 1),
    "ecc_uncorrected_count": ("nvmlDeviceGetTotalEccErrors", (1, 0), None, 1),
    "row_remap_pending": ("nvmlDeviceGetRemappedRows", (), "2", 1),
    "row_remap_failed": ("nvmlDeviceGetRemappedRows", (), "3", 1),
}

FAST_COLUMNS: tuple[str, ...] = (*FAST_FIELDS, *FAST_CALLS)
SLOW_COLUMNS: tuple[str, ...] = (*SLOW_FIELDS, *SLOW_CALLS)

# The rest of `fields.GPU_FIELDS` is counted by the client from lists that the child sends.
PROCESS_COUNT = "process_count"
XID_FIELDS = ("xid", "xid_count")

# NVML's return codes that the client tells apart.
SUCCESS = 0
NOT_SUPPORTED = 3
NO_PERMISSION = 4
INVALID_ARGUMENT = 2
NOT_FOUND = 6
DRIVER_NOT_LOADED = 9
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
VERSION_MISMATCH = 25
GPU_NOT_FOUND = 28
SENTINEL = -1  # ours: the driver's "not available" number came instead of a code
NO_BINDING = -2  # ours: the Python package nvidia-ml-py is not installed
WRITES_ARE_OFF = -3  # ours: this child was started read-only

UNSUPPORTED_CODES = frozenset({NOT_SUPPORTED, FUNCTION_NOT_FOUND, VERSION_MISMATCH, SENTINEL})
LOST_CODES = frozenset({GPU_IS_LOST, GPU_NOT_FOUND, NOT_FOUND})

_WORDS = {
    1: "the driver library is not initialised",
    INVALID_ARGUMENT: "the driver calls the argument invalid",
    NOT_SUPPORTED: "not supported by this GPU or driver",
    NO_PERMISSION: "no permission: this needs root or CAP_SYS_ADMIN",
    NOT_FOUND: "not found by the driver",
    DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded",
    10: "the driver timed out",
    LIBRARY_NOT_FOUND: "no NVIDIA driver library (libnvidia-ml.so.1) on this host",
    FUNCTION_NOT_FOUND: "this driver does not have the function",
    GPU_IS_LOST: "the GPU has fallen off the bus or is otherwise lost",
    16: "the GPU needs a reset before it can be used again",
    18: "the driver library and the kernel module are of different versions: reboot or reload the module",
    VERSION_MISMATCH: "this driver speaks another version of the structure",
    GPU_NOT_FOUND: "no GPU found",
    SENTINEL: "the driver answered its number for 'not available'",
    NO_BINDING: "the Python package nvidia-ml-py is not installed: install swingbus[agent]",
    WRITES_ARE_OFF: "writing is off in this agent's file",
}


def code_text(code: int) -> str:
    """Return an NVML return code (or one of ours, below zero) in words."""
    return _WORDS.get(code, f"NVML error {code}")
