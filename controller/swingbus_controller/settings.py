"""Read the controller's one TOML file: its own settings and the site; then `SWINGBUS_*` on top, validated once.

Decides: which file counts and what it means. Refuses to know: what is done with it. Invariant: no other module of the
controller reads a configuration file or the environment; a file with any fault starts nothing.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from swingbus.faults import InvalidInput, NotFound
from swingbus_controller.domain.site.sitefile import SiteFile
from swingbus_controller.domain.site.sitefile_parser import parse_site
from swingbus_controller.domain.site.strict_table import Faults, StrictTable

MAX_FILE_BYTES = 4_000_000
# Environment name of each setting of [controller]; flags of the command line win over these.
ENVIRONMENT = {
    "SWINGBUS_LISTEN": "listen",
    "SWINGBUS_METRICS_LISTEN": "metrics_listen",
    "SWINGBUS_DATA_DIR": "data_dir",
    "SWINGBUS_PKI_DIR": "pki_dir",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerSettings:
    """What the program itself needs.

    Attributes:
        listen: host:port for gRPC (agents, operators, health, reflection).
        metrics_listen: host:port for Prometheus metrics; empty serves none.
        data_dir: where journal and telemetry lie.
        pki_dir: where `init` put the certificate authority and the server's certificate.
        period_s: sampling period that agents are asked for.
        credit: telemetry batches that an agent may have on the way without an acknowledgement.
        commit_interval_s: at most this long between two durable commits of telemetry, 0.01 to 0.25.
        telemetry_keep_s, telemetry_keep_bytes: the ring is cut to whichever is less.
        max_agents: agents with a session at the same time; each holds two streams.
    """

    listen: str = "0.0.0.0:7443"
    metrics_listen: str = "127.0.0.1:7444"
    data_dir: Path
    pki_dir: Path
    period_s: float = 1.0
    credit: int = 64
    commit_interval_s: float = 0.25
    telemetry_keep_s: float = 30 * 86_400.0
    telemetry_keep_bytes: int = 20_000_000_000
    max_agents: int = 1000
    journal_keep_s: float = 3650 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """How to reach the cluster whose pods are moved, and what things are called there.

    Attributes:
        kubeconfig: empty in a pod, whose own service account counts; context: of the kubeconfig, empty for its current one.
        namespace, lease: of the lease that says which controller may write.
        gate, resource, enrolled_label, enrolled_value: as the chart was installed.
    """

    kubeconfig: Path | None = None
    context: str = ""
    namespace: str = "swingbus-system"
    lease: str = "swingbus-controller"
    gate: str = "swingbus.io/power"
    resource: str = "nvidia.com/gpu"
    enrolled_label: str = "swingbus.io/power-gate"
    enrolled_value: str = "enabled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One controller with its site; `cluster` is None where no bank runs pods."""

    controller: ControllerSettings
    cluster: ClusterSettings | None
    site: SiteFile
    source: str
    known_keys: frozenset[str]
    taken: bytes = field(compare=False, repr=False)
    read: Callable[[bytes], Configuration] = field(compare=False, repr=False)  # another text in its place

    # As `app.site_watching.SiteSource`: the file that this came from, as it was and as it is now.

    def text(self) -> bytes:
        """Return the file as it is now. Raises NotFound or InvalidInput where it can't be read."""
        return _read(Path(self.source))

    def parse(self, text: bytes) -> tuple[SiteFile, tuple[str, ...]]:
        """Return the site as a text has it, and which of the program's own tables differ. Raises InvalidInput with every fault."""
        now = self.read(text)
        tables = {"[controller]": (self.controller, now.controller), "[kubernetes]": (self.cluster, now.cluster)}
        return now.site, tuple(name for name, (before, after) in tables.items() if before != after)


def load_configuration(
    path: Path, *, environment: Mapping[str, str] | None = None, overrides: Mapping[str, str] | None = None
) -> Configuration:
    """Read and check the file.

    Args:
        path: the TOML file; relative paths in it count from its folder.
        environment: the process environment by default.
        overrides: settings of [controller] from flags, by key.

    Raises:
        NotFound: no such file. InvalidInput: it is no TOML, or faulty; the message lists every fault.
    """
    return _configuration(_read(path), path=path, environment=environment, overrides=overrides)


def _configuration(
    raw: bytes, *, path: Path, environment: Mapping[str, str] | None, overrides: Mapping[str, str] | None
) -> Configuration:
    values = _load_toml(raw, path)
    env = os.environ if environment is None else environment
    section = values.setdefault("controller", {})
    if isinstance(section, dict):
        section.update({key: env[name] for name, key in ENVIRONMENT.items() if env.get(name)})
        section.update(overrides or {})
    faults = Faults()
    document = StrictTable(values, faults)
    controller = _controller(document.table("controller"), path.parent)
    cluster = _cluster(document.table("kubernetes"), path.parent) if document.has("kubernetes") else None
    site = parse_site(document, faults)
    if site is not None and cluster is None and any(bank.is_in_cluster for bank in site.banks):
        document.fault(
            "kubernetes", 'is missing; banks with workloads = "kubernetes" need it, if only as an empty table'
        )
    document.finish()
    faults.raise_if_faulty(str(path))
    assert site is not None  # only a noted fault makes it None
    return Configuration(
        controller=controller,
        cluster=cluster,
        site=site,
        source=str(path),
        known_keys=frozenset(faults.known_keys),
        taken=raw,
        read=partial(_configuration, path=path, environment=dict(env), overrides=overrides),
    )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise NotFound(
            f"no site file at {path}; write one (docs/controller.md has an example) or name it with --config.",
            reason="NO_SITE_FILE",
            metadata={"path": str(path)},
        ) from None
    except OSError as error:
        raise InvalidInput(
            f"cannot read {path}: {error.strerror}; check its permissions.", reason="UNREADABLE"
        ) from error
    if len(raw) > MAX_FILE_BYTES:
        raise InvalidInput(f"{path} is larger than {MAX_FILE_BYTES} bytes: this is no site file.", reason="UNREADABLE")
    return raw


def _load_toml(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(raw.decode())
    # No TOML, no UTF-8, a number of thousands of digits; endless brackets.
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} is no TOML: {error}.", reason="BAD_TOML", metadata={"path": str(path)}) from error


def _controller(table: StrictTable, folder: Path) -> ControllerSettings:
    data_dir = Path(table.text("data_dir", "/var/lib/swingbus/data"))
    pki_dir = Path(table.text("pki_dir", "/var/lib/swingbus/pki"))
    defaults = ControllerSettings(data_dir=data_dir, pki_dir=pki_dir)
    settings = ControllerSettings(
        listen=_address(table, "listen", defaults.listen),
        metrics_listen=_address(table, "metrics_listen", defaults.metrics_listen),
        data_dir=folder / data_dir,
        pki_dir=folder / pki_dir,
        period_s=table.number("period_s", defaults.period_s, low=0.1, high=300.0),
        credit=table.count("credit", defaults.credit, low=1, high=4096),
        commit_interval_s=table.number("commit_interval_s", defaults.commit_interval_s, low=0.01, high=0.25),
        telemetry_keep_s=table.number("telemetry_keep_days", defaults.telemetry_keep_s / 86_400, low=0.01) * 86_400,
        telemetry_keep_bytes=int(
            table.number("telemetry_keep_mb", defaults.telemetry_keep_bytes / 1e6, low=1.0, high=1e8) * 1e6
        ),
        max_agents=table.count("max_agents", defaults.max_agents, low=1, high=10_000),
        journal_keep_s=table.number("journal_keep_days", defaults.journal_keep_s / 86_400, low=1.0) * 86_400,
    )
    table.finish()
    return settings


def _cluster(table: StrictTable, folder: Path) -> ClusterSettings:
    defaults = ClusterSettings()
    kubeconfig = table.text("kubeconfig", "")
    label, _, value = table.text("enrolled", f"{defaults.enrolled_label}={defaults.enrolled_value}").partition("=")
    settings = ClusterSettings(
        kubeconfig=folder / kubeconfig if kubeconfig else None,
        context=table.text("context", ""),
        namespace=table.text("namespace", defaults.namespace),
        lease=table.text("lease", defaults.lease),
        gate=table.text("gate", defaults.gate),
        resource=table.text("resource", defaults.resource),
        enrolled_label=label,
        enrolled_value=value,
    )
    table.finish()
    return settings


def _address(table: StrictTable, key: str, default: str) -> str:
    value = table.text(key, default)
    if value == "off" and key == "metrics_listen":
        return ""
    host, _, port = value.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        table.fault(key, f"{value!r} is not host:port")
        return default
    return value
