"""Quantities, and the fields that we read of objects."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swingbus.faults import InvalidInput
from swingbus_controller.adapters.kubernetes.objects import LabelSelector, Node, Pod
from swingbus_controller.adapters.kubernetes.quantity import parse_count, parse_quantity

META = {"name": "a", "namespace": "n", "uid": "u", "resourceVersion": "7"}


def pod(**fields: Any) -> Pod:
    """Return a pod decoded from JSON."""
    return msgspec.json.decode(msgspec.json.encode({"metadata": META, **fields}), type=Pod)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", "0"),
        ("8", "8"),
        (8, "8"),
        ("-1.5", "-1.5"),
        (".5", "0.5"),
        ("5.", "5"),
        ("500m", "0.5"),
        ("1u", "0.000001"),
        ("3n", "0.000000003"),
        ("2k", "2000"),
        ("12Ki", "12288"),
        ("1Gi", str(2**30)),
        ("1Ei", str(2**60)),
        ("1E", str(10**18)),
        ("1e3", "1000"),
        ("1E3", "1000"),
        ("+1E-3", "0.001"),
    ],
)
def test_a_quantity_is_exact(text: str | int, value: str) -> None:
    """Every suffix of the API, as an exact number."""
    assert parse_quantity(text) == Decimal(value)


@pytest.mark.parametrize(
    "text",
    ["", " 1", "1 ", "1K", "1ki", "m", "1mm", "1e", "1e999999999", "NaN", "Infinity", "0x10", "1,5", "١", "1" * 65],
)
def test_what_is_no_quantity_is_refused_and_never_zero(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(InvalidInput, match="is not a quantity"):
        parse_quantity(text)


@given(st.integers(0, 10**6))
def test_counts_are_whole(count: int) -> None:
    """A count survives being written in milli; half of one does not pass."""
    assert parse_count(f"{count}000m") == count
    with pytest.raises(InvalidInput, match="must be whole"):
        parse_count(f"{count}500m")


def test_a_pod_without_anything_optional_is_read() -> None:
    """Defaults stand for what the server leaves out, and unknown fields are skipped."""
    seen = pod(brandNew={"deep": [1, {"x": None}]})
    assert (seen.key, seen.uid, seen.revision) == (("n", "a"), "u", "7")
    assert seen.gates == ()
    assert seen.spec.node_name == ""
    assert not seen.is_deleting
    assert not seen.is_ready


def test_a_pod_is_read_whole() -> None:
    """What a flip decides by."""
    seen = pod(
        metadata={
            **META,
            "deletionTimestamp": "2026-01-01T00:00:00Z",
            "ownerReferences": [
                {"kind": "ReplicaSet", "name": "r", "uid": "ru", "controller": True, "apiVersion": "apps/v1"}
            ],
        },
        spec={
            "schedulingGates": [{"name": "x"}, {"name": "swingbus.io/power"}],
            "nodeSelector": {"k": "v"},
            "affinity": {"podAffinity": {"a": [1, 2]}},
            "priority": -10,
            "nodeName": "n1",
        },
        status={"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    )
    assert seen.gates == ("x", "swingbus.io/power")
    assert seen.is_deleting
    assert seen.is_ready
    assert seen.spec.affinity is not None and seen.spec.affinity.named_nodes == frozenset()
    assert seen.spec.priority == -10
    assert seen.metadata.owner_references[0].controller


def test_what_pods_have_in_common_is_kept_once() -> None:
    """A site has thousands of pods of one template."""
    fields: dict[str, Any] = {
        "spec": {
            "containers": [{"name": "work", "resources": {"limits": {"nvidia.com/gpu": "1"}}}],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}],
            "nodeName": "n1",
        },
        "status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
    }
    one = pod(**fields)
    fields["status"]["conditions"][0]["lastTransitionTime"] = "2026-01-01T00:00:09Z"
    other = pod(**fields)
    assert one.spec.containers is other.spec.containers
    assert one.spec.tolerations is other.spec.tolerations
    assert one.status.conditions is other.status.conditions
    fields["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] = "2"
    assert (one.devices("nvidia.com/gpu"), pod(**fields).devices("nvidia.com/gpu")) == (1, 2)


@pytest.mark.parametrize(
    ("terms", "names"),
    [
        ([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}], {"n1"}),
        (
            [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [n]}]} for n in ("n1", "n2")],
            {"n1", "n2"},
        ),
        (
            [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]},
                {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]},
            ],
            set(),
        ),
        ([{"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n1"]}]}], set()),
        ([], set()),
    ],
    ids=["one, as a DaemonSet's pods have", "either of two", "one of them or a label", "not that one", "none"],
)
def test_nodes_that_a_pod_names_are_the_only_ones(terms: list[Any], names: set[str]) -> None:
    """Terms are alternatives: one that names nobody leaves every node open, as far as we can read."""
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    seen = pod(spec={"affinity": {"nodeAffinity": required}})
    assert seen.spec.affinity is not None
    assert seen.spec.affinity.named_nodes == names


def test_devices_are_counted_as_the_scheduler_does() -> None:
    """Containers add up, sidecars run beside all that follow, an init container counts only if it is larger."""

    def asks(count: int, **more: Any) -> dict[str, Any]:
        return {"name": "c", "resources": {"limits": {"gpu": str(count)}}, **more}

    assert pod(spec={"containers": [asks(2), asks(1)]}).devices("gpu") == 3
    assert pod(spec={"containers": [asks(2)], "initContainers": [asks(5)]}).devices("gpu") == 5
    sidecar = asks(1, restartPolicy="Always")
    assert pod(spec={"containers": [asks(2)], "initContainers": [sidecar, asks(3)]}).devices("gpu") == 4
    assert pod(spec={"containers": [asks(2)], "initContainers": [asks(3), sidecar]}).devices("gpu") == 3
    assert pod(spec={"containers": [{"name": "c"}]}).devices("gpu") == 0


@pytest.mark.parametrize("missing", ["name", "uid", "resourceVersion"])
def test_an_object_without_identity_is_not_decoded(missing: str) -> None:
    """Nothing is kept that could not be told from another."""
    with pytest.raises(msgspec.ValidationError):
        pod(metadata={key: value for key, value in META.items() if key != missing})


def test_a_node_offers_its_allocatable_devices() -> None:
    """Not its capacity."""
    raw = {"metadata": META, "status": {"capacity": {"gpu": "8"}, "allocatable": {"gpu": "7"}}}
    assert msgspec.json.decode(msgspec.json.encode(raw), type=Node).devices("gpu") == 7


def test_a_selector_needs_all_of_it() -> None:
    """An empty one selects everything, an operator that we do not know nothing."""

    def selects(selector: dict[str, Any], **labels: str) -> bool:
        return msgspec.convert(selector, LabelSelector).selects(labels)

    assert selects({}, a="1")
    assert selects({"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}, a="1")
    assert not selects({"matchLabels": {"a": "1"}}, a="2")
    assert not selects({"matchExpressions": [{"key": "a", "operator": "In", "values": ["2"]}]}, a="1")
    assert selects({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["2"]}]})
    assert not selects({"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["0"]}]}, a="1")
