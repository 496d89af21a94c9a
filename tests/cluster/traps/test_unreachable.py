"""An API server that is away, busy or says no under a running controller: nothing is thrown out meanwhile, nothing is stuck afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.kube.ours import ACCOUNT, MINERS, SYSTEM, account_kubeconfig
from tests.cluster.traps.site import GRID, MINING_GPUS, STILL, TrapSite
from tests.cluster.traps.work import ON_GRID, ON_QUIET, deployment, is_gated, make, pod, scale, spec
from tests.fakes.api_server.certificates import write_certificates
from tests.fakes.api_server.faults import CutBody, Fault, Html, Refuse
from tests.fakes.api_server.proxy import FaultProxy
from tests.fakes.api_server.store import Refusal

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
BUSY = Refusal(429, "TooManyRequests", "the server has received too many requests", retry_after_s=1)
STORM: tuple[Fault, ...] = (
    Refuse(BUSY),
    Refuse(Refusal(500, "InternalError", "etcdserver: request timed out")),
    CutBody(),
    Html(),
    Refuse(Refusal(503, "ServiceUnavailable", "the server is currently unable to handle the request")),
)


def miners_alive(site: TrapSite) -> set[str]:
    """Return the lives of miners that nobody told to end."""
    return {seen.uid for seen in site.witness.pods(MINERS) if seen.ending_s is None}


@contextmanager
def behind_proxy(site: TrapSite, folder: Path) -> Iterator[FaultProxy]:
    """Let the controller reach the API server through something that can go wrong."""
    direct = site.kubeconfig.read_text()
    certificates = write_certificates(folder)
    proxy = FaultProxy(folder, certificates, site.cluster.kubeconfig, is_passing_tokens=True)
    site.background.wait(proxy.__aenter__())
    try:
        config = json.loads(direct)
        config["clusters"][0]["cluster"] |= {"server": proxy.url, "certificate-authority": str(proxy.ca_path)}
        restart_with(site, json.dumps(config))
        yield proxy
    finally:
        restart_with(site, direct)
        site.background.wait(proxy.__aexit__(None, None, None))


def restart_with(site: TrapSite, kubeconfig: str) -> None:
    """Start the controller anew as somebody else, or by another way."""
    site.controller.stop()
    site.kubeconfig.write_text(kubeconfig)
    site.controller.start()
    site.wait(lambda: bool(site.controller.said("lease_acquired")), "the lease is held")


def test_storm_of_429_and_500_is_weathered(site: TrapSite, tmp_path: Path) -> None:
    """Each kind of request meets five answers that are none, lists and watches too; then all pods are served and all GPUs mine again."""
    site.wait_mining()
    with behind_proxy(site, tmp_path) as proxy:
        site.wait_condition(GRID, "Ready", "Ready")
        for verb in ("list", "watch", "get", "create", "update", "patch", "delete"):
            proxy.faults.next(verb, *STORM)
        proxy.end_watches()
        make(site, deployment("weathered", 2, spec(on=ON_GRID)))
        site.wait_working("weathered", 2, timeout_s=150.0)
        assert not proxy.faults.coming["patch"] and not proxy.faults.coming["watch"], "the storm has struck"
        scale(site, "weathered", 0)
        site.wait_mining(timeout_s=150.0)
    site.wait_condition(GRID, "Ready", "Ready")


def test_api_server_that_restarts_costs_nobody_anything(site: TrapSite) -> None:
    """It is away until the controller's own permit has run out: who works works on. Back, it serves who came, and no miner was lost."""
    site.wait_mining()
    make(site, deployment("steady", 1, spec(on=ON_QUIET)))
    site.wait_working("steady")
    before = miners_alive(site)
    processes = site.cluster.processes
    processes.end("kube-apiserver")
    try:
        site.wait(lambda: bool(site.controller.said("lease_lost")), "the controller gives up its permit")
        assert site.nodes.count("mining") == MINING_GPUS and site.nodes.count("inference") == 1
    finally:
        processes.restart("kube-apiserver")
        site.wait(site.cluster.api.is_ready, "the API server is back", timeout_s=120.0)
    scale(site, "steady", 3)
    site.wait_working("steady", 3, timeout_s=120.0)
    assert miners_alive(site) == before
    site.wait_condition(STILL, "Ready", "Ready")


def test_token_that_is_worth_nothing_any_more_is_read_anew(site: TrapSite, tmp_path: Path) -> None:
    """The account was made anew, its tokens are void: 401 until the kubeconfig has another one; then, without a restart, all is well."""
    path = f"/api/v1/namespaces/{SYSTEM}/serviceaccounts"
    meta = site.cluster.api.get(f"{path}/{ACCOUNT}")["metadata"]
    site.cluster.api.delete(f"{path}/{ACCOUNT}")
    kept = {"name": ACCOUNT, "labels": meta.get("labels", {}), "annotations": meta.get("annotations", {})}
    site.cluster.api.create(path, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": kept})
    site.wait(lambda: bool(site.controller.said("lease_lost")), "the old token is refused and the permit runs out")
    make(site, pod("barred", spec(on=ON_QUIET)))
    site.kubeconfig.write_text(account_kubeconfig(site.cluster, tmp_path).read_text())
    site.wait_working("barred", timeout_s=120.0)
    site.wait_condition(STILL, "Ready", "Ready")


def test_rights_that_were_taken_away_stop_writes_and_are_said_so(site: TrapSite) -> None:
    """No binding, no lift: each refused call is told with what is missing. The rights are back, the pod is served."""
    path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
    binding: dict[str, Any] = site.cluster.api.get(f"{path}/{ACCOUNT}")
    site.cluster.api.delete(f"{path}/{ACCOUNT}")
    try:
        make(site, pod("forbidden", spec(on=ON_QUIET)))
        site.wait(lambda: any("LiftGate" in line for line in site.controller.said("pod_call_failed")), "the lift fails")
        line = next(line for line in site.controller.said("pod_call_failed") if "LiftGate" in line)
        assert "cannot patch resource" in line, line
        there = site.pod("forbidden")
        assert there is not None and is_gated(there)
    finally:
        meta = {key: binding["metadata"].get(key, {}) for key in ("name", "labels", "annotations")}
        body = {key: binding[key] for key in ("apiVersion", "kind", "roleRef", "subjects")}
        site.cluster.api.create(path, {**body, "metadata": meta})
    site.wait_working("forbidden", timeout_s=120.0)
    site.wait_condition(STILL, "Ready", "Ready")


def test_role_that_was_narrowed_is_said_in_the_pool_s_condition(site: TrapSite, tmp_path: Path) -> None:
    """Nodes may not be followed any more: the condition names them and the verb to grant, who works works on; given back, it is ready."""
    site.wait_mining()
    path = f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{ACCOUNT}"
    rules: list[dict[str, Any]] = site.cluster.api.get(path)["rules"]
    narrowed = [{**rule, "resources": [kind for kind in rule["resources"] if kind != "nodes"]} for rule in rules]
    with behind_proxy(site, tmp_path) as proxy:
        site.wait_condition(GRID, "Ready", "Ready")
        before = miners_alive(site)
        site.cluster.api.merge(path, {"rules": narrowed})
        try:

            def is_refused() -> bool:
                proxy.end_watches()  # the server lets a watch that stands go on
                return bool(site.controller.said("list_failed"))

            site.wait(is_refused, "nodes are refused")
            words = site.wait_condition(GRID, "Ready", "ClusterUnseen", timeout_s=60.0)
            assert "nodes" in words and "'list'" in words, words
            assert miners_alive(site) == before
        finally:
            site.cluster.api.merge(path, {"rules": rules})
            _disown(site, path)
        site.wait_condition(GRID, "Ready", "Ready", timeout_s=90.0)


def _disown(site: TrapSite, path: str) -> None:
    """Forget that somebody besides the chart wrote it: its next upgrade would be refused for that."""
    fields: list[dict[str, Any]] = site.cluster.api.get(path)["metadata"]["managedFields"]
    site.cluster.api.merge(path, {"metadata": {"managedFields": [f for f in fields if f["operation"] == "Apply"]}})
