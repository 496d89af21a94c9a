"""A real node: kubelet, containerd with runc, kube-proxy, in a network, mount and pid namespace of its own.

Its first process holds the namespaces; whatever ends that ends all of the node, pods included, as pulling a plug would. kubelet,
containerd and kube-proxy are separate processes that tests may kill alone: pods go on without any of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from swingbus.faults import WrongState
from swingbus_sim.cluster import cgroups, network
from swingbus_sim.cluster.control_plane import ControlPlane
from swingbus_sim.cluster.images import BASE_IMAGE, write_base_image
from swingbus_sim.cluster.layout import CONTROL_ADDRESS, DOMAIN, POD_RANGE, NodePlan
from swingbus_sim.cluster.processes import SYSTEM_PATH, Processes, children, run
from swingbus_sim.cluster.requirements import find_command

NODE_LABEL = "swingbus.io/node"  # `real` on these; KWOK's have none
_SOCKET = "/run/containerd/containerd.sock"
_INIT_TIMEOUT_S = 20.0
_CONTAINERD_TIMEOUT_S = 30.0
_CAP_SYS_RESOURCE_BIT = 24


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
        _import(control, plan, archive)
        _start_kubelet(control, plan)
        _start_proxy(control, plan)
        say(f"node {plan.name} started")


def _start_init(control: ControlPlane, plan: NodePlan, plans: tuple[NodePlan, ...]) -> None:
    folder = control.layout.node(plan.name)
    folder.mkdir(parents=True)
    cgroups.make(_cgroup(control, plan))
    unshare = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--propagation=slave", "--mount-proc")
    name = init_name(plan)
    control.processes.start(name, (*unshare, *python(Path(__file__).with_name("node_init.py"), str(folder))))
    control.processes.wait_ready(name, (folder / "ready").exists, timeout_s=_INIT_TIMEOUT_S)
    network.join(
        plan,
        node_pid=_init_pid(control.processes, plan),
        control_pid=control.processes.must_run(network.CONTROL_NETWORK).pid,
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
    # Pods' addresses come from the node's own range; traffic is routed, not hidden behind the node's address.
    ranges = {"type": "host-local", "ranges": [[{"subnet": plan.pod_range}]], "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {
        "type": "bridge",
        "bridge": "pods",
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": ranges,
    }
    (networks / "10-pods.conflist").write_text(
        json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, {"type": "loopback"}]})
    )
    config = folder / "containerd.toml"
    config.write_text(_containerd_config(folder, networks, control.tools.built))
    _start_on(control, plan, "containerd", (str(control.tools.path("containerd")), f"--config={config}"))


def _containerd_config(folder: Path, networks: Path, programs: Path) -> str:
    runtime = "plugins.'io.containerd.cri.v1.runtime'"
    images = "plugins.'io.containerd.cri.v1.images'"
    return f"""\
version = 3
root = "{folder / "containerd"}"
state = "/run/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
address = "{_SOCKET}"
[plugins.'io.containerd.internal.v1.opt']
path = "{folder / "opt"}"
[{images}]
snapshotter = "{_snapshotter(folder)}"
[{images}.pinned_images]
sandbox = "{BASE_IMAGE}"
[{runtime}]
# Without CAP_SYS_RESOURCE runc may not make a process safer from the OOM killer than its parent, and would die trying.
restrict_oom_score_adj = {"false" if _may_protect_from_oom() else "true"}
[{runtime}.cni]
bin_dirs = ["{programs}"]
conf_dir = "{networks}"
[{runtime}.containerd]
default_runtime_name = "runc"
[{runtime}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[{runtime}.containerd.runtimes.runc.options]
BinaryName = "{find_command("runc")}"
SystemdCgroup = false
"""


def _snapshotter(folder: Path) -> str:
    """Return `overlayfs` where this disk can carry one, else `native`, which copies every image for every container."""
    trial = folder / "overlay-trial"
    for name in ("lower", "upper", "work", "merged"):
        (trial / name).mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={trial / 'lower'},upperdir={trial / 'upper'},workdir={trial / 'work'}"
    try:
        run(("unshare", "--mount", "mount", "-t", "overlay", "overlay", "-o", options, str(trial / "merged")))
    except WrongState:
        return "native"
    return "overlayfs"


def _may_protect_from_oom() -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_RESOURCE_BIT & 1)
    return False


def _import(control: ControlPlane, plan: NodePlan, archive: Path) -> None:
    name = f"containerd-{plan.name}"
    ctr = (*entry(control.processes, plan), str(control.tools.path("ctr")), f"--address={_SOCKET}")

    def answers() -> bool:
        try:
            run((*ctr, "version"))
        except WrongState:
            return False
        return True

    control.processes.wait_ready(name, answers, timeout_s=_CONTAINERD_TIMEOUT_S)
    run((*ctr, "--namespace=k8s.io", "images", "import", str(archive)))


def _start_kubelet(control: ControlPlane, plan: NodePlan) -> None:
    folder = control.layout.node(plan.name)
    (folder / "resolv.conf").touch()  # pods get the cluster's DNS alone, never the machine's
    serving = control.keys.authority.issue(f"kubelet-{plan.name}", user=plan.name, hosts=(plan.name, plan.address))
    config = folder / "kubelet.json"
    config.write_text(json.dumps(_kubelet_config(control, plan, folder, serving.certificate, serving.key), indent=1))
    kubeconfig = control.kubeconfig(plan.name, user=f"system:node:{plan.name}", groups=("system:nodes",))
    flags = (
        f"--config={config}",
        f"--kubeconfig={kubeconfig}",
        f"--hostname-override={plan.name}",
        f"--node-ip={plan.address}",
        f"--node-labels={NODE_LABEL}=real",
    )
    _start_on(control, plan, "kubelet", (str(control.tools.path("kubelet")), *flags))


def _kubelet_config(
    control: ControlPlane, plan: NodePlan, folder: Path, certificate: Path, key: Path
) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{_SOCKET}",
        "cgroupRoot": f"/{_cgroup(control, plan)}",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "makeIPTablesUtilChains": False,
        "oomScoreAdj": 0,
        "clusterDNS": [CONTROL_ADDRESS],
        "clusterDomain": DOMAIN,
        "resolvConf": str(folder / "resolv.conf"),
        "volumePluginDir": str(folder / "volume-plugins"),
        "tlsCertFile": str(certificate),
        "tlsPrivateKeyFile": str(key),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(control.keys.authority.certificate)},
        },
        "authorization": {"mode": "Webhook"},
        # Nodes share the machine's disk: how full that is says nothing about them.
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "nodeStatusUpdateFrequency": "5s",
    }


def _start_proxy(control: ControlPlane, plan: NodePlan) -> None:
    config = control.layout.node(plan.name) / "kube-proxy.json"
    config.write_text(
        json.dumps(
            {
                "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
                "kind": "KubeProxyConfiguration",
                "mode": "nftables",
                "clusterCIDR": POD_RANGE,
                "hostnameOverride": plan.name,
                "clientConnection": {
                    "kubeconfig": str(control.kubeconfig(f"kube-proxy-{plan.name}", user="system:kube-proxy")),
                },
                # The connection table belongs to the machine: its size is not ours to set.
                "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
                "oomScoreAdj": 0,
                "healthzBindAddress": "127.0.0.1:10256",
                "metricsBindAddress": "127.0.0.1:10249",
            },
            indent=1,
        )
    )
    _start_on(control, plan, "kube-proxy", (str(control.tools.path("kube-proxy")), f"--config={config}"))


def _start_on(control: ControlPlane, plan: NodePlan, program: str, command: tuple[str, ...]) -> None:
    control.processes.start(
        f"{program}-{plan.name}",
        command,
        enter=entry(control.processes, plan),
        environment={"PATH": f"{control.tools.built}:{SYSTEM_PATH}"},
    )


def _cgroup(control: ControlPlane, plan: NodePlan) -> str:
    return f"{control.layout.tag}-{plan.name}"
