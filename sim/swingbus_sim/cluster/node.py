"""A real node: kubelet, containerd with runc, kube-proxy, in a network, mount and pid namespace of its own.

Its first process holds the namespaces; whatever ends that ends all of the node, pods included, as pulling a plug would. kubelet,
containerd and kube-proxy are separate processes that tests may kill alone: pods go on without any of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from swingbus.faults import InvalidInput, WrongState
from swingbus_sim.cluster import cgroups, network, node_files
from swingbus_sim.cluster.control_plane import ControlPlane
from swingbus_sim.cluster.images import write_base_image
from swingbus_sim.cluster.layout import REGISTRY_ADDRESS, Layout, NodePlan
from swingbus_sim.cluster.node_files import CONTAINERD_SOCKET
from swingbus_sim.cluster.processes import SYSTEM_PATH, Processes, children, run
from swingbus_sim.cluster.requirements import HIDDEN_IN_NODES
from swingbus_sim.cluster.tools import Tools

NODE_LABEL = "swingbus.io/node"  # `real` on these; KWOK's have none
_INIT_TIMEOUT_S = 20.0
_CONTAINERD_TIMEOUT_S = 30.0
_IMPORT_TIMEOUT_S = 180.0
_PROGRAMS = ("containerd", "kubelet", "kube-proxy")


def init_name(plan: NodePlan) -> str:
    """Return the name of the process that holds a node's namespaces."""
    return f"init-{plan.name}"


def python(script: Path, *arguments: str) -> tuple[str, ...]:
    """Return the command for one of this package's standard-library-only scripts."""
    return (sys.executable, "-I", str(script), *arguments)


def entry(processes: Processes, plan: NodePlan) -> tuple[str, ...]:
    """Return the command that runs another one on a node."""
    return ("nsenter", f"--target={_init_pid(processes, plan)}", "--net", "--mount", "--pid")


def start_all(control: ControlPlane, plans: tuple[NodePlan, ...], say: Callable[[str], None]) -> None:
    """Start nodes side by side; they register themselves and become ready a little later."""
    archive = control.layout.run / "base-image.tar"
    write_base_image(archive)
    for plan in plans:
        _start_init(control, plan, plans)
        _start_containerd(control, plan)
    for plan in plans:
        _wait_for_containerd(control.processes, plan)
        import_image(control.processes, control.tools, plan, archive)
        _start_kubelet(control, plan)
        _start_proxy(control, plan)
        say(f"node {plan.name} started")


def import_image(processes: Processes, tools: Tools, plan: NodePlan, archive: Path) -> None:
    """Put the image of an OCI archive on a node, under the name that the archive gives it; one that is there already is replaced."""
    if any(archive.resolve().is_relative_to(hidden) for hidden in HIDDEN_IN_NODES):
        raise InvalidInput(f"{archive} lies under /var or /run, which nodes replace: move it to another folder")
    command = (*_ctr(processes, tools, plan), "images", "import", str(archive.resolve()))
    run(command, timeout_s=_IMPORT_TIMEOUT_S)


def kill_container(processes: Processes, tools: Tools, plan: NodePlan, container: str) -> None:
    """Kill a container's first process with SIGKILL, without a word to it or to the kubelet."""
    run((*_ctr(processes, tools, plan), "tasks", "kill", "--signal=SIGKILL", container))


def _ctr(processes: Processes, tools: Tools, plan: NodePlan) -> tuple[str, ...]:
    ctr = (str(tools.path("ctr")), f"--address={CONTAINERD_SOCKET}", "--namespace=k8s.io")
    return (*entry(processes, plan), *ctr)


def cut_power(processes: Processes, layout: Layout, plan: NodePlan) -> None:
    """End all of a node at once, pods included; its disk and its object in the API stay."""
    processes.end(init_name(plan))
    for program in _PROGRAMS:
        processes.end(f"{program}-{plan.name}")
    # A kernel that boots has no groups of former pods either; a kubelet that finds some looks for their containers at length.
    cgroups.remove(_cgroup(layout, plan))


def boot(processes: Processes, layout: Layout, plan: NodePlan, plans: tuple[NodePlan, ...]) -> None:
    """Start a node again after its power was cut: its programs side by side, and whatever pods the API still binds to it."""
    folder = layout.node(plan.name)
    (folder / "ready").unlink(missing_ok=True)
    cgroups.make(_cgroup(layout, plan))
    processes.restart(init_name(plan))
    _wire(processes, folder, plan, plans)
    for program in _PROGRAMS:
        processes.restart(f"{program}-{plan.name}", enter=entry(processes, plan))
        if program == "containerd":
            _wait_for_containerd(processes, plan)


def _start_init(control: ControlPlane, plan: NodePlan, plans: tuple[NodePlan, ...]) -> None:
    folder = control.layout.node(plan.name)
    folder.mkdir(parents=True)
    cgroups.make(_cgroup(control.layout, plan))
    unshare = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--propagation=slave", "--mount-proc")
    init = (*unshare, *python(Path(__file__).with_name("node_init.py"), str(folder)))
    control.processes.start(init_name(plan), init)
    _wire(control.processes, folder, plan, plans)


def _wire(processes: Processes, folder: Path, plan: NodePlan, plans: tuple[NodePlan, ...]) -> None:
    """Wait for the node's own view of the disk, then join it to the others."""
    processes.wait_ready(init_name(plan), (folder / "ready").exists, timeout_s=_INIT_TIMEOUT_S)
    network.join(
        plan,
        node_pid=_init_pid(processes, plan),
        control_pid=processes.must_run(network.CONTROL_NETWORK).pid,
        others=plans,
    )


def _init_pid(processes: Processes, plan: NodePlan) -> int:
    # `unshare --fork` stays outside; its only child is the node's first process.
    inside = children(processes.must_run(init_name(plan)).pid)
    if len(inside) != 1:
        raise WrongState(f"node {plan.name} has no first process; its log is {processes.log(init_name(plan))}")
    return inside[0]


def _start_containerd(control: ControlPlane, plan: NodePlan) -> None:
    folder = control.layout.node(plan.name)
    networks = folder / "cni"
    networks.mkdir()
    (networks / "10-pods.conflist").write_text(node_files.pod_network(plan))
    # The one that a cluster may have on its bridge (`registry`).
    registries = folder / "registries"
    hosts = registries / REGISTRY_ADDRESS / "hosts.toml"
    hosts.parent.mkdir(parents=True)
    hosts.write_text(node_files.registry_hosts(REGISTRY_ADDRESS))
    config = folder / "containerd.toml"
    config.write_text(node_files.containerd_config(folder, networks, registries, control.tools.folders()))
    _start_on(control, plan, "containerd", (str(control.tools.path("containerd")), f"--config={config}"))


def _wait_for_containerd(processes: Processes, plan: NodePlan) -> None:
    """Wait until it listens: a kubelet that comes earlier ends at once, and nobody here starts it again."""
    socket = Path(f"/proc/{_init_pid(processes, plan)}/root{CONTAINERD_SOCKET}")
    processes.wait_ready(f"containerd-{plan.name}", socket.is_socket, timeout_s=_CONTAINERD_TIMEOUT_S)


def _start_kubelet(control: ControlPlane, plan: NodePlan) -> None:
    folder = control.layout.node(plan.name)
    (folder / "resolv.conf").touch()  # pods get the cluster's DNS alone, never the machine's
    serving = control.keys.authority.issue(f"kubelet-{plan.name}", user=plan.name, hosts=(plan.name, plan.address))
    config = folder / "kubelet.json"
    config.write_text(
        node_files.kubelet_config(
            plan,
            folder=folder,
            cgroup=_cgroup(control.layout, plan),
            serving=serving,
            authority=control.keys.authority.certificate,
        )
    )
    kubeconfig = control.kubeconfig(plan.name, user=f"system:node:{plan.name}", groups=("system:nodes",))
    flags = (
        f"--config={config}",
        f"--kubeconfig={kubeconfig}",
        f"--hostname-override={plan.name}",
        f"--node-ip={plan.address}",
        f"--node-labels={NODE_LABEL}=real",
    )
    _start_on(control, plan, "kubelet", (str(control.tools.path("kubelet")), *flags))


def _start_proxy(control: ControlPlane, plan: NodePlan) -> None:
    config = control.layout.node(plan.name) / "kube-proxy.json"
    kubeconfig = control.kubeconfig(f"kube-proxy-{plan.name}", user="system:kube-proxy")
    config.write_text(node_files.proxy_config(plan, kubeconfig))
    _start_on(control, plan, "kube-proxy", (str(control.tools.path("kube-proxy")), f"--config={config}"))


def _start_on(control: ControlPlane, plan: NodePlan, program: str, command: tuple[str, ...]) -> None:
    control.processes.start(
        f"{program}-{plan.name}",
        command,
        enter=entry(control.processes, plan),
        environment={"PATH": ":".join([*(str(own) for own in control.tools.folders()), SYSTEM_PATH])},
    )


def _cgroup(layout: Layout, plan: NodePlan) -> str:
    return f"{layout.tag}-{plan.name}"
