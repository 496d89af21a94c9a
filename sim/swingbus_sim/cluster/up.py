"""Bring a cluster up, take it down, find one that stands: the order of things, and nothing else.

One program at a time works on a cluster (a file lock). Whatever an earlier one left, whole or half, is ended before anything is started.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from swingbus.faults import InvalidInput, NotFound, WrongState
from swingbus_sim.cluster import cgroups, dns, kwok, network, node, rights
from swingbus_sim.cluster.api import Api
from swingbus_sim.cluster.certificates import Pair
from swingbus_sim.cluster.control_plane import FIXED_PORTS, ControlPlane, Keys, free_ports, make_keys
from swingbus_sim.cluster.kubeconfig import write_kubeconfig
from swingbus_sim.cluster.layout import CONTROL_ADDRESS, REAL_NODES_MAX, Layout, NodePlan
from swingbus_sim.cluster.processes import Processes, run, wait_until
from swingbus_sim.cluster.relaying import start_relay
from swingbus_sim.cluster.requirements import missing_for_nodes
from swingbus_sim.cluster.tools import CONTROL, NODES, Tools, chosen_assets, ensure_tools

RELAY = "api-relay"
_LOOPBACK = "127.0.0.1"
_NODES_TIMEOUT_S = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A cluster that stands.

    Args:
        api: the API server, as admin.
        enter: the command that runs another one beside the control plane; empty where that is on the host's own loopback.
        real_nodes: those with kubelets.
    """

    layout: Layout
    tools: Tools
    processes: Processes
    api: Api
    enter: tuple[str, ...]
    real_nodes: tuple[NodePlan, ...]

    @property
    def kubeconfig(self) -> Path:
        """An admin's, for programs on the host."""
        return self.layout.kubeconfigs / "admin"

    def environment(self) -> Mapping[str, str]:
        """Return the variables that let kubectl and helm find this cluster."""
        folders = [str(folder) for folder in self.tools.folders()]
        return {"KUBECONFIG": str(self.kubeconfig), "PATH": ":".join([*folders, os.environ.get("PATH", "")])}

    def kubectl(self, *arguments: str, input_text: str | None = None) -> str:
        """Run kubectl and return what it printed."""
        command = (str(self.tools.path("kubectl")), f"--kubeconfig={self.kubeconfig}", *arguments)
        return run(command, input_text=input_text)


def bring_up(
    layout: Layout,
    *,
    real_node_count: int = 0,
    kwok_node_count: int = 0,
    audited_users: tuple[str, ...] = (),
    say: Callable[[str], None],
) -> Cluster:
    """Bring a fresh cluster up and return it when all its nodes are ready.

    Args:
        layout: where.
        real_node_count: kubelets; root is needed for more than 0.
        kwok_node_count: objects that KWOK keeps alive, 8 GPUs each; tainted where real nodes stand beside them.
        audited_users: whose requests the API server is to write into its audit log.
        say: told each step.

    Refuses where one stands already. A half-made one is ended, also when this very call fails.
    """
    if not 0 <= real_node_count <= REAL_NODES_MAX:
        raise InvalidInput(f"{real_node_count} real nodes: 0 to {REAL_NODES_MAX} can be had")
    lacks = missing_for_nodes(layout.home) if real_node_count else ()
    if lacks:
        raise WrongState(f"real nodes can't run here: {'; '.join(lacks)}")
    sets = (CONTROL, NODES) if real_node_count else (CONTROL,)
    tools = ensure_tools(layout.tools, sets, say=say)
    with _alone(layout):
        if layout.description.exists() and Processes(layout.run).find("kube-apiserver") is not None:
            raise WrongState(f"cluster {layout.name!r} stands already; take it down first (`cluster-down`)")
        _clear(layout, say)
        try:
            return _bring_up(layout, tools, real_node_count, kwok_node_count, audited_users, say)
        except BaseException:
            say(f"failed: ending what was started; the logs stay in {_keep_logs(layout)}")
            _clear(layout, say)
            raise


def take_down(layout: Layout, *, say: Callable[[str], None]) -> None:
    """End all that a cluster started and remove its disk; nothing to do is fine, and so is a cluster that crashed."""
    with _alone(layout):
        _clear(layout, say)


def find_cluster(layout: Layout) -> Cluster:
    """Return the cluster that an earlier program brought up; raise NotFound where none stands."""
    try:
        told = json.loads(layout.description.read_text())
    except FileNotFoundError:
        raise NotFound(f"no cluster {layout.name!r} stands; bring one up (`make cluster`)") from None
    processes = Processes(layout.run)
    processes.must_run("kube-apiserver")
    holder = processes.find(network.CONTROL_NETWORK)
    certificates = layout.certificates
    return Cluster(
        layout=layout,
        # Those that it was brought up with: a newer version in the checkout must not be built by merely looking.
        tools=Tools(built=Path(told["tools"]), assets=chosen_assets()),
        processes=processes,
        api=Api(
            host=_LOOPBACK,
            port=told["api_port"],
            authority=certificates / "cluster.crt",
            user=Pair(certificates / "admin.crt", certificates / "admin.key"),
        ),
        enter=() if holder is None else network.control_entry(holder.pid),
        real_nodes=tuple(NodePlan(number=number) for number in told["real_nodes"]),
    )


def _bring_up(
    layout: Layout,
    tools: Tools,
    real_node_count: int,
    kwok_node_count: int,
    audited_users: tuple[str, ...],
    say: Callable[[str], None],
) -> Cluster:
    started = time.monotonic()
    layout.run.mkdir(parents=True, mode=0o700)
    processes = Processes(layout.run)
    plans = tuple(NodePlan(number=number) for number in range(1, real_node_count + 1))
    enter = network.start_control_network(processes) if plans else ()
    address = CONTROL_ADDRESS if plans else _LOOPBACK
    keys = make_keys(layout, address=address)
    control = ControlPlane(
        layout=layout,
        tools=tools,
        processes=processes,
        keys=keys,
        ports=FIXED_PORTS if plans else free_ports(),
        address=address,
        enter=enter,
        audited_users=audited_users,
    )
    api_port = control.ports.api
    if plans:
        api_port = start_relay(
            processes, RELAY, host=address, port=control.ports.api, port_file=layout.run / "api-port"
        )
    api = _admin(layout, keys, api_port)
    if plans:
        write_kubeconfig(
            layout.kubeconfigs / "admin-inside",
            server=control.server,
            authority=keys.authority.certificate,
            user=keys.admin,
        )
    control.start(api, say)
    rights.grant(api)
    kwok.start(control, node_address=address)
    kwok_names = kwok.add_nodes(api, kwok_node_count, is_tainted=bool(plans))
    if plans:
        dns.start(control)
        node.start_all(control, plans, say)
    _wait_for_nodes(api, processes, (*(plan.name for plan in plans), *kwok_names), say)
    told = {"api_port": api_port, "real_nodes": [plan.number for plan in plans], "tools": str(tools.built)}
    layout.description.write_text(json.dumps(told) + "\n")
    say(f"cluster {layout.name!r} stands after {time.monotonic() - started:.1f} s")
    return Cluster(layout=layout, tools=tools, processes=processes, api=api, enter=enter, real_nodes=plans)


def _admin(layout: Layout, keys: Keys, port: int) -> Api:
    authority = keys.authority.certificate
    write_kubeconfig(
        layout.kubeconfigs / "admin", server=f"https://{_LOOPBACK}:{port}", authority=authority, user=keys.admin
    )
    return Api(host=_LOOPBACK, port=port, authority=authority, user=keys.admin)


def _wait_for_nodes(api: Api, processes: Processes, names: tuple[str, ...], say: Callable[[str], None]) -> None:
    if not names:
        return
    say(f"waiting for {len(names)} nodes")

    def ready() -> bool:
        for name in processes.names():
            processes.must_run(name)
        items = api.get("/api/v1/nodes")["items"]
        return set(names) <= {item["metadata"]["name"] for item in items if _is_ready(item)}

    wait_until(
        ready,
        what=f"nodes are not ready (logs: {processes.log('kwok').parent})",
        timeout_s=_NODES_TIMEOUT_S,
        poll_s=0.2,
    )


def _is_ready(item: Mapping[str, object]) -> bool:
    status = item.get("status")
    conditions = status.get("conditions", []) if isinstance(status, dict) else []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _clear(layout: Layout, say: Callable[[str], None]) -> None:
    """End every recorded process (a node's first one takes all of the node with it), then what only they kept alive."""
    processes = Processes(layout.run)
    ended = processes.end_all()
    removed = cgroups.remove(f"{layout.tag}-*")
    if layout.run.exists():
        shutil.rmtree(layout.run)
    if ended or removed:
        say(f"ended {ended} processes, removed {removed} cgroups and {layout.run}")


def _keep_logs(layout: Layout) -> Path:
    kept = layout.run.with_name(f"{layout.name}-failed-logs")
    shutil.rmtree(kept, ignore_errors=True)
    logs = layout.run / "logs"
    if logs.exists():
        shutil.copytree(logs, kept)
    return kept


@contextmanager
def _alone(layout: Layout) -> Iterator[None]:
    layout.lock.parent.mkdir(parents=True, exist_ok=True)
    with layout.lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WrongState(f"another program works on cluster {layout.name!r}; wait for it to end") from None
        yield
