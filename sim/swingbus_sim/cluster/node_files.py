"""What a real node's programs read: containerd.toml, the pods' network, the kubelet's and kube-proxy's files.

Decides every setting that lets several nodes share a machine that is not theirs; starts nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

from swingbus.faults import WrongState
from swingbus_sim.cluster.certificates import Pair
from swingbus_sim.cluster.images import BASE_IMAGE
from swingbus_sim.cluster.layout import CONTROL_ADDRESS, DOMAIN, POD_RANGE, NodePlan
from swingbus_sim.cluster.processes import run
from swingbus_sim.cluster.requirements import find_command

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
_CAP_SYS_RESOURCE_BIT = 24


def pod_network(plan: NodePlan) -> str:
    """Return the CNI file: addresses from the node's own range, traffic routed, not hidden behind the node's address."""
    ranges = {"type": "host-local", "ranges": [[{"subnet": plan.pod_range}]], "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {
        "type": "bridge",
        "bridge": "pods",
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": ranges,
    }
    return json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, {"type": "loopback"}]})


def registry_hosts(address: str) -> str:
    """Return containerd's file on a registry without TLS."""
    return f'server = "http://{address}"\n[host."http://{address}"]\ncapabilities = ["pull", "resolve"]\n'


def containerd_config(folder: Path, networks: Path, registries: Path, programs: tuple[Path, ...]) -> str:
    """Return containerd.toml: our own image as sandbox, our own CNI plugins, the system's runc.

    Args:
        registries: a folder for each host:port that is not asked over TLS.
    """
    runtime = "plugins.'io.containerd.cri.v1.runtime'"
    images = "plugins.'io.containerd.cri.v1.images'"
    return f"""\
version = 3
root = "{folder / "containerd"}"
state = "/run/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
address = "{CONTAINERD_SOCKET}"
[plugins.'io.containerd.internal.v1.opt']
path = "{folder / "opt"}"
[{images}]
snapshotter = "{_snapshotter(folder)}"
[{images}.registry]
config_path = "{registries}"
[{images}.pinned_images]
sandbox = "{BASE_IMAGE}"
[{runtime}]
# Without CAP_SYS_RESOURCE runc may not make a process safer from the OOM killer than its parent, and would die trying.
restrict_oom_score_adj = {"false" if _may_protect_from_oom() else "true"}
[{runtime}.cni]
bin_dirs = {json.dumps([str(own) for own in programs])}
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


def kubelet_config(plan: NodePlan, *, folder: Path, cgroup: str, serving: Pair, authority: Path) -> str:
    """Return the kubelet's file."""
    return json.dumps(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
            "cgroupRoot": f"/{cgroup}",
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
            "tlsCertFile": str(serving.certificate),
            "tlsPrivateKeyFile": str(serving.key),
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(authority)},
            },
            "authorization": {"mode": "Webhook"},
            # Nodes share the machine's disk: how full that is says nothing about them.
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            # An image that one test pulled from a registry is another one's that was put on the node by hand.
            "imagePullCredentialsVerificationPolicy": "NeverVerify",
            "nodeStatusUpdateFrequency": "5s",
        },
        indent=1,
    )


def proxy_config(plan: NodePlan, kubeconfig: Path) -> str:
    """Return kube-proxy's file."""
    return json.dumps(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clusterCIDR": POD_RANGE,
            "hostnameOverride": plan.name,
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            # The connection table belongs to the machine: its size is not ours to set.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "oomScoreAdj": 0,
            "healthzBindAddress": "127.0.0.1:10256",
            "metricsBindAddress": "127.0.0.1:10249",
        },
        indent=1,
    )
