"""What a flip does to pods: delete, lift the gate, evict, create. One call each, safe to send again.

Decides what an answer means. Refuses to know why a flip wants it, and to take any answer as evidence: `Accepted` says that the API server
took the call. Invariants: every call names the life (uid) that it means; a lift also the revision that was looked at; what was expected
to happen is a result, only what was not is a fault.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from swingbus.faults import StaleRevision, TimedOut
from swingbus_controller.adapters.kubernetes.answers import BLOCKED_BY_BUDGET, Answer, decode, fault_of, shorten
from swingbus_controller.adapters.kubernetes.objects import Pod
from swingbus_controller.adapters.kubernetes.resources import JSON_PATCH, PODS, ApiCall
from swingbus_controller.adapters.kubernetes.writing import Writer

_POD = msgspec.json.Decoder(Pod)
_SEVERAL_BUDGETS = "more than one PodDisruptionBudget"
_BUDGET_NAME = re.compile(r"disruption budget (\S+) ")
_BUDGET_COUNTS = re.compile(r"needs (\d+) healthy pods and has (\d+) currently")


@dataclass(frozen=True, slots=True, kw_only=True)
class PodLife:
    """Which pod is meant: a name alone could be its successor's."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """The API server took it. The processes may live for a long time yet."""


@dataclass(frozen=True, slots=True)
class PodGone:
    """There is no pod of this name."""


@dataclass(frozen=True, slots=True)
class OtherPod:
    """The name belongs to another life now: the one that was meant is gone."""

    pod: Pod


@dataclass(frozen=True, slots=True)
class StaleView:
    """The pod has changed since it was looked at: decide again."""

    pod: Pod


@dataclass(frozen=True, slots=True)
class Lifted:
    """The gate is gone; the scheduler may bind the pod at any moment."""

    pod: Pod


@dataclass(frozen=True, slots=True)
class LiftRefused:
    """The pod is as it was looked at, but admission did not let us: a policy, or a rule of the API server."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetBlocked:
    """A PodDisruptionBudget has no disruption left.

    Args:
        budget: its name, empty where the server did not say.
        needed_count, healthy_count: None where the server did not say.
        retry_after_s: what the server asks for, None if nothing.
    """

    budget: str
    message: str
    needed_count: int | None
    healthy_count: int | None
    retry_after_s: float | None


@dataclass(frozen=True, slots=True)
class SeveralBudgets:
    """Two budgets select the pod: the Eviction API never takes it, trying again is of no use."""

    message: str


@dataclass(frozen=True, slots=True)
class Created:
    """The pod is ours and new."""

    pod: Pod


@dataclass(frozen=True, slots=True)
class Adopted:
    """The name was taken by a pod with our labels: an earlier try of ours succeeded."""

    pod: Pod


@dataclass(frozen=True, slots=True)
class NameTaken:
    """The name was taken by a pod that is not ours."""

    pod: Pod


async def delete_pod(
    writer: Writer, life: PodLife, *, grace_s: int | None, revision: str = ""
) -> Accepted | PodGone | OtherPod | StaleView:
    """Ask for a deletion. `revision` makes it hold only for the state that was looked at."""
    call = ApiCall(
        verb="delete",
        resource=PODS,
        namespace=life.namespace,
        name=life.name,
        body=_delete_options(life, grace_s=grace_s, revision=revision),
    )
    answer = await writer.send(call)
    if answer.is_ok:
        return Accepted()
    if answer.code == 409:
        return await _what_it_is_now(writer, life)
    return _gone_or_fault(answer, call)


async def lift_gate(
    writer: Writer, pod: Pod, *, gate: str, node_selector: Mapping[str, str], annotations: Mapping[str, str]
) -> Lifted | StaleView | PodGone | OtherPod | LiftRefused:
    """Remove one gate, narrow the pod to where its watts are, and mark it, in one step or not at all.

    `pod` is what was looked at; if it is not exactly that any more, nothing happens.
    """
    if gate not in pod.gates:
        return StaleView(pod)
    life = PodLife(namespace=pod.metadata.namespace, name=pod.metadata.name, uid=pod.uid)
    call = ApiCall(
        verb="patch",
        resource=PODS,
        namespace=life.namespace,
        name=life.name,
        content_type=JSON_PATCH,
        body=_lift_patch(pod, gate, node_selector, annotations),
    )
    answer = await writer.send(call)
    if answer.is_ok:
        return Lifted(decode(answer, _POD, call))
    if answer.code not in (409, 422):
        return _gone_or_fault(answer, call)
    # 422 is a test that failed as well as a policy that said no: the pod itself tells them apart.
    now = await _what_it_is_now(writer, life)
    if isinstance(now, StaleView) and now.pod.revision == pod.revision:
        return LiftRefused(shorten(answer.status.message))
    return now


async def evict_pod(
    writer: Writer, life: PodLife, *, grace_s: int | None = None, revision: str = ""
) -> Accepted | BudgetBlocked | SeveralBudgets | PodGone | OtherPod | StaleView:
    """Ask the Eviction API, which honours PodDisruptionBudgets. Raises OverBudget where the server itself is too busy."""
    call = ApiCall(
        verb="create",
        resource=PODS,
        namespace=life.namespace,
        name=life.name,
        subresource="eviction",
        body={
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": life.name, "namespace": life.namespace},
            "deleteOptions": _delete_options(life, grace_s=grace_s, revision=revision),
        },
    )
    try:
        answer = await writer.send(call)
    except TimedOut:
        # Of a pod without a node the server (1.37) tries again for ten seconds what a precondition forbids, and says nothing meanwhile.
        now = await _what_it_is_now(writer, life)
        if isinstance(now, StaleView) and now.pod.revision == (revision or now.pod.revision):
            raise
        return now
    if answer.is_ok:
        return Accepted()
    status = answer.status
    causes = [cause.message for cause in status.details.causes if cause.reason == BLOCKED_BY_BUDGET]
    if answer.code == 429 and causes:
        return _blocked(causes[0], answer)
    if answer.code == 500 and _SEVERAL_BUDGETS in status.message:
        return SeveralBudgets(shorten(status.message))
    if answer.code == 409:
        return await _what_it_is_now(writer, life)
    return _gone_or_fault(answer, call)


async def create_pod(writer: Writer, body: Mapping[str, Any]) -> Created | Adopted | NameTaken:
    """Create a pod under a name that only this flip would use; `body` holds name, namespace and the labels that make it ours."""
    meta = body["metadata"]
    call = ApiCall(
        verb="create",
        resource=PODS,
        namespace=meta["namespace"],
        query={"fieldValidation": "Strict"},
        body=dict(body),
    )
    answer = await writer.send(call)
    if not (answer.code == 409 and answer.status.reason == "AlreadyExists"):
        return Created(decode(answer, _POD, call))
    there = await writer.read(PODS, _POD, namespace=meta["namespace"], name=meta["name"])
    if there is None:
        raise StaleRevision(f"cannot {call.what}: the name was taken and is free again; try again", metadata=call.facts)
    ours = meta.get("labels") or {}
    is_ours = bool(ours) and all(there.metadata.labels.get(key) == value for key, value in ours.items())
    return Adopted(there) if is_ours else NameTaken(there)


def _lift_patch(
    pod: Pod, gate: str, node_selector: Mapping[str, str], annotations: Mapping[str, str]
) -> list[dict[str, Any]]:
    at = f"/spec/schedulingGates/{pod.gates.index(gate)}"
    return [
        {"op": "test", "path": "/metadata/uid", "value": pod.uid},
        {"op": "test", "path": "/metadata/resourceVersion", "value": pod.revision},
        {"op": "test", "path": f"{at}/name", "value": gate},
        {"op": "remove", "path": at},
        *_additions("/spec/nodeSelector", pod.spec.node_selector, node_selector),
        *_additions("/metadata/annotations", pod.metadata.annotations, annotations),
    ]


def _additions(path: str, there: Mapping[str, str], added: Mapping[str, str]) -> list[dict[str, Any]]:
    # A key can only be added to a map that is there; that it is still missing is what the revision's test says.
    start = [] if there or not added else [{"op": "add", "path": path, "value": {}}]
    return [
        *start,
        *(
            {"op": "add", "path": f"{path}/{key.replace('~', '~0').replace('/', '~1')}", "value": value}
            for key, value in added.items()
        ),
    ]


def _delete_options(life: PodLife, *, grace_s: int | None, revision: str) -> dict[str, Any]:
    preconditions = {"uid": life.uid, **({"resourceVersion": revision} if revision else {})}
    grace = {} if grace_s is None else {"gracePeriodSeconds": grace_s}
    return {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions, **grace}


def _blocked(cause: str, answer: Answer) -> BudgetBlocked:
    name, counts = _BUDGET_NAME.search(cause), _BUDGET_COUNTS.search(cause)
    seconds = answer.status.details.retry_after_seconds
    return BudgetBlocked(
        budget=name.group(1) if name else "",
        message=shorten(cause),
        needed_count=int(counts.group(1)) if counts else None,
        healthy_count=int(counts.group(2)) if counts else None,
        retry_after_s=answer.retry_after_s if answer.retry_after_s is not None else (float(seconds) or None),
    )


async def _what_it_is_now(writer: Writer, life: PodLife) -> PodGone | OtherPod | StaleView:
    pod = await writer.read(PODS, _POD, namespace=life.namespace, name=life.name)
    if pod is None:
        return PodGone()
    return StaleView(pod) if pod.uid == life.uid else OtherPod(pod)


def _gone_or_fault(answer: Answer, call: ApiCall) -> PodGone:
    if answer.code == 404:
        return PodGone()
    raise fault_of(answer, call)
