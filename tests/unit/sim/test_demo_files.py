"""The demo's file writer: what it writes for any scenario is what the programs accept, and both sides name the same banks."""

from __future__ import annotations

from pathlib import Path

import pytest

from swingbus_agent.settings import load_settings
from swingbus_controller.settings import load_configuration
from swingbus_sim.demo.files import InCluster, PodHost, Ports, agent_file, agents_of, site_file
from swingbus_sim.scenario_file import load_scenario, scenario_names


@pytest.mark.parametrize("name", scenario_names())
def test_files_of_every_shipped_scenario_name_the_same_banks(name: str, tmp_path: Path) -> None:
    """Each agent's file holds exactly the banks, classes and machines that the site file declares for it."""
    scenario = load_scenario(name)
    agents = agents_of(scenario)
    assert len(set(agents)) == len(agents)
    ports = Ports(controller=40001, metrics=40002, links=dict.fromkeys(agents, 40003))
    site_path = tmp_path / "site.toml"
    site_path.write_text(
        site_file(scenario, ports, start_time="2026-01-01T00:00:00+00:00", end_time="2027-01-01T00:00:00+00:00")
    )
    declared = {b.name: b.device_count for b in load_configuration(site_path).site.banks}
    written: dict[str, int] = {}
    for agent in agents:
        path = tmp_path / f"{agent}.toml"
        path.write_text(agent_file(scenario, agent, tmp_path, ports, run_dir=tmp_path))
        banks = load_settings(path).banks
        written |= {f"{agent}/{bank.name}": len(bank.miners) for bank in banks if bank.miners}
    asics = {bank: count for bank, count in declared.items() if not bank.endswith("/gpus")}
    assert written == asics
    assert sum(written.values()) == sum(group.count for group in scenario.miners)


@pytest.mark.parametrize("kubeconfig", [None, Path("/run-folder/controller.kubeconfig")])
def test_controller_in_a_pod_has_no_kubeconfig(kubeconfig: Path | None, tmp_path: Path) -> None:
    """It is its pod's service account then; a process of the host is told whose rights it has."""
    scenario = load_scenario("demo")
    hosts = {scenario.hosts[0].name: PodHost(node="real-1", socket=Path("/kubelet.sock"))}
    cluster = InCluster(hosts=hosts, kubeconfig=kubeconfig, pool="gpu-h100", miner_namespace="swingbus-miners")
    ports = Ports(controller=40001, metrics=40002, links={})
    term = {"start_time": "2026-01-01T00:00:00+00:00", "end_time": "2027-01-01T00:00:00+00:00"}
    path = tmp_path / "site.toml"
    path.write_text(site_file(scenario, ports, cluster=cluster, **term))
    settings = load_configuration(path).cluster
    assert settings is not None and settings.kubeconfig == kubeconfig
