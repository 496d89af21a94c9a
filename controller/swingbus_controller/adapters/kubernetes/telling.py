"""What we tell people through the cluster: a pool's status, and events on pods and nodes.

Decides how each is written. Refuses to decide what to say. Invariants: a status is written against the revision that was looked at and is
strictly validated (an unknown field would be dropped in silence); an event of a flip is told once, however often it is sent.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from swingbus_controller.adapters.kubernetes.answers import decode, fault_of, shorten
from swingbus_controller.adapters.kubernetes.objects import KubeObject
from swingbus_controller.adapters.kubernetes.own_objects import CapacityPool, PoolStatus
from swingbus_controller.adapters.kubernetes.resources import CAPACITY_POOLS, EVENTS, MERGE_PATCH, ApiCall, Resource
from swingbus_controller.adapters.kubernetes.writing import Writer

_POOL = msgspec.json.Decoder(CapacityPool)
_REPORTER = "swingbus.io/controller"
_NOTE_CHARACTERS = 1000  # the API allows 1024 bytes
_NAME_CHARACTERS = 200  # of 253, with room for the hash


@dataclass(frozen=True, slots=True)
class Written:
    """The status stands."""

    pool: CapacityPool


@dataclass(frozen=True, slots=True)
class StalePool:
    """The pool has changed since it was looked at, or is another one: decide again."""

    pool: CapacityPool


@dataclass(frozen=True, slots=True)
class PoolGone:
    """There is no such pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something that happened to an object because of a flip.

    Args:
        once_for: what it is told once for, where that is not the flip.
        reason: UpperCamel, for machines.
        action: what was done, UpperCamel.
        at: aware UTC.
    """

    resource: Resource
    about: KubeObject
    flip_id: str
    reason: str
    action: str
    text: str
    at: datetime
    is_warning: bool = False
    once_for: str = ""

    @property
    def name(self) -> str:
        """Return the event's name: the same for the same flip (or what it is told once for), reason and object."""
        told = "\n".join((self.once_for or self.flip_id, self.reason, self.about.uid))
        return f"{self.about.metadata.name[:_NAME_CHARACTERS].rstrip('.-')}.{hashlib.sha256(told.encode()).hexdigest()[:16]}"


async def write_pool_status(writer: Writer, pool: CapacityPool, status: PoolStatus) -> Written | StalePool | PoolGone:
    """Replace a pool's status."""
    call = ApiCall(
        verb="patch",
        resource=CAPACITY_POOLS,
        name=pool.metadata.name,
        subresource="status",
        query={"fieldValidation": "Strict", "fieldManager": "swingbus"},
        content_type=MERGE_PATCH,
        body={
            "metadata": {"uid": pool.uid, "resourceVersion": pool.revision},
            "status": _without_none_in_lists(msgspec.to_builtins(status)),
        },
    )
    answer = await writer.send(call)
    if answer.code == 404:
        return PoolGone()
    if answer.code != 409:
        return Written(decode(answer, _POOL, call))
    now = await writer.read(CAPACITY_POOLS, _POOL, namespace="", name=pool.metadata.name)
    return PoolGone() if now is None else StalePool(now)


async def tell(writer: Writer, note: Note, *, instance: str) -> bool:
    """Post an event; returns False where it had been told before."""
    namespace = note.about.metadata.namespace or "default"
    regarding = {
        "apiVersion": note.resource.api_version,
        "kind": note.resource.kind,
        "name": note.about.metadata.name,
        "uid": note.about.uid,
        **({"namespace": note.about.metadata.namespace} if note.about.metadata.namespace else {}),
    }
    call = ApiCall(
        verb="create",
        resource=EVENTS,
        namespace=namespace,
        body={
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": note.name, "namespace": namespace, "annotations": {"swingbus.io/flip": note.flip_id}},
            "eventTime": microtime(note.at),
            "reportingController": _REPORTER,
            "reportingInstance": instance[:128],
            "action": note.action,
            "reason": note.reason,
            "regarding": regarding,
            "note": shorten(note.text, _NOTE_CHARACTERS).encode()[:_NOTE_CHARACTERS].decode(errors="ignore"),
            "type": "Warning" if note.is_warning else "Normal",
        },
    )
    answer = await writer.send(call)
    if answer.code == 409:
        return False
    if not answer.is_ok:
        raise fault_of(answer, call)
    return True


def microtime(at: datetime) -> str:
    """Return a time as the API writes times with microseconds."""
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _without_none_in_lists(value: Any) -> Any:
    """Leave nulls of objects, which a merge patch takes as removals, but not those inside lists, which it would store."""
    if isinstance(value, dict):
        return {key: _without_none_in_lists(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [{k: v for k, v in item.items() if v is not None} if isinstance(item, dict) else item for item in value]
    return value
