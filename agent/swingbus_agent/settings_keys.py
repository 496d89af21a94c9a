"""Every key of the agent's configuration file: path, type, default, bounds, meaning.

Decides what a configuration may contain; knows nothing of files. `docs/agent.md` repeats this list and a test compares
the two. Invariant: a key that is not here is refused. `[]` in a path marks a table that may be repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


class Required:
    """Marks a key without a default."""


REQUIRED: Final = Required()


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key. `type` is text, number, integer, flag, texts or table (of texts)."""

    path: str
    type: str
    default: object
    meaning: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()


def _key(
    path: str,
    type_: str,
    default: object,
    meaning: str,
    bounds: tuple[float | None, float | None] = (None, None),
    choices: tuple[str, ...] = (),
) -> Key:
    return Key(
        path=path, type=type_, default=default, meaning=meaning, minimum=bounds[0], maximum=bounds[1], choices=choices
    )


_POSITIVE = (0.0, None)

KEYS: tuple[Key, ...] = (
    _key(
        "name", "text", REQUIRED, "this agent's id; the same as in its certificate (lower-case letters, digits, dashes)"
    ),
    _key(
        "state_dir", "text", "/var/lib/swingbus-agent", "where grant, spool and certificate live; must survive a reboot"
    ),
    _key(
        "writes",
        "flag",
        False,
        "whether software may change anything on this host's devices; without it no write path is loaded",
    ),
    _key(
        "node.run_as_user",
        "integer",
        0,
        "user that the agent becomes after it was started as root; a small child stays root and sets limits. 0: it stays as it was started",
        (0, 2**32 - 2),
    ),
    _key("node.run_as_group", "integer", 0, "group that it becomes; 0: the same number as run_as_user", (0, 2**32 - 2)),
    _key(
        "controller.endpoint",
        "text",
        "",
        "host:port of the controller; empty means what the bundle says, or none without a bundle",
    ),
    _key(
        "controller.bundle", "text", "", "folder that `swingbus-agent join` filled; empty means `bundle` in state_dir"
    ),
    _key(
        "controller.insecure_loopback",
        "flag",
        False,
        "speak without TLS to a controller on 127.0.0.0/8; for tests only",
    ),
    _key(
        "controller.connect_timeout_s", "number", 10.0, "deadline of a connection and of the first answer", (0.1, 120)
    ),
    _key("controller.backoff_max_s", "number", 60.0, "longest pause between two attempts (full jitter)", (0.1, 3600)),
    _key("sampling.meter_period_s", "number", 1.0, "pause between two readings of a meter", (0.05, 60)),
    _key("sampling.gpu_period_s", "number", 1.0, "pause between two rounds of a GPU bank", (0.05, 60)),
    _key("sampling.asic_period_s", "number", 5.0, "pause between two rounds of an ASIC bank", (0.05, 120)),
    _key("sampling.asic_concurrency", "integer", 32, "miners asked at the same time", (1, 512)),
    _key("sampling.host_period_s", "number", 10.0, "pause between two readings of the host", (0.05, 600)),
    _key(
        "spool.max_bytes",
        "integer",
        256 * 1024 * 1024,
        "size above which history is thinned, then dropped",
        (65536, None),
    ),
    _key("spool.max_age_s", "number", 7 * 86400.0, "age above which history is dropped", (60, None)),
    _key(
        "spool.backfill_per_s", "number", 50.0, "batches of backlog sent per second, beside the live ones", (0.1, 10000)
    ),
    _key("metrics.host", "text", "127.0.0.1", "address of the Prometheus endpoint"),
    _key("metrics.port", "integer", 7445, "port of the Prometheus endpoint; 0 means none", (0, 65535)),
    _key("execution.tick_s", "number", 0.5, "pause between two looks at what is not yet as ordered", (0.02, 10)),
    _key("execution.batch", "integer", 16, "writes that may be on their way at the same time", (1, 512)),
    _key("execution.stagger_s", "number", 0.05, "pause between two planned writes; emergencies do not wait", (0, 60)),
    _key(
        "execution.verify_s",
        "number",
        15.0,
        "how long a device may take to show a change before it is asked again",
        (0.1, 600),
    ),
    _key("execution.boot_s", "number", 120.0, "how long a waking miner may boot before it is asked again", (0.1, 3600)),
    _key(
        "execution.attempts",
        "integer",
        3,
        "requests after which a device counts as ignoring them (and is asked less often)",
        (1, 100),
    ),
    _key(
        "execution.backoff_max_s",
        "number",
        60.0,
        "longest pause between two requests to a device that ignores them",
        (0.1, 3600),
    ),
    _key(
        "execution.quarantine_s",
        "number",
        60.0,
        "the firmware's longest delay: so long an unanswered write counts at the ceiling and reported watts may lag",
        (1, 3600),
    ),
    _key(
        "pods.socket",
        "text",
        "/var/lib/kubelet/pod-resources/kubelet.sock",
        "kubelet's PodResources socket; only root may open it",
    ),
    _key("pods.timeout_s", "number", 1.0, "deadline of one answer of the kubelet", (0.05, 10)),
    _key("pods.resource", "text", "nvidia.com/gpu", "what pods ask for to get a whole GPU"),
    _key("pods.miner_namespace", "text", "", "namespace whose pods mine; every other pod with a GPU infers"),
    _key("pods.mining_workload", "text", "mining", "name by which the controller calls mining pods"),
    _key("pods.inference_workload", "text", "inference", "name by which the controller calls inference pods"),
    _key("bank[].name", "text", REQUIRED, "id of the bank, unique in the file"),
    _key("bank[].kind", "text", REQUIRED, "what its devices are", choices=("asic", "gpu")),
    _key("bank[].class", "text", REQUIRED, "class name: model, firmware and power curve; the controller plans by it"),
    _key(
        "bank[].unit_size",
        "integer",
        1,
        "devices that move together: 1, 4 or 8 GPUs; 1 for ASICs",
        choices=("1", "4", "8"),
    ),
    _key("bank[].meter", "text", "", "meter (of any agent of the site) that alone measures this bank's group"),
    _key(
        "bank[].shed_kw_per_s",
        "number",
        0.0,
        "proven kW per second that one device sheds, for emergencies; 0 means unknown",
        _POSITIVE,
    ),
    _key("bank[].gpus", "texts", (), "GPU UUIDs of the bank in order; empty means every GPU of this host"),
    _key(
        "bank[].runs",
        "text",
        "processes",
        "what its workloads are: programs of this file, or pods that Kubernetes puts here",
        choices=("processes", "pods"),
    ),
    _key("bank[].workloads", "texts", (), "names from [[workload]] that may run here; none where it runs pods"),
    _key(
        "bank[].point[].name",
        "text",
        REQUIRED,
        "id of an operating point; a firmware profile's own name where there is one",
    ),
    _key(
        "bank[].point[].mode",
        "text",
        REQUIRED,
        "what a device does there",
        choices=("mining", "inference", "standby", "off"),
    ),
    _key("bank[].point[].power_w", "number", REQUIRED, "watts enforced or targeted for one device", _POSITIVE),
    _key("bank[].point[].hashrate_ths", "number", None, "terahashes per second of one device", _POSITIVE),
    _key("bank[].point[].throughput_ratio", "number", None, "share of a full device's tokens per second", (0, 1)),
    _key("bank[].miner[].name", "text", REQUIRED, "id of a miner, unique in the file"),
    _key("bank[].miner[].address", "text", REQUIRED, "IP address or host name of the miner"),
    _key("bank[].miner[].firmware", "text", REQUIRED, "whose protocol it speaks", choices=("luxos", "whatsminer")),
    _key("bank[].miner[].password_env", "text", "", "environment variable that holds its password"),
    _key("bank[].miner[].password_file", "text", "", "file that holds its password"),
    _key("meter[].name", "text", REQUIRED, "id of a meter, unique in the site"),
    _key("meter[].feeder", "text", REQUIRED, "id of the feeder that it measures"),
    _key("meter[].host", "text", REQUIRED, "address of its Modbus TCP port"),
    _key("meter[].port", "integer", 502, "Modbus TCP port", (1, 65535)),
    _key("meter[].unit", "integer", 1, "Modbus unit id", (0, 255)),
    _key("meter[].map", "text", "swingbus", "register map", choices=("swingbus", "abb-b2x")),
    _key("meter[].word_order", "text", "big", "order of the 16-bit words of a value", choices=("big", "little")),
    _key("meter[].window_s", "number", 1.0, "averaging window of one reading", (0.0, 900)),
    _key("meter[].lag_s", "number", 1.0, "longest delay from the end of the window to the register", (0.0, 60)),
    _key("meter[].error_ratio", "number", 0.005, "relative error of a reading", (0.0, 0.2)),
    _key("meter[].quantum_w", "number", 1.0, "one count of the power register", (0.0, None)),
    _key("meter[].timeout_s", "number", 1.0, "deadline of one reading", (0.05, 30)),
    _key("workload[].name", "text", REQUIRED, "the name by which the controller may call it"),
    _key("workload[].mode", "text", REQUIRED, "what it makes the GPUs do", choices=("mining", "inference")),
    _key(
        "workload[].command",
        "texts",
        REQUIRED,
        "program and arguments; {gpus}, {gpu_uuids}, {unit} and {port} are filled in, no shell is used",
    ),
    _key("workload[].environment", "table", {}, "environment variables for it; CUDA_VISIBLE_DEVICES is set for it"),
    _key("workload[].folder", "text", "", "working folder"),
    _key("workload[].port", "integer", 0, "base port: a unit gets port + unit; 0 means none", (0, 65535)),
    _key(
        "workload[].ready_url",
        "text",
        "",
        "probe that answers 200 when ready; {port} and {unit} are filled in; empty: ready when alive",
    ),
    _key(
        "workload[].ready_command",
        "texts",
        (),
        "probe that ends with 0 when ready, instead of ready_url; filled in the same way",
    ),
    _key("workload[].ready_after_s", "number", 1.0, "without a probe: ready when alive for so long", (0.0, 3600)),
    _key("workload[].start_timeout_s", "number", 300.0, "from start to ready, else it failed", (0.1, 7200)),
    _key("workload[].stop_timeout_s", "number", 30.0, "from SIGTERM to SIGKILL: time to drain", (0.1, 3600)),
)
