"""A copy of a remote collection, kept right by lists and changes that may come twice, late or not at all.

Decides what a list or a change says about each object. Refuses to know what the objects are, and who serves them. Invariants: after
`replace` the copy is the list; every object that was ever in the copy and no longer is was told as `Gone`, exactly once per life (a life is
a uid: a pod that was made anew under the same name is another pod); what is not newer than the copy changes nothing.

Revisions are compared as whole numbers, as the Kubernetes API defines them; where they are none, only equal ones count as repeated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

Key = tuple[str, str]


class Identified(Protocol):
    """What an object must say of itself."""

    @property
    def key(self) -> Key: ...
    @property
    def uid(self) -> str: ...
    @property
    def revision(self) -> str: ...


T = TypeVar("T", bound=Identified)


@dataclass(frozen=True, slots=True)
class Seen(Generic[T]):
    """An object is new, or is now like this."""

    obj: T


@dataclass(frozen=True, slots=True)
class Gone(Generic[T]):
    """An object is no more.

    Args:
        obj: the newest state that we saw of it.
        is_last_state: whether that was its last. Where not (it vanished while nobody watched) it may have been more than it shows:
            a pod without a node may have been bound before it went.
    """

    obj: T
    is_last_state: bool


Change = Seen[T] | Gone[T]


class EventKind(StrEnum):
    """What a watch says of an object."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"


def is_newer(revision: str, than: str) -> bool:
    """Return whether a revision comes after another; where that can't be said, whether they differ.

    >>> is_newer("10", "9"), is_newer("9", "10"), is_newer("9", "9"), is_newer("b", "a")
    (True, False, False, True)
    """
    if all(text.isascii() and text.isdecimal() for text in (revision, than)):
        mine, other = revision.lstrip("0"), than.lstrip("0")
        return (len(mine), mine) > (len(other), other)
    return revision != than


class Mirror(Generic[T]):
    """The copy. `revision` is how far it is known to be complete, empty before the first list."""

    def __init__(self) -> None:
        self.objects: dict[Key, T] = {}
        self.revision = ""
        self.repeated_count = 0

    def replace(self, listed: Iterable[T], revision: str) -> list[Change[T]]:
        """Take a whole list as the truth, even where it is older than the copy: the server may have been restored from a backup."""
        now = {obj.key: obj for obj in listed}
        gone: list[Change[T]] = []
        seen: list[Change[T]] = []
        for key, old in self.objects.items():
            new = now.get(key)
            if new is None or new.uid != old.uid:
                gone.append(Gone(old, is_last_state=False))
        for key, new in now.items():
            before = self.objects.get(key)
            if before is None or before.uid != new.uid or before.revision != new.revision:
                seen.append(Seen(new))
        self.objects, self.revision = now, revision
        return gone + seen

    def apply(self, kind: EventKind, obj: T) -> list[Change[T]]:
        """Take one change."""
        if not is_newer(obj.revision, self.revision):
            self.repeated_count += 1
            return []
        self.revision = obj.revision
        old = self.objects.get(obj.key)
        if kind is EventKind.DELETED:
            if old is None:
                return []
            del self.objects[obj.key]
            # Of another life than we know: ours ended unseen before it.
            return [Gone(obj, is_last_state=True) if old.uid == obj.uid else Gone(old, is_last_state=False)]
        self.objects[obj.key] = obj
        if old is not None and old.uid != obj.uid:
            return [Gone(old, is_last_state=False), Seen(obj)]
        return [Seen(obj)]

    def advance(self, revision: str) -> None:
        """Take a bookmark: everything up to this revision has been told."""
        if is_newer(revision, self.revision):
            self.revision = revision


class PendingChanges(Generic[T]):
    """Changes that nobody took yet, one per life: the newest state wins, an end is never dropped, nor overtaken by its successor.

    Its size is bounded by the objects that there are, plus ends. `is_full` asks whoever adds to wait until ends were taken.
    """

    def __init__(self, ends_at_most: int) -> None:
        self._ends_at_most = ends_at_most
        self._by_uid: dict[str, Change[T]] = {}
        self._ends_count = 0

    def __len__(self) -> int:
        return len(self._by_uid)

    @property
    def is_full(self) -> bool:
        return self._ends_count >= self._ends_at_most

    def put(self, change: Change[T]) -> None:
        """Add a change. It keeps the place in line of what it makes obsolete, but for an object that came back: that is news."""
        uid = change.obj.uid
        before = self._by_uid.get(uid)
        if isinstance(before, Gone):
            self._ends_count -= 1
            del self._by_uid[uid]
        self._by_uid[uid] = change
        self._ends_count += isinstance(change, Gone)

    def take(self) -> Change[T]:
        """Return the change that waits longest. Raises KeyError where there is none."""
        uid = next(iter(self._by_uid), None)
        if uid is None:
            raise KeyError("no change is pending")
        change = self._by_uid.pop(uid)
        self._ends_count -= isinstance(change, Gone)
        return change
