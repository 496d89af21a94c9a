"""docs/install-kubernetes.md as a new user follows it: its blocks, as they are printed, on a cluster with real kubelets and a registry."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from swingbus_sim.cluster.processes import wait_until
from swingbus_sim.cluster.registry import COMMANDS, end_registry, start_registry, write_skopeo
from swingbus_sim.cluster.requirements import find_command, install_commands
from swingbus_sim.cluster.up import Cluster
from tests.cluster.charted import Site, give_volume, simulated_driver
from tests.cluster.gpus import gpus_on_node
from tests.cluster.pods import exists, make_namespace, make_pod, make_pod_spec
from tools.images.build import Built

pytestmark = [pytest.mark.nodes, pytest.mark.timeout(600)]
_ROOT = Path(__file__).parents[2]
_PAGE = _ROOT / "docs" / "install-kubernetes.md"
_NAMESPACE, _CUSTOMERS = "swingbus-system", "customers-of-page"
_GPUS = 2
_UNTIL_LOOK = ("where", "images", "site", "values", "install")


def blocks() -> dict[str, str]:
    """Return the page's shell blocks by name, in its order."""
    found = re.findall(r"^```sh (\w+)\n(.*?)^```$", _PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len({name for name, _ in found}) == len(found)
    return dict(found)


def commands(text: str) -> list[str]:
    """Return the commands of a block: what a user types and sends off, a file that is written counting as one."""
    text = re.sub(r"<<EOF\n.*?^EOF$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip()]


@dataclass
class Shell:
    """A user's shell: what a block exports, the next one has."""

    folder: Path
    environment: dict[str, str]
    groups: list[int] = field(default_factory=list)

    def end(self) -> None:
        """End what blocks left in the background."""
        for group in self.groups:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGTERM)

    def run(self, text: str) -> str:
        """Run a block as it is, stopping at the first command that fails; return what it said. Its background goes on."""
        kept = self.folder.parent / "environment"
        log = self.folder.parent / "said"
        script = f"set -euo pipefail\n{text}\nenv -0 > {kept}\n"
        with log.open("wb") as said:
            shell = subprocess.Popen(
                ("bash", "-c", script),
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self.groups.append(shell.pid)
            shell.wait(timeout=300)
        told = log.read_text(encoding="utf-8")
        assert shell.returncode == 0, told
        self.environment = dict(
            line.split("=", 1) for line in kept.read_text(encoding="utf-8").split("\0") if "=" in line
        )
        return told


@pytest.fixture(scope="module")
def site(
    real_cluster: Cluster, images: Mapping[str, Built], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Site, Shell, str]]:
    """Return a cluster as the page wants it, with one GPU node, and a user's shell in a checkout's place."""
    install_commands(COMMANDS, print)
    if lacks := [command for command in COMMANDS if find_command(command) is None]:
        pytest.skip(f"not here: {', '.join(lacks)} (a registry, and what copies images into it)")
    site, folder = Site(real_cluster, _NAMESPACE), tmp_path_factory.mktemp("page") / "checkout"
    folder.mkdir()
    for each in _ROOT.iterdir():
        (folder / each.name).symlink_to(each)
    assert images  # built once, as `make images` does; the page's own finds them as they are
    first = real_cluster.real_nodes[0].name
    real_cluster.kubectl("label", "node", first, "nvidia.com/gpu.present=true")
    give_volume(site, "/var/lib/page-volume", size="25Gi")
    with gpus_on_node(real_cluster, 1, folder.parent, gpu_count=_GPUS) as gpus:
        gpus.host.shelf.path.chmod(0o666)  # as the device files of a real driver
        gpus.wait_counts(_GPUS, _GPUS)
        # What only this cluster needs: the volume is on the first node, the driver is the simulator's.
        own = {
            "controller": {
                "persistence": {"storageClassName": "-"},
                "nodeSelector": {"kubernetes.io/hostname": first},
            },
            "agent": simulated_driver(gpus),
        }
        (folder / "cluster.yaml").write_text(json.dumps(own), encoding="utf-8")
        tools = folder.parent / "bin"
        tools.mkdir()
        for name in ("helm", "kubectl"):
            (tools / name).symlink_to(real_cluster.tools.path(name))
        write_skopeo(real_cluster, tools)
        environment = {
            "PATH": f"{tools}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(folder.parent),
        }
        usual = folder.parent / ".kube" / "config"
        usual.parent.mkdir()
        usual.symlink_to(real_cluster.kubeconfig)
        shell = Shell(folder, environment)
        registry = start_registry(real_cluster)
        try:
            yield site, shell, registry
        finally:
            end_registry(real_cluster)
            shell.end()
            real_cluster.kubectl("label", "node", first, "nvidia.com/gpu.present-")
            real_cluster.kubectl("delete", "pv/swingbus-controller", "--wait=false")
            names = (f"namespace/{_NAMESPACE}", f"namespace/{_CUSTOMERS}")
            real_cluster.kubectl("delete", *names, "--wait=false", "--ignore-not-found")


def test_page_has_the_blocks_that_are_run_here() -> None:
    """One more would be run by nobody."""
    assert list(blocks()) == [*_UNTIL_LOOK, "look", "upgrade", "rollback", "uninstall", "forget"]


def test_ten_commands_are_enough() -> None:
    """From an empty cluster to the site on the screen, the files that are written among them."""
    typed = [each for name in _UNTIL_LOOK for each in commands(blocks()[name])]
    assert len(typed) <= 10, typed
    assert typed[-1].endswith("site show")


def test_blocks_of_the_page_do_what_it_says(site: tuple[Site, Shell, str]) -> None:
    """Installed, live watts a look or two later; a limit lowered and taken back; gone, and nobody waits for it; then forgotten."""
    release, shell, registry = site
    page = blocks()
    shell.run(page["where"].replace("registry.example.com", registry))
    assert shell.environment["NODE"] == release.cluster.real_nodes[0].name
    shell.run(page["images"])
    shell.run(page["site"])
    assert f"device_count = {_GPUS}\n" in (shell.folder / "site.toml").read_text(encoding="utf-8")
    shell.run(page["values"])
    told = shell.run(page["install"])
    look = commands(page["install"])[-1]
    wait_until(lambda: _watts(told) > 0 or _watts(shell.run(look)) > 0, what="live watts", timeout_s=30, poll_s=1.0)
    looked = shell.run(page["look"])
    assert "  12 kW " in looked and "live" in looked and "Phase:          Succeeded" in looked, looked

    shell.run(page["upgrade"])
    wait_until(lambda: release.limit_w() == 11_000, what="the lower limit", timeout_s=60, poll_s=1.0)
    shell.run(page["rollback"])
    wait_until(lambda: release.limit_w() == 12_000, what="the limit of before", timeout_s=60, poll_s=1.0)

    make_namespace(release.api, _CUSTOMERS)
    release.cluster.kubectl("label", "namespace", _CUSTOMERS, "swingbus.io/power-gate=enabled")
    path = f"/api/v1/namespaces/{_CUSTOMERS}/pods"
    release.api.create(path, make_pod("waits", make_pod_spec(gated=False, gpu_count=1)))
    assert release.api.get(f"{path}/waits")["spec"]["schedulingGates"]
    shell.run(page["uninstall"])
    assert not release.api.get(f"{path}/waits")["spec"].get("schedulingGates")
    assert _left(release) == {"customresourcedefinition", "persistentvolumeclaim", "secret"}
    shell.run(page["forget"])
    assert _left(release) == set()


def _watts(told: str) -> float:
    """Return what `swingctl site show` attributes to devices, in whatever unit; 0 where nobody has told yet."""
    found = re.search(r"attributed to devices +(\d+(?:\.\d+)?) (W|kW)\b", told)
    return float(found[1]) if found else 0.0


def _left(release: Site) -> set[str]:
    """Return the kinds of which something of ours is left in the cluster."""
    kinds = "crd,clusterroles,clusterrolebindings,priorityclasses,validatingadmissionpolicies,mutatingadmissionpolicies,namespaces"
    own = "deployments,daemonsets,pods,services,configmaps,secrets,pvc,roles,rolebindings,networkpolicies,jobs,serviceaccounts,leases"
    everywhere = release.cluster.kubectl("get", kinds, "-l", "app.kubernetes.io/name=swingbus", "-o", "name")
    here = release.kubectl("get", own, "-l", "app.kubernetes.io/name=swingbus", "-o", "name")
    assert not exists(release.api, "/api/v1/namespaces/swingbus-miners")
    return {line.partition("/")[0].partition(".")[0] for line in (*everywhere.split(), *here.split())}
