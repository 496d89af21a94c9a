"""A kubelet of one KWOK node: which GPUs a bound pod gets, and when its process really begins and ends.

Decides allocation and the lives of processes. Knows no watts and sends nothing: what the API must be told is returned. The API's word on a
pod starts or ends a process only after a while, and a fault may keep the two apart. Invariants: a GPU is allocated to one pod at a time;
a pod that finds too few free GPUs is refused, as a kubelet does (`UnexpectedAdmissionError`); an allocation is given back when
the container has ended and the API has let go of the pod, whatever the process does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

from swingbus_sim.kwok_site.physics import Server
from swingbus_sim.kwok_site.timeline import Timeline

_TERMINAL = ("Failed", "Succeeded")


def _tell_nobody(_what: str, _view: PodView, _at_s: float) -> None:
    """Stand where nobody wants to know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodView:
    """What a kubelet needs to know of a pod that is bound to its node."""

    uid: str
    namespace: str
    name: str
    node: str
    tenant: str
    gpu_count: int
    phase: str
    is_deleting: bool

    @property
    def key(self) -> str:
        """Return namespace/name, as the kubelet tells it."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeletTimes:
    """How long things take (seconds, least and most)."""

    start_s: tuple[float, float] = (0.3, 0.9)  # bound to process: sandbox, container, the program's own start
    stop_s: tuple[float, float] = (0.4, 1.4)  # told to end to ended: within the 2 s that KWOK gives
    boot_s: float = 20.0


@dataclass(slots=True, kw_only=True)
class PodFaults:
    """What goes wrong with pods of a node from now on."""

    outlive_s: float = 0.0  # a process lives on for so long after its container was declared ended
    never_stops: bool = False  # a container does not end when told to
    rejects: str = ""  # why no pod that comes from now on is taken, as with a device plugin that is gone


@dataclass(slots=True, kw_only=True)
class _Held:
    """A pod that this kubelet runs."""

    view: PodView
    gpus: tuple[int, ...]
    is_stopping: bool = False
    has_ended: bool = False  # the container, as far as the kubelet knows
    is_gone: bool = False  # from the API
    run: int = 0  # which start of its process counts: an earlier one was cut off


@dataclass(slots=True, kw_only=True)
class Kubelet:
    """One node's kubelet and container runtime."""

    server: Server
    timeline: Timeline
    random: Random
    times: KubeletTimes = field(default_factory=KubeletTimes)
    faults: PodFaults = field(default_factory=PodFaults)
    note: Callable[[str, PodView, float], None] = _tell_nobody  # told of each process that starts or ends
    _pods: dict[str, _Held] = field(default_factory=dict)
    _refused: dict[str, str] = field(default_factory=dict)  # why, by uid
    _down_until_s: float = -math.inf

    def see(self, view: PodView, now_s: float) -> str:
        """Take in a pod of this node as the API has it now; return why it is refused, empty where it is not."""
        held = self._pods.get(view.uid)
        if held is None:
            if view.phase in _TERMINAL or view.is_deleting or not view.gpu_count:
                return ""
            if view.uid in self._refused:
                # KWOK calls every pod running, and may do so after we said that this one is not.
                return self._refused[view.uid] if view.phase == "Running" else ""
            return self._admit(view, now_s)
        held.view = view
        if view.phase in _TERMINAL and not held.has_ended:
            self._end(held, now_s)  # its container died by itself
        elif view.is_deleting:
            self._stop(held, now_s)
        return ""

    def gone(self, uid: str, now_s: float) -> None:
        """Take in that the API has let go of a pod; one whose container still runs is ended now, as after a force-delete."""
        self._refused.pop(uid, None)
        held = self._pods.get(uid)
        if held is not None:
            held.is_gone = True
            self._stop(held, now_s)
            self._let_go(held)

    def resync(self, views: Iterable[PodView], now_s: float) -> list[tuple[PodView, str]]:
        """Take in a whole list after a gap in the watch; return the pods that are refused, with why."""
        listed = {view.uid: view for view in views}
        for uid in [uid for uid in self._pods if uid not in listed]:
            self.gone(uid, now_s)
        return [(view, why) for view in listed.values() if (why := self.see(view, now_s))]

    def set_faults(self, faults: PodFaults, now_s: float) -> None:
        """Let things go wrong from now on, or right again: what was told to end and did not is told again."""
        self.faults = faults
        for held in list(self._pods.values()):
            if held.view.is_deleting or held.is_gone:
                self._stop(held, now_s)

    def holders(self) -> list[PodView | None]:
        """Return the holder of each GPU, as PodResources says it."""
        result: list[PodView | None] = [None] * len(self.server.gpus)
        for held in self._pods.values():
            for index in held.gpus:
                result[index] = held.view
        return result

    @property
    def is_up(self) -> bool:
        """Whether the node is not booting; asked at the timeline's own pace."""
        return math.isinf(self._down_until_s)

    def reboot(self, now_s: float) -> None:
        """Lose everything that runs; after the boot every pod still bound here starts again, with nobody asked."""
        self.server.reboot(now_s)
        self._down_until_s = now_s + self.times.boot_s
        for held in self._pods.values():
            held.run += 1

        def come_up(at_s: float) -> None:
            self._down_until_s = -math.inf
            for held in list(self._pods.values()):
                if held.is_gone or held.is_stopping:
                    held.has_ended = True
                    self._let_go(held)
                else:
                    self._start(held, at_s)

        self.timeline.at(self._down_until_s, come_up)

    def _admit(self, view: PodView, now_s: float) -> str:
        if self.faults.rejects:
            return self._refuse(view, self.faults.rejects)
        taken = {index for held in self._pods.values() for index in held.gpus}
        free = [index for index in range(len(self.server.gpus)) if index not in taken]
        if len(free) < view.gpu_count:
            return self._refuse(view, f"{view.gpu_count} GPUs asked for, {len(free)} free")
        held = self._pods[view.uid] = _Held(view=view, gpus=tuple(self.random.sample(free, view.gpu_count)))
        if self.is_up:
            self._start(held, now_s)
        return ""

    def _refuse(self, view: PodView, why: str) -> str:
        self._refused[view.uid] = why
        return why

    def _start(self, held: _Held, now_s: float) -> None:
        held.run += 1
        run = held.run

        def begin(at_s: float) -> None:
            if held.run == run and not held.is_stopping and not held.has_ended:
                self.server.start(held.view.uid, held.view.tenant, held.gpus, at_s)
                self.note("started", held.view, at_s)

        self.timeline.at(now_s + self.random.uniform(*self.times.start_s), begin)

    def _stop(self, held: _Held, now_s: float) -> None:
        if held.is_stopping or self.faults.never_stops:
            return
        held.is_stopping = True
        self.timeline.at(now_s + self.random.uniform(*self.times.stop_s), lambda at_s: self._end(held, at_s))

    def _end(self, held: _Held, now_s: float) -> None:
        held.has_ended = True
        self._let_go(held)
        if self.faults.outlive_s > 0.0:
            self.timeline.at(now_s + self.faults.outlive_s, lambda at_s: self._process_ends(held.view, at_s))
        else:
            self._process_ends(held.view, now_s)

    def _process_ends(self, view: PodView, now_s: float) -> None:
        if self.server.end(view.uid, now_s):
            self.note("ended", view, now_s)

    def _let_go(self, held: _Held) -> None:
        # A pod that failed has given its GPUs back although the API still shows it.
        if held.has_ended and (held.is_gone or held.view.phase in _TERMINAL):
            self._pods.pop(held.view.uid, None)
