"""Our images on real kubelets: each starts as nobody with a read-only root, toys work on the GPUs they are given, a missing one is told."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from swingbus import __version__
from swingbus.faults import InvalidInput, WrongState
from swingbus_sim.cluster.images import write_base_image
from swingbus_sim.cluster.loading import load_images
from swingbus_sim.cluster.processes import wait_until
from swingbus_sim.cluster.up import Cluster
from tests.cluster.gpus import RESOURCE, NodeGpus, gpus_on_node
from tests.cluster.pods import is_running, make_namespace, make_pod, wait_gone, wait_pod
from tests.fakes.gpu_host import gpu_uuid
from tools.images.build import Built
from tools.images.recipes import RECIPES, REPOSITORY, find_recipe

pytestmark = [pytest.mark.nodes, pytest.mark.timeout(600)]
_NAMESPACE = "images"
_PODS = f"/api/v1/namespaces/{_NAMESPACE}/pods"


def _image(name: str) -> str:
    return find_recipe(name).image


@pytest.fixture(scope="module")
def gpus(
    real_cluster: Cluster, images: Mapping[str, Built], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NodeGpus]:
    """Return two GPUs on the first node of a cluster that has our images, and a namespace that takes restricted pods only."""
    names = load_images(real_cluster, [built.archive for built in images.values()])
    assert names == tuple(recipe.image for recipe in RECIPES)
    make_namespace(real_cluster.api, _NAMESPACE)
    real_cluster.kubectl("label", "namespace", _NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    with gpus_on_node(real_cluster, 1, tmp_path_factory.mktemp("images"), gpu_count=2) as gpus:
        yield gpus
        real_cluster.api.delete(f"/api/v1/namespaces/{_NAMESPACE}")


def make_image_pod(name: str, node_name: str, image: str, *arguments: str, **container: Any) -> dict[str, Any]:
    """Return a restricted pod of an image: nothing is mounted, its user is the image's own."""
    spec = {
        "nodeSelector": {"kubernetes.io/hostname": node_name},
        "automountServiceAccountToken": False,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 15,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "main",
                "image": image,
                "imagePullPolicy": "Never",
                "args": list(arguments),
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                **container,
            }
        ],
    }
    return make_pod(name, spec)


def _ended(gpus: NodeGpus, name: str, image: str, *arguments: str, **container: Any) -> tuple[int, str]:
    """Run a pod to its end; return its exit code and what it said."""
    api = gpus.cluster.api
    api.create(_PODS, make_image_pod(name, gpus.plan.name, image, *arguments, **container))
    path = f"{_PODS}/{name}"
    wait_pod(api, path, lambda pod: pod["status"]["phase"] in ("Succeeded", "Failed"), what="ended", timeout_s=60)
    (status,) = api.get(path)["status"]["containerStatuses"]
    said = gpus.cluster.kubectl("logs", "-n", _NAMESPACE, name)
    api.delete(path)
    return status["state"]["terminated"]["exitCode"], said


_LOOK = """
import json, os, sys
import swingbus
try:
    open("/probe", "w")
    writable = True
except OSError as error:
    writable = error.strerror
print(json.dumps({"user": [os.getuid(), os.getgid()], "root": writable, "python": sys.executable,
                  "cached": swingbus.__cached__, "there": os.path.exists(swingbus.__cached__),
                  "capabilities": [line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")]}))
"""


def test_every_image_runs_as_nobody_on_a_read_only_root(gpus: NodeGpus) -> None:
    """Its own python runs, with byte code that is there already and no right at all; nothing of the machine is mounted."""
    for recipe in RECIPES:
        code, said = _ended(gpus, f"look-{recipe.name}", recipe.image, "-c", _LOOK, command=["/usr/bin/python3"])
        assert code == 0, said
        seen = json.loads(said)
        assert seen["user"] == [65532, 65532] and seen["root"] == "Read-only file system", recipe.name
        assert seen["python"].startswith("/usr/bin/python3") and seen["there"], seen
        assert seen["capabilities"] == ["0000000000000000"]


def test_programs_say_what_they_are(gpus: NodeGpus) -> None:
    """As the image starts them, and `swingctl` beside the controller; the agent looks around on a host that has nothing."""
    agent, controller = _image("swingbus-agent"), _image("swingbus-controller")
    assert _ended(gpus, "agent-version", agent, "--version") == (0, f"swingbus-agent {__version__}\n")
    assert _ended(gpus, "controller-version", controller, "--version") == (0, f"swingbus-controller {__version__}\n")
    swingctl = _ended(gpus, "swingctl", controller, "--version", command=["/usr/local/bin/swingctl"])
    assert swingctl == (0, f"swingctl {__version__}\n")
    code, said = _ended(gpus, "agent-check", agent, "check")
    assert code == 0 and "This is what an agent sees here by itself." in said, said


def test_agent_sees_the_gpus_it_is_given(gpus: NodeGpus) -> None:
    """Through the driver that the plugin mounts: NVML in a child process of the image's own python."""
    code, said = _ended(gpus, "agent-gpus", _image("swingbus-agent"), "check", resources={"limits": {RESOURCE: "1"}})
    assert code == 0 and "NVIDIA H100" in said, said


def test_toy_miner_works_until_it_is_deleted(gpus: NodeGpus) -> None:
    """On its one GPU, seen from the host; then that is free."""
    api = gpus.cluster.api
    pod = make_image_pod("miner", gpus.plan.name, _image("toy-miner"), resources={"limits": {RESOURCE: "1"}})
    api.create(_PODS, pod)
    wait_pod(api, f"{_PODS}/miner", is_running, what="ready")
    wait_until(lambda: len(gpus.host.shelf.processes()) == 1, what="work on a GPU", timeout_s=20)
    (working,) = gpus.host.shelf.processes()
    assert (working.kind, working.load_ratio) == ("mining", 1.0)
    assert b"toy-miner" in Path(f"/proc/{working.pid}/cmdline").read_bytes()
    assert gpu_uuid(working.gpu) in gpus.cluster.kubectl("logs", "-n", _NAMESPACE, "miner")
    api.delete(f"{_PODS}/miner")
    wait_gone(api, f"{_PODS}/miner")
    assert gpus.host.shelf.processes() == ()


def _probe(path: str) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": 8000}, "periodSeconds": 1}


def test_toy_inference_gets_ready_when_its_weights_are_loaded(gpus: NodeGpus) -> None:
    """Running but not Ready before; then it serves through the API's proxy, and its level shows on the GPU."""
    api = gpus.cluster.api
    server = {
        "resources": {"limits": {RESOURCE: "2"}},
        "env": [{"name": "TOY_LOAD_S", "value": "6"}],
        "ports": [{"containerPort": 8000}],
        "livenessProbe": _probe("/healthz"),
        "readinessProbe": _probe("/readyz"),
    }
    path = f"{_PODS}/server"
    api.create(_PODS, make_image_pod("server", gpus.plan.name, _image("toy-inference"), **server))
    wait_pod(api, path, lambda pod: pod["status"]["phase"] == "Running", what="running")
    assert not is_running(api.get(path))
    wait_pod(api, path, is_running, what="ready", timeout_s=40)
    ask = ("get", "--raw", f"{_PODS}/server:8000/proxy/generate?tokens=8")
    assert json.loads(gpus.cluster.kubectl(*ask)) == {"tokens": 8}
    gpus.cluster.kubectl("create", "--raw", f"{_PODS}/server:8000/proxy/load?level=0.5", "-f", "/dev/null")
    wait_until(
        lambda: [process.load_ratio for process in gpus.host.shelf.processes()] == [0.5, 0.5],
        what="the level on both GPUs",
        timeout_s=20,
    )
    api.delete(path)
    wait_gone(api, path)
    assert gpus.host.shelf.processes() == ()


def test_toy_that_was_given_no_gpu_fails(gpus: NodeGpus) -> None:
    """It never pretends to mine."""
    code, said = _ended(gpus, "without", _image("toy-miner"))
    assert code == 1 and "ask for nvidia.com/gpu" in said


@pytest.mark.parametrize(
    ("image", "policy", "reason"),
    [
        (f"{REPOSITORY}/swingbus-agent:9.9.9", "Never", "ErrImageNeverPull"),
        ("127.0.0.1:1/swingbus-agent:9.9.9", "IfNotPresent", "ErrImagePull"),  # a registry that is not there
    ],
)
def test_image_that_is_not_there_is_told_and_never_ready(gpus: NodeGpus, image: str, policy: str, reason: str) -> None:
    """The pod waits and says why; nothing else is run in its place."""
    api, name = gpus.cluster.api, f"missing-{policy.lower()}"
    api.create(_PODS, make_image_pod(name, gpus.plan.name, image, imagePullPolicy=policy))

    def said(pod: dict[str, Any]) -> bool:
        statuses = pod["status"].get("containerStatuses", [])
        return any(reason in status["state"].get("waiting", {}).get("reason", "") for status in statuses)

    wait_pod(api, f"{_PODS}/{name}", said, what=reason, timeout_s=60)
    assert not is_running(api.get(f"{_PODS}/{name}"))
    api.delete(f"{_PODS}/{name}", grace_s=0)


def test_archive_that_no_node_can_take_is_refused(gpus: NodeGpus, cluster: Cluster, tmp_path: Path) -> None:
    """No archive, one where nodes can't see it, or a cluster without real nodes: each is told before anything is done."""
    (tmp_path / "text.tar").write_text("no archive")
    with pytest.raises(InvalidInput, match="is no OCI archive"):
        load_images(gpus.cluster, [tmp_path / "text.tar"])
    with pytest.raises(WrongState, match="has no real nodes"):
        load_images(cluster, [])
    with tempfile.TemporaryDirectory(dir="/var/tmp") as hidden:
        write_base_image(Path(hidden) / "base.tar")
        with pytest.raises(InvalidInput, match="move it to another folder"):
            load_images(gpus.cluster, [Path(hidden) / "base.tar"])
