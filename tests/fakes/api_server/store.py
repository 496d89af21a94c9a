"""What the fake API server keeps: objects, one revision counter, a log to watch, and what compaction took.

Invariants: a revision is given once; an update that changes nothing gives none; what was compacted answers 410.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
Place = tuple[str, str, str]  # plural, namespace, name
NOW = "2026-01-01T00:00:00Z"


class Refusal(Exception):
    """A Status to answer."""

    def __init__(
        self, code: int, reason: str, message: str, *, details: Json | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s
        self.body: Json = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "code": code,
            "reason": reason,
            "message": message,
            "details": details or {},
        }


@dataclass(frozen=True, slots=True)
class Entry:
    """One change: `before` is what the object was, None for a new one."""

    revision: int
    type: str
    place: Place
    object: Json
    before: Json | None


def expired() -> Refusal:
    """Return the answer to a revision that is no longer kept."""
    return Refusal(410, "Expired", "The provided continue parameter or resource version is too old.")


@dataclass
class Store:
    """The objects. `listeners` are told of every change, after it."""

    revision: int = 100
    compacted: int = 0
    objects: dict[Place, Json] = field(default_factory=dict)
    log: list[Entry] = field(default_factory=list)
    snapshots: dict[tuple[str, str, int], list[Json]] = field(default_factory=dict)
    listeners: list[Callable[[], None]] = field(default_factory=list)
    _uids: int = 0

    def get(self, place: Place) -> Json:
        """Return a copy of an object, or refuse with 404."""
        if place not in self.objects:
            raise Refusal(404, "NotFound", f'{place[0]} "{place[2]}" not found')
        return copy.deepcopy(self.objects[place])

    def create(self, place: Place, body: Json) -> Json:
        """Keep a new object."""
        if place in self.objects:
            raise Refusal(409, "AlreadyExists", f'{place[0]} "{place[2]}" already exists')
        made = copy.deepcopy(body)
        self._uids += 1
        made["metadata"] |= {"uid": f"uid-{self._uids}", "creationTimestamp": NOW, "generation": 1}
        if place[1]:
            made["metadata"]["namespace"] = place[1]
        return self._keep("ADDED", place, made, None)

    def update(self, place: Place, changed: Json) -> Json:
        """Keep a changed object; conflicts of uid and revision are refused, generation follows the spec."""
        current = self.get(place)
        self.check_preconditions(place, changed["metadata"].get("uid"), changed["metadata"].get("resourceVersion"))
        changed = copy.deepcopy(changed)
        for fixed in ("uid", "creationTimestamp", "name", "namespace", "deletionTimestamp", "resourceVersion"):
            if fixed in current["metadata"]:
                changed["metadata"][fixed] = current["metadata"][fixed]
        generation = current["metadata"]["generation"]
        changed["metadata"]["generation"] = generation + (changed.get("spec") != current.get("spec"))
        return current if changed == current else self._keep("MODIFIED", place, changed, current)

    def check_preconditions(self, place: Place, uid: str | None, revision: str | None) -> None:
        """Refuse a call that was meant for another object or an older state."""
        meta = self.get(place)["metadata"]
        for name, wanted, found in (("UID", uid, meta["uid"]), ("ResourceVersion", revision, meta["resourceVersion"])):
            if wanted and wanted != found:
                raise Refusal(
                    409, "Conflict", f"Precondition failed: {name} in precondition: {wanted}, in object meta: {found}"
                )

    def mark_deleting(self, place: Place, grace_s: int) -> Json:
        """Begin a graceful deletion."""
        current = self.get(place)
        if "deletionTimestamp" in current["metadata"]:
            return current
        changed = copy.deepcopy(current)
        changed["metadata"] |= {"deletionTimestamp": NOW, "deletionGracePeriodSeconds": grace_s}
        return self._keep("MODIFIED", place, changed, current)

    def remove(self, place: Place) -> Json:
        """Take an object away; its last event carries the revision of the deletion."""
        last = self.get(place)
        self.revision += 1
        gone = copy.deepcopy(last)
        gone["metadata"]["resourceVersion"] = str(self.revision)
        del self.objects[place]
        self._record("DELETED", place, gone, last)
        return gone

    def select(self, plural: str, namespace: str) -> list[Json]:
        """Return a kind's objects in the order of their names."""
        places = sorted(place for place in self.objects if place[0] == plural and namespace in ("", place[1]))
        return [copy.deepcopy(self.objects[place]) for place in places]

    def compact(self) -> None:
        """Forget all history before now: watches and pages of older revisions get 410."""
        self.compacted = self.revision
        self.log.clear()
        self.snapshots = {place: kept for place, kept in self.snapshots.items() if place[2] == self.revision}

    def _keep(self, kind: str, place: Place, kept: Json, before: Json | None) -> Json:
        self.revision += 1
        kept["metadata"]["resourceVersion"] = str(self.revision)
        self.objects[place] = kept
        self._record(kind, place, copy.deepcopy(kept), before)
        return copy.deepcopy(kept)

    def _record(self, kind: str, place: Place, seen: Json, before: Json | None) -> None:
        self.log.append(Entry(self.revision, kind, place, seen, before))
        for listener in list(self.listeners):
            listener()
