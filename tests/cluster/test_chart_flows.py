"""Who may reach whom by the chart's NetworkPolicies, and what its alerts ask: as rendered, for neither is kept by this cluster.

The rules are read as the Kubernetes documentation says: a pod that a policy selects for a direction may do what some rule of it admits.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from swingbus.faults import SwingbusError
from swingbus_controller.adapters.metrics import ControllerMetrics
from swingbus_controller.domain.fleet.fleet import Liveness
from swingbus_controller.domain.flips.flip import TERMINAL
from swingbus_sim.cluster.up import Cluster
from tests.cluster.chart import AGENT, CONTROLLER, template

pytestmark = pytest.mark.cluster
_OURS = "swingbus-system"
_OPERATOR = "monitoring.coreos.com/v1"
_PAGE = Path(__file__).parents[2] / "docs" / "kubernetes.md"
_PORTS = [("UDP", 53), *(("TCP", port) for port in (22, 53, 80, 443, 502, 4028, 6443, 7443, 7444, 10250))]


@dataclass(frozen=True)
class Peer:
    """Somebody in the network. Without a namespace: an address outside of the cluster."""

    name: str
    namespace: str = ""
    labels: dict[str, str] = field(default_factory=dict, hash=False)


def _ours(component: str) -> Peer:
    labels = {"app.kubernetes.io/name": "swingbus", "app.kubernetes.io/instance": "swb"}
    return Peer(component, _OURS, {**labels, "app.kubernetes.io/component": component})


CONTROLLER_PODS, AGENT_PODS, JOB_PODS = _ours("controller"), _ours("agent"), _ours("certificates")
DNS = Peer("kube-dns", "kube-system", {"k8s-app": "kube-dns"})
POD = Peer("any pod", "elsewhere", {"app": "prometheus"})
OUTSIDE = Peer("anybody")
NAMED_PORTS = {"grpc": 7443, "metrics": 7444}
EVERYBODY = (CONTROLLER_PODS, AGENT_PODS, JOB_PODS, DNS, POD, OUTSIDE)
Flow = tuple[str, str, str, int]


def render(cluster: Cluster, folder: Path, *words: str, **values: Any) -> list[dict[str, Any]]:
    """Return the objects that helm renders."""
    return [each for each in yaml.safe_load_all(template(cluster, folder, _OURS, *words, **values)) if each]


def _selects(selector: dict[str, Any] | None, labels: dict[str, str]) -> bool:
    assert not (selector or {}).get("matchExpressions")
    wanted: dict[str, str] = (selector or {}).get("matchLabels", {})
    return wanted.items() <= labels.items()


def _is_peer(rule: dict[str, Any], peer: Peer, namespace: str) -> bool:
    """Whether an entry of `from` or `to` means this peer."""
    if not peer.namespace or "ipBlock" in rule:
        return False  # addresses that a test lets in are nobody's here
    if "namespaceSelector" not in rule:
        return peer.namespace == namespace and _selects(rule["podSelector"], peer.labels)
    assert not rule["namespaceSelector"], "the test knows no labels of namespaces"
    return _selects(rule.get("podSelector"), peer.labels)


def _admits(policies: list[dict[str, Any]], way: str, who: Peer, other: Peer, protocol: str, port: int) -> bool:
    """Whether `who` may be reached by (Ingress), or may reach (Egress), the other one."""
    chosen = [
        p
        for p in policies
        if way in p["spec"]["policyTypes"]
        and p["metadata"]["namespace"] == who.namespace
        and _selects(p["spec"]["podSelector"], who.labels)
    ]
    key, peers = (("ingress", "from"), ("egress", "to"))[way == "Egress"]
    rules = [rule for policy in chosen for rule in policy["spec"].get(key) or []]
    return not chosen or any(
        any(
            (each["protocol"], NAMED_PORTS.get(each["port"], each["port"])) == (protocol, port)
            for each in rule["ports"]
        )
        and (not rule.get(peers) or any(_is_peer(each, other, _OURS) for each in rule[peers]))
        for rule in rules
    )


def flows(objects: list[dict[str, Any]]) -> set[Flow]:
    """Return who may reach whom on which port, of all in which a pod of ours takes part."""
    policies = [each for each in objects if each["kind"] == "NetworkPolicy"]
    return {
        (one.name, two.name, protocol, port)
        for (one, two), (protocol, port) in itertools.product(itertools.permutations(EVERYBODY, 2), _PORTS)
        if {one, two} & {CONTROLLER_PODS, AGENT_PODS, JOB_PODS}
        and _admits(policies, "Egress", one, two, protocol, port)
        and _admits(policies, "Ingress", two, one, protocol, port)
    }


def documented() -> Iterator[Flow]:
    """Yield the flows of the page's table; who may come from anybody may come from each."""
    rows = re.findall(r"^\| ([a-z -]+) \| ([a-z -]+) \| (?:\w+ )?(\d+)/(TCP|UDP) \|", _PAGE.read_text(), re.MULTILINE)
    assert len(rows) == 11
    anybody = {each.name for each in EVERYBODY}
    cluster = anybody - {OUTSIDE.name}
    for one, two, port, protocol in rows:
        for source in {"anybody": anybody, "any pod": cluster}.get(one, {one}):
            for target in anybody if two == "anybody" else {two}:
                if source != target:
                    yield source, target, protocol, int(port)


def test_network_policies_admit_the_documented_flows_and_no_others(cluster: Cluster, tmp_path: Path) -> None:
    """Every pair, every port that could matter: what is admitted is what the page lists, seen from both ends."""
    own = {**CONTROLLER, "certificates": {}}
    agents = {**AGENT, "bundles": {}}
    seen = flows(render(cluster, tmp_path, controller=own, agent=agents, certificates={"create": True}))
    ours = {"controller", "agent", "certificates"}
    # What the page lets us reach on the API server's ports we may not reach where the other end is ours.
    wanted = {flow for flow in documented() if not (set(flow[:2]) <= ours and flow[3] in (443, 6443))}
    # Our pods may call the controller on its link alone, agents and job both; others on all that the page says of "any pod".
    wanted = {flow for flow in wanted if not (flow[0] in ours and flow[3] == 7444)} - {
        ("certificates", "controller", "TCP", 7443)
    }
    assert seen == wanted


def test_network_policies_narrow_and_widen_as_told(cluster: Cluster, tmp_path: Path) -> None:
    """Who may come to the link, more that agents may reach, a controller that runs elsewhere; off is off."""
    own = [{"ipBlock": {"cidr": "10.20.0.0/16"}}]
    narrow = {"linkFrom": own, "agentEgress": [{"ports": [{"port": 502, "protocol": "TCP"}]}]}
    seen = flows(render(cluster, tmp_path, controller=CONTROLLER, agent=AGENT, networkPolicy=narrow))
    assert {flow[0] for flow in seen if flow[1:] == ("controller", "TCP", 7443)} == {"agent"}
    assert ("agent", "anybody", "TCP", 502) in seen and ("agent", "anybody", "TCP", 4028) not in seen
    alone = flows(render(cluster, tmp_path, agent=AGENT))
    assert ("agent", "anybody", "TCP", 7443) in alone and ("agent", "anybody", "TCP", 443) not in alone
    assert not [
        o for o in render(cluster, tmp_path, agent=AGENT, networkPolicy={"enabled": False}) if o["kind"][7:] == "Policy"
    ]


def _monitored(**values: Any) -> dict[str, Any]:
    parts = {"serviceMonitor": {"enabled": True}, "alerts": {"enabled": True}}
    return {"controller": CONTROLLER, "monitoring": {k: {**v, **values.get(k, {})} for k, v in parts.items()}}


def _selectors(expression: Any) -> Iterator[Any]:
    """Yield the series that a parsed expression asks for."""
    match expression:
        case promql_parser.VectorSelector():
            yield expression
        case promql_parser.MatrixSelector():
            yield expression.vector_selector
        case promql_parser.Call():
            for each in expression.args:
                yield from _selectors(each)
        case promql_parser.BinaryExpr():
            yield from _selectors(expression.lhs)
            yield from _selectors(expression.rhs)
        case promql_parser.NumberLiteral():
            pass
        case _:
            raise AssertionError(f"the test knows no {type(expression).__name__}")


def test_alerts_ask_for_metrics_that_the_controller_has(cluster: Cluster, tmp_path: Path) -> None:
    """Each expression parses; its series, labels and values are such as the controller shows; each alert says what to do."""
    (rule,) = [
        each
        for each in render(
            cluster, tmp_path, "--api-versions", _OPERATOR, **_monitored(alerts={"labels": {"release": "prom"}})
        )
        if each["kind"] == "PrometheusRule"
    ]
    assert rule["metadata"]["labels"]["release"] == "prom"
    known = {
        name: set(collector._labelnames)
        for collector, names in ControllerMetrics("x").registry._collector_to_names.items()
        for name in names
        if isinstance(collector, MetricWrapperBase)
    }
    values = {"state": {each.value for each in Liveness}, "phase": {each.value for each in TERMINAL}}
    alerts = rule["spec"]["groups"][0]["rules"]
    assert len({each["alert"] for each in alerts}) == len(alerts) > 5
    for alert in alerts:
        for series in _selectors(promql_parser.parse(alert["expr"])):
            assert series.name in known, alert
            for matcher in series.matchers.matchers:
                assert matcher.name in known[series.name] and matcher.value in values[matcher.name], alert
        told = set(re.findall(r"\$labels\.(\w+)", alert["annotations"]["summary"]))
        assert all(told <= known[series.name] for series in _selectors(promql_parser.parse(alert["expr"]))), alert
        assert alert["labels"]["severity"] in ("critical", "warning") and alert["annotations"]["description"]


def test_service_monitor_finds_the_metrics_port(cluster: Cluster, tmp_path: Path) -> None:
    """Monitor, Service and pod agree on labels and port name."""
    objects = render(cluster, tmp_path, "--api-versions", _OPERATOR, **_monitored())
    found = {(each["kind"], each["metadata"]["name"]): each for each in objects}
    monitor = found["ServiceMonitor", "swingbus-controller"]["spec"]
    chosen = [
        each
        for (kind, _), each in found.items()
        if kind == "Service" and _selects(monitor["selector"], each["metadata"]["labels"])
    ]
    assert [each["metadata"]["name"] for each in chosen] == ["swingbus-controller-metrics"]
    (port,) = chosen[0]["spec"]["ports"]
    template = found["Deployment", "swingbus-controller"]["spec"]["template"]
    ports = template["spec"]["containers"][0]["ports"]
    assert port["name"] == monitor["endpoints"][0]["port"] and port["targetPort"] in [each["name"] for each in ports]
    assert _selects({"matchLabels": chosen[0]["spec"]["selector"]}, template["metadata"]["labels"])


def test_monitoring_without_what_it_needs_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    """No operator in the cluster; nothing to scrape."""
    with pytest.raises(SwingbusError, match=r"definitions \(monitoring.coreos.com/v1\), which this cluster has not"):
        render(cluster, tmp_path, **_monitored())
    for controller in ({}, {**CONTROLLER, "metrics": {"enabled": False}}):
        with pytest.raises(SwingbusError, match=r"needs controller.enabled and controller.metrics.enabled"):
            render(cluster, tmp_path, "--api-versions", _OPERATOR, **{**_monitored(), "controller": controller})
