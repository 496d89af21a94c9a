"""The page on other operators: what it quotes is what we say, what it names is there, and its manifests are YAML."""

from __future__ import annotations

import re
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[3]
DOCS = REPOSITORY / "docs"
PAGE = (DOCS / "neighbours.md").read_text(encoding="utf-8")
MANUAL = (DOCS / "kubernetes.md").read_text(encoding="utf-8")
POLICY = (REPOSITORY / "charts/swingbus/templates/policy-guard-gate.yaml").read_text(encoding="utf-8")
VALUES: dict[str, Any] = yaml.safe_load((REPOSITORY / "charts/swingbus/values.yaml").read_text(encoding="utf-8"))
MANIFESTS = [
    manifest for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) for manifest in yaml.safe_load_all(block)
]
TABLE_ROW = re.compile(r"^\| \[([^\]]+)\]\(#([a-z-]+)\) \|", re.MULTILINE)


def one_line(text: str) -> str:
    """Return text without its line breaks."""
    return " ".join(text.split())


def anchor(heading: str) -> str:
    """Return how a heading is linked to."""
    return re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")


def test_manifests_are_whole_objects() -> None:
    """Each says what it is; those of Kubernetes itself are shown to an API server by tests/cluster/test_chart_policies.py."""
    assert [each["kind"] for each in MANIFESTS] == [
        "Deployment",
        "PodDisruptionBudget",
        "ScaledObject",
        "InferenceService",
        "DeschedulerPolicy",
    ]
    assert all(each["apiVersion"] for each in MANIFESTS)


def test_manifests_keep_the_page_s_own_rules() -> None:
    """No surge, an integer budget below the replicas, a number of replicas that is bounded, one container that asks for GPUs."""
    deployment, budget, scaled, service, policy = (each.get("spec", each) for each in MANIFESTS)
    assert deployment["strategy"]["rollingUpdate"]["maxSurge"] == 0
    assert service["predictor"]["deploymentStrategy"]["rollingUpdate"]["maxSurge"] == 0
    assert isinstance(budget["minAvailable"], int) and budget["minAvailable"] < scaled["minReplicaCount"]
    assert scaled["minReplicaCount"] < scaled["maxReplicaCount"]
    assert scaled["scaleTargetRef"]["name"] == MANIFESTS[0]["metadata"]["name"]
    limits = [container["resources"]["limits"] for container in deployment["template"]["spec"]["containers"]]
    assert limits == [{"nvidia.com/gpu": "1"}] == [service["predictor"]["model"]["resources"]["limits"]]
    (left_out,) = policy["profiles"][0]["pluginConfig"][0]["args"]["labelSelector"]["matchExpressions"]
    assert left_out == {"key": "swingbus.io/tenant", "operator": "NotIn", "values": ["mining"]}


def test_refusals_are_quoted_as_the_policy_says_them() -> None:
    """Who looks for the words of a refusal finds them."""
    said = one_line(POLICY).replace("{{ .Values.gate.resource }}", "nvidia.com/gpu")
    quoted = [
        one_line(block) for block in re.findall(r"(?:^    \S.*\n)+", re.sub(r"```.*?```", "", PAGE, flags=re.S), re.M)
    ]
    assert len(quoted) == 3
    assert [words for words in quoted if words not in said] == []


def test_reasons_are_those_that_a_pool_tells() -> None:
    """By the manual's own list."""
    told = MANUAL.partition("## What a pool says")[2].partition("\n## ")[0]
    conditions = set(re.findall(r"`([A-Z][A-Za-z]+)=(?:True|False)`", PAGE))
    reasons = set(re.findall(r"`[A-Z][A-Za-z]+=(?:True|False)`, `([A-Z][A-Za-z]+)`", PAGE)) | {
        "NodeCordoned",
        "Disrupted",
    }
    assert len(conditions) >= 4 and len(reasons) >= 8
    assert sorted(word for word in conditions | reasons if f"`{word}" not in told) == []


def test_values_are_in_the_chart() -> None:
    """A value that was renamed is renamed here too."""
    named = set(re.findall(r"`((?:agent|controller|miners|monitoring|networkPolicy)\.[A-Za-z.]+)", PAGE))
    assert len(named) >= 6
    for path in named:
        assert reduce(lambda found, key: found[key], path.split("."), VALUES) is not None, path


def test_tests_it_names_are_there() -> None:
    """By the beginning of their names, as the trap table does."""
    there = "\n".join(
        path.read_text(encoding="utf-8") for path in (REPOSITORY / "tests" / "cluster").rglob("test_*.py")
    )
    named = set(re.findall(r"`(test_[a-z_]+)`", PAGE))
    assert len(named) >= 3
    assert [name for name in sorted(named) if f"def {name}" not in there] == []


def test_every_neighbour_has_a_section_and_says_what_was_tested() -> None:
    """The first table lists them all, in order, each with three cells that say something."""
    sections = [anchor(heading) for heading in re.findall(r"^## (.+)$", PAGE, re.MULTILINE)]
    assert [link for _, link in TABLE_ROW.findall(PAGE)] == sections
    rows = [line for line in PAGE.splitlines() if TABLE_ROW.match(line)]
    assert all(
        len(cells) == 3 and all(cells) for cells in ([c.strip() for c in row.strip("|").split(" | ")] for row in rows)
    )


@pytest.mark.parametrize("page", ["docs/kubernetes.md", "README.md"])
def test_page_is_found_from(page: str) -> None:
    """A page that nothing leads to is read by nobody."""
    assert "neighbours.md)" in (REPOSITORY / page).read_text(encoding="utf-8")
