"""Read the agent's configuration file once, whole or not at all.

Decides whether a file is right and says everything that is wrong with it at once: what, where, next step. Holds no
password longer than building a miner's address takes. Invariant: no other module reads the configuration or environment.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from swingbus.faults import InvalidInput
from swingbus_agent.domain.miner import MinerAddress, MinerFirmware
from swingbus_agent.domain.orders import Mode
from swingbus_agent.domain.pod_holding import PodTenants
from swingbus_agent.domain.readings import Kind, PointSpec
from swingbus_agent.domain.workload import WorkloadSpec
from swingbus_agent.settings_keys import KEYS, REQUIRED, Key

DEFAULT_STATE_DIR = Path("/var/lib/swingbus-agent")
_ID = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
_MODES = {"mining": Mode.MINING, "inference": Mode.INFERENCE, "standby": Mode.STANDBY, "off": Mode.OFF}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """Whom the agent becomes when it was started as root; 0 as user means nobody else."""

    run_as_user: int
    run_as_group: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerSettings:
    """How to reach the controller; an empty endpoint means none."""

    endpoint: str
    bundle: Path
    insecure_loopback: bool
    connect_timeout_s: float
    backoff_max_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """Pauses between readings."""

    meter_period_s: float
    gpu_period_s: float
    asic_period_s: float
    asic_concurrency: int
    host_period_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolSettings:
    """How much history is kept while nobody takes it."""

    max_bytes: int
    max_age_s: float
    backfill_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSettings:
    """Where Prometheus may look; port 0 means nowhere."""

    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionSettings:
    """Timing of changes to devices."""

    tick_s: float
    batch: int
    stagger_s: float
    verify_s: float
    boot_s: float
    attempts: int
    backoff_max_s: float
    quarantine_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSettings:
    """Where the kubelet says which pods hold which GPUs, and which of them mine."""

    socket: Path
    timeout_s: float
    resource: str
    miner_namespace: str
    mining_workload: str
    inference_workload: str

    @property
    def tenants(self) -> PodTenants:
        """Return which pods are which workload."""
        return PodTenants(
            resource=self.resource,
            miner_namespace=self.miner_namespace,
            mining_workload=self.mining_workload,
            inference_workload=self.inference_workload,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BankSettings:
    """One bank of devices; one that runs pods has their two names as `workloads`."""

    name: str
    kind: Kind
    device_class: str
    unit_size: int
    meter: str
    shed_kw_per_s: float
    gpus: tuple[str, ...]
    runs_pods: bool
    workloads: tuple[str, ...]
    points: tuple[PointSpec, ...]
    miners: tuple[MinerAddress, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterSettings:
    """One Modbus TCP meter."""

    name: str
    feeder: str
    host: str
    port: int
    unit: int
    map: str
    word_order: str
    window_s: float
    lag_s: float
    error_ratio: float
    quantum_w: float
    timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """Everything that the file says."""

    name: str
    state_dir: Path
    writes: bool
    node: NodeSettings
    controller: ControllerSettings
    sampling: SamplingSettings
    spool: SpoolSettings
    metrics: MetricsSettings
    execution: ExecutionSettings
    pods: PodSettings
    banks: tuple[BankSettings, ...]
    meters: tuple[MeterSettings, ...]
    workloads: tuple[WorkloadSpec, ...]


def load_settings(path: Path, environment: Mapping[str, str] | None = None) -> AgentSettings:
    """Load and check the file at `path`.

    Raises:
        InvalidInput: the file cannot be read, is no TOML or says something wrong; the message lists every mistake.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"{path}: the configuration cannot be read: {error}; give the right file with --config",
            reason="CONFIG_UNREADABLE",
        ) from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{path}: not TOML: {error}; mend that line", reason="CONFIG_NOT_TOML") from error
    return parse_settings(document, where=str(path), environment=os.environ if environment is None else environment)


def parse_settings(document: Mapping[str, Any], *, where: str, environment: Mapping[str, str]) -> AgentSettings:
    """Check a parsed document; every mistake is in the one error that is raised."""
    mistakes: list[str] = []
    root = _table("", document, mistakes)
    if mistakes:
        raise _refusal(where, mistakes)
    banks = tuple(_bank(row, index, environment, mistakes) for index, row in enumerate(root["bank"]))
    meters = tuple(MeterSettings(**row) for row in root["meter"])
    workloads = tuple(
        WorkloadSpec(**{**row, "mode": _MODES[row["mode"]], "command": tuple(row["command"])})
        for row in root["workload"]
    )
    state_dir = Path(root["state_dir"])
    link = root["controller"]
    settings = AgentSettings(
        name=root["name"],
        state_dir=state_dir,
        writes=root["writes"],
        node=NodeSettings(**root["node"]),
        controller=ControllerSettings(
            **{**link, "bundle": Path(link["bundle"]) if link["bundle"] else state_dir / "bundle"}
        ),
        sampling=SamplingSettings(**root["sampling"]),
        spool=SpoolSettings(**root["spool"]),
        metrics=MetricsSettings(**root["metrics"]),
        execution=ExecutionSettings(**root["execution"]),
        pods=PodSettings(**{**root["pods"], "socket": Path(root["pods"]["socket"])}),
        banks=banks,
        meters=meters,
        workloads=workloads,
    )
    _cross_check(settings, mistakes)
    if mistakes:
        raise _refusal(where, mistakes)
    return replace(settings, banks=tuple(_with_pod_names(bank, settings.pods) for bank in banks))


def _with_pod_names(bank: BankSettings, pods: PodSettings) -> BankSettings:
    return replace(bank, workloads=(pods.mining_workload, pods.inference_workload)) if bank.runs_pods else bank


def _refusal(where: str, mistakes: list[str]) -> InvalidInput:
    lines = "\n".join(f"  - {mistake}" for mistake in mistakes)
    count = f"{len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}"
    return InvalidInput(f"{where}: {count}:\n{lines}\nevery key is explained in docs/agent.md", reason="CONFIG_INVALID")


def _children(prefix: str) -> tuple[dict[str, Key], dict[str, str]]:
    """Return the plain keys and the sub-tables (name to path) right below `prefix`."""
    plain: dict[str, Key] = {}
    tables: dict[str, str] = {}
    for key in KEYS:
        if not key.path.startswith(prefix):
            continue
        head, dot, _ = key.path[len(prefix) :].partition(".")
        if dot:
            tables[head.removesuffix("[]")] = f"{prefix}{head}."
        else:
            plain[head] = key
    return plain, tables


def _table(prefix: str, given: Mapping[str, Any], mistakes: list[str], shown: str = "") -> dict[str, Any]:
    """Return the table with defaults filled in; add what is wrong to `mistakes`."""
    plain, tables = _children(prefix)
    result: dict[str, Any] = {}
    for name in given:
        if name not in plain and name not in tables:
            near = difflib.get_close_matches(name, [*plain, *tables], n=1, cutoff=0.5)
            advice = (
                f"did you mean `{shown}{near[0]}`?" if near else f"known here: {', '.join(sorted([*plain, *tables]))}"
            )
            mistakes.append(f"`{shown}{name}` is not a known key; {advice}")
    for name, key in plain.items():
        if name in given:
            result[name] = _checked(key, given[name], f"{shown}{name}", mistakes)
        elif key.default is REQUIRED:
            mistakes.append(f"`{shown}{name}` is missing: {key.meaning}; add it")
        else:
            result[name] = key.default
    for name, path in tables.items():
        value = given.get(name)
        if path.endswith("[]."):
            result[name] = []
            if value is not None and not isinstance(value, list):
                mistakes.append(f"`{shown}{name}` must be repeated tables; write [[{shown}{name}]]")
                continue
            for index, row in enumerate(value or []):
                label = f"{shown}{name}[{index}]."
                if isinstance(row, Mapping):
                    result[name].append(_table(path, row, mistakes, label))
                else:
                    mistakes.append(f"`{label[:-1]}` must be a table; write [[{shown}{name}]]")
        elif value is None or isinstance(value, Mapping):
            result[name] = _table(path, value or {}, mistakes, f"{shown}{name}.")
        else:
            mistakes.append(f"`{shown}{name}` must be a table; write [{shown}{name}]")
    return result


def _checked(key: Key, value: Any, shown: str, mistakes: list[str]) -> Any:
    match key.type:
        case "text":
            is_right = isinstance(value, str)
        case "flag":
            is_right = isinstance(value, bool)
        case "integer":
            is_right = isinstance(value, int) and not isinstance(value, bool)
        case "number":
            is_right = isinstance(value, int | float) and not isinstance(value, bool) and value == value
            value = float(value) if is_right else value
        case "texts":
            is_right = isinstance(value, list) and all(isinstance(each, str) for each in value)
            value = tuple(value) if is_right else value
        case _:
            is_right = isinstance(value, Mapping) and all(isinstance(each, str) for each in value.values())
    if not is_right:
        wanted = {"texts": "a list of texts", "table": "a table of texts"}.get(key.type, f"a {key.type}")
        mistakes.append(f"`{shown}` is {value!r}, but must be {wanted}: {key.meaning}")
        return value
    if key.choices and str(value) not in key.choices:
        mistakes.append(f"`{shown}` is {value!r}; choose one of {', '.join(key.choices)}")
    if key.minimum is not None and value < key.minimum:
        mistakes.append(f"`{shown}` is {value}, below the least allowed {key.minimum:g}; raise it")
    if key.maximum is not None and value > key.maximum:
        mistakes.append(f"`{shown}` is {value}, above the greatest allowed {key.maximum:g}; lower it")
    if key.path.endswith("name") and not _is_name(key.path, value):
        mistakes.append(f"`{shown}` is {value!r}; use 1 to 63 lower-case letters, digits, dots, dashes or underscores")
    return value


def _is_name(path: str, value: str) -> bool:
    """Point names are firmware profiles' own, so they may hold capitals and blanks."""
    return 0 < len(value) <= 63 if path == "bank[].point[].name" else _ID.fullmatch(value) is not None


def _bank(row: dict[str, Any], index: int, environment: Mapping[str, str], mistakes: list[str]) -> BankSettings:
    kind = Kind.GPU if row["kind"] == "gpu" else Kind.ASIC
    points = tuple(
        PointSpec(
            point=point["name"],
            mode=_MODES[point["mode"]],
            power_w=point["power_w"],
            hashrate_ths=point["hashrate_ths"],
            throughput_ratio=point["throughput_ratio"],
        )
        for point in row["point"]
    )
    miners = tuple(
        MinerAddress(
            name=miner["name"],
            host=miner["address"],
            firmware=MinerFirmware(miner["firmware"]),
            password=_password(miner, f"bank[{index}].miner[{number}]", environment, mistakes),
        )
        for number, miner in enumerate(row["miner"])
    )
    return BankSettings(
        name=row["name"],
        kind=kind,
        device_class=row["class"],
        unit_size=row["unit_size"],
        meter=row["meter"],
        shed_kw_per_s=row["shed_kw_per_s"],
        gpus=row["gpus"],
        runs_pods=row["runs"] == "pods",
        workloads=row["workloads"],
        points=points,
        miners=miners,
    )


def _password(miner: Mapping[str, Any], shown: str, environment: Mapping[str, str], mistakes: list[str]) -> str | None:
    variable, file = miner["password_env"], miner["password_file"]
    if variable and file:
        mistakes.append(f"`{shown}` has both `password_env` and `password_file`; keep one")
        return None
    if variable:
        if variable not in environment:
            mistakes.append(
                f"`{shown}.password_env` names `{variable}`, which is not set; set it or use `password_file`"
            )
        return environment.get(variable)
    if not file:
        return None
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        mistakes.append(f"`{shown}.password_file` cannot be read: {error}; mend the path or its rights")
        return None


def _cross_check(settings: AgentSettings, mistakes: list[str]) -> None:
    """Add what is wrong between keys."""
    _unique("bank", [bank.name for bank in settings.banks], mistakes)
    _unique("bank.miner", [miner.name for bank in settings.banks for miner in bank.miners], mistakes)
    _unique("meter", [meter.name for meter in settings.meters], mistakes)
    _unique("workload", [workload.name for workload in settings.workloads], mistakes)
    known = [workload.name for workload in settings.workloads]
    gpu_banks = [bank for bank in settings.banks if bank.kind is Kind.GPU]
    for bank in settings.banks:
        _unique(f"bank `{bank.name}` point", [point.point for point in bank.points], mistakes)
        if bank.kind is Kind.ASIC:
            _cross_check_asics(bank, mistakes)
        elif bank.miners:
            mistakes.append(f"bank `{bank.name}` is of kind gpu but lists miners; make it kind asic or remove them")
        elif not bank.gpus and len(gpu_banks) > 1:
            mistakes.append(
                f"bank `{bank.name}` takes every GPU, but there are {len(gpu_banks)} GPU banks; list its `gpus`"
            )
        if bank.gpus and len(bank.gpus) % bank.unit_size:
            mistakes.append(
                f"bank `{bank.name}` has {len(bank.gpus)} GPUs, no multiple of its unit_size {bank.unit_size}"
            )
        if bank.runs_pods and bank.workloads:
            mistakes.append(f"bank `{bank.name}` runs pods but has `workloads`; remove them, or make it run processes")
            continue
        for name in bank.workloads:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                advice = f"did you mean `{near[0]}`?" if near else "add it as [[workload]]"
                mistakes.append(f"bank `{bank.name}` names workload `{name}`, which the file does not have; {advice}")
    if any(bank.runs_pods for bank in settings.banks):
        _cross_check_pods(settings.pods, mistakes)
    _unique("bank.gpus", [gpu for bank in settings.banks for gpu in bank.gpus], mistakes)
    if settings.controller.insecure_loopback and not settings.controller.endpoint.startswith(("127.", "localhost:")):
        mistakes.append(
            "`controller.insecure_loopback` is only for an endpoint on 127.0.0.0/8; use certificates instead"
        )
    host, colon, port = settings.controller.endpoint.rpartition(":")
    if settings.controller.endpoint and not (host and colon and port.isdigit()):
        mistakes.append(
            f"`controller.endpoint` is {settings.controller.endpoint!r}; write host:port, for instance 10.0.0.2:7443"
        )
    if settings.node.run_as_group and not settings.node.run_as_user:
        mistakes.append("`node.run_as_group` is set without `node.run_as_user`; add the user, or remove the group")
    for workload in settings.workloads:
        if not workload.command:
            mistakes.append(f"workload `{workload.name}` has an empty command; write program and arguments as a list")
        if workload.ready_url and workload.ready_command:
            mistakes.append(f"workload `{workload.name}` has both `ready_url` and `ready_command`; keep one")
        if "{port}" in workload.ready_url and not workload.port:
            mistakes.append(f"workload `{workload.name}` uses {{port}} in ready_url but has no `port`; add one")


def _cross_check_pods(pods: PodSettings, mistakes: list[str]) -> None:
    if not pods.miner_namespace:
        mistakes.append(
            "`pods.miner_namespace` is missing: without it no pod can be told for a miner; name the miners' namespace"
        )
    if not pods.socket.is_absolute():
        mistakes.append(f"`pods.socket` is {str(pods.socket)!r}; write the whole path")
    for key, name in (("mining_workload", pods.mining_workload), ("inference_workload", pods.inference_workload)):
        if _ID.fullmatch(name) is None:
            mistakes.append(
                f"`pods.{key}` is {name!r}; use 1 to 63 lower-case letters, digits, dots, dashes or underscores"
            )
    if pods.mining_workload == pods.inference_workload:
        mistakes.append(
            f"`pods.mining_workload` and `pods.inference_workload` are both {pods.mining_workload!r}; give each its own name"
        )


def _cross_check_asics(bank: BankSettings, mistakes: list[str]) -> None:
    if not bank.miners:
        mistakes.append(f"bank `{bank.name}` has no miners; add [[bank.miner]] tables")
    if bank.unit_size != 1:
        mistakes.append(f"bank `{bank.name}` is of kind asic, whose unit_size is 1; remove the key")
    for key, value in (("gpus", bank.gpus), ("workloads", bank.workloads)):
        if value:
            mistakes.append(f"bank `{bank.name}` is of kind asic but has `{key}`; remove it")
    if bank.runs_pods:
        mistakes.append(f"bank `{bank.name}` is of kind asic, which no pod can hold; remove `runs`")
    mistakes.extend(
        f"bank `{bank.name}` point `{point.point}`: a miner cannot infer; choose mining, standby or off"
        for point in bank.points
        if point.mode is Mode.INFERENCE
    )


def _unique(what: str, names: list[str], mistakes: list[str]) -> None:
    mistakes.extend(
        f"{what} `{name}` occurs {names.count(name)} times; give each its own name"
        for name in sorted({name for name in names if names.count(name) > 1})
    )
