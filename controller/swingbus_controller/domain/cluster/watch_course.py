"""The course of a list-watch: what to ask next, and how long to wait before, after everything that can happen to a request.

Decides when a list is needed and when the watch goes on from where it broke. Refuses to know time, chance and the wire: how long a watch
lived and the dice are arguments. Invariants: a revision that the server no longer keeps, or that it has not reached, always leads to a new
list, and so does a silence; nothing is asked twice in a row without a pause that grows, until a watch has lived for a while.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import assert_never


class Trouble(StrEnum):
    """Why a request came to nothing, or to its end."""

    CLOSED = "closed"  # in order, as every watch ends some time
    SILENT = "silent"  # nothing was heard for too long
    UNREACHABLE = "unreachable"
    THROTTLED = "throttled"
    REFUSED = "refused"
    GARBAGE = "garbage"
    EXPIRED = "expired"
    ROUTINE = "routine"  # no trouble: the last list is old
    REVISION_AHEAD = "revision_ahead"


# What another try at the same place may mend; anything else begins the list anew.
_PASSING = frozenset({Trouble.SILENT, Trouble.UNREACHABLE, Trouble.THROTTLED})
# After a silence a new watch proves nothing where nothing happens: its first word is a bookmark, a minute later. A list answers at once.
_NEEDS_LIST = frozenset({Trouble.EXPIRED, Trouble.REVISION_AHEAD, Trouble.SILENT})
# These may be the wire's fault or the revision's: the same is asked for again, but not for ever. A watch without one line is doubtful too:
# of a revision that lies ahead of it (it was restored from a backup) the real API server says nothing, for as long as one listens.
_DOUBTFUL = frozenset({Trouble.GARBAGE, Trouble.REFUSED})
_SAYS_NOTHING_OF_THE_REVISION = frozenset({Trouble.UNREACHABLE, Trouble.THROTTLED})
_DOUBTS_AT_MOST = 3
_PAUSE_FACTOR_AT_MOST = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class PageTaken:
    """A page of a list came in; without a `continue_token` it was the last."""

    continue_token: str
    revision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListFailed:
    """A page of a list did not come in."""

    trouble: Trouble


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEnded:
    """A watch is over.

    Args:
        revision: how far the copy is complete now.
        lived_s: how long it was open.
        has_heard: whether a line came.
        is_list_old: whether the last list is so old that a new one should confirm what the watches have told since.
    """

    trouble: Trouble
    revision: str
    lived_s: float
    has_heard: bool
    is_list_old: bool = False


CourseEvent = PageTaken | ListFailed | WatchEnded


@dataclass(frozen=True, slots=True, kw_only=True)
class ListPage:
    """Ask for a page; the first where the token is empty."""

    continue_token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Watch from a revision on."""

    revision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Where a list-watch stands.

    Args:
        revision: from where to watch; empty while listing.
        continue_token: the next page; empty for the first.
        failures_count: what went wrong in a row.
        doubts_count: answers in a row, at the same place, that may be the revision's fault.
        relist_reason: why it is listing; empty for the first list.
    """

    revision: str = ""
    continue_token: str = ""
    failures_count: int = 0
    doubts_count: int = 0
    relist_reason: str = ""

    @property
    def next_request(self) -> ListPage | Watch:
        """Return what to ask now."""
        return Watch(revision=self.revision) if self.revision else ListPage(continue_token=self.continue_token)


def step(course: Course, event: CourseEvent, *, healthy_after_s: float) -> Course:
    """Return the course after an event."""
    match event:
        case PageTaken(continue_token=token, revision=revision):
            # Failures stay counted: a list that comes in says nothing about the watch that made it necessary.
            return replace(course, continue_token=token, revision="" if token else revision, doubts_count=0)
        case ListFailed(trouble=trouble):
            failed = replace(course, failures_count=course.failures_count + 1)
            if trouble in _PASSING:
                return failed
            # What made the list necessary stays its reason; a first list that began anew has one only then.
            began_anew = trouble.value if course.continue_token else ""
            return replace(failed, continue_token="", relist_reason=course.relist_reason or began_anew)
        case WatchEnded():
            return _after_watch(course, event, healthy_after_s)
        case _:
            assert_never(event)


def _after_watch(course: Course, event: WatchEnded, healthy_after_s: float) -> Course:
    trouble, has_progressed = event.trouble, event.revision != course.revision
    if event.lived_s >= healthy_after_s:
        failures = 0 if trouble is Trouble.CLOSED else 1
    else:
        failures = 1 if has_progressed else course.failures_count + 1
    doubts = 0
    if trouble in _SAYS_NOTHING_OF_THE_REVISION:
        doubts = course.doubts_count
    elif trouble in _DOUBTFUL or not event.has_heard:
        doubts = 1 if has_progressed else course.doubts_count + 1
    if event.is_list_old and trouble is Trouble.CLOSED:
        return Course(failures_count=failures, relist_reason=Trouble.ROUTINE)
    if trouble in _NEEDS_LIST or doubts >= _DOUBTS_AT_MOST:
        return Course(failures_count=max(1, failures), relist_reason=trouble)
    return replace(course, revision=event.revision, failures_count=failures, doubts_count=doubts)


def pause_s(course: Course, *, base_s: float, longest_s: float, dice: float, asked_s: float = 0.0) -> float:
    """Return how long to wait before the next request.

    Args:
        dice: 0 to 1: many controllers that lost the same server do not come back at the same moment.
        asked_s: what the server asked for; it is kept at least.

    >>> [pause_s(Course(failures_count=n), base_s=1, longest_s=30, dice=1) for n in (0, 1, 2, 6)]
    [0.0, 1.0, 2.0, 30.0]
    >>> pause_s(Course(failures_count=1), base_s=1, longest_s=30, dice=0, asked_s=7)
    7.0
    """
    if course.failures_count == 0:
        return max(0.0, asked_s)
    grown_s = base_s * min(_PAUSE_FACTOR_AT_MOST, 2 ** (course.failures_count - 1))
    return float(max(asked_s, min(longest_s, grown_s) * (0.5 + 0.5 * dice)))
