"""The mover: carries out the calls that are due, each once at a time, and remembers only when to ask again.

Decides nothing about pods: the desk says what is due, and says it again until it is seen to be done. Invariants: a call is sent only while
this controller may write; one that was taken is not sent again before the copy of the cluster had time to show it; what the server asked
for is waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import structlog

from swingbus.clock import Clock
from swingbus.faults import Forbidden, SwingbusError, WrongState
from swingbus_controller.app.cluster_desk import ClusterDesk, NodeMoves
from swingbus_controller.app.cluster_sights import BankSight
from swingbus_controller.domain.cluster.facts import OnBlocked, PodRef
from swingbus_controller.domain.cluster.pod_moves import DeleteMiner, EvictPod, LiftGate, MakeMiner, PodMove
from swingbus_controller.ports.cluster import CallAnswer, CallOutcome, Cluster

log = structlog.get_logger()
# More would wait for their handshakes longer than for a place.
CALLS_AT_ONCE = 16
_SEEN_AFTER_S = 2.0
_PAUSE_BASE_S, _PAUSE_LONGEST_S = 1.0, 30.0
# Budgets change with every pod that becomes ready: a no is not for long.
_BLOCKED_PAUSE_S = 5.0
Told = Callable[[BankSight, PodMove, CallOutcome], Awaitable[None]]


@dataclass(slots=True)
class _Pause:
    until_s: float
    failures_count: int = 0


class PodMover:
    """Moves the pods of one site. Start `run` in a task group."""

    def __init__(self, *, desk: ClusterDesk, cluster: Cluster, clock: Clock, told: Told | None = None) -> None:
        """Args:
        told: hears what became of each call.
        """
        self._desk = desk
        self._cluster = cluster
        self._clock = clock
        self._told = told
        self._pauses: dict[PodMove | tuple[str, int], _Pause] = {}
        self._on_the_way: set[PodMove | tuple[str, int]] = set()
        self._places = asyncio.Semaphore(CALLS_AT_ONCE)
        self.calls_count = 0

    async def run(self, wait_round: Callable[[], Awaitable[None]]) -> None:
        """Carry out what is due after every round, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await wait_round()
                if self._cluster.may_write_s() > 0:
                    self.start_due(tasks)

    def start_due(self, tasks: asyncio.TaskGroup) -> None:
        """Start the calls that are due now and not on their way."""
        now_s = self._clock.boottime_s()
        self._pauses = {key: pause for key, pause in self._pauses.items() if now_s < pause.until_s + _PAUSE_LONGEST_S}
        for node in self._desk.due_moves(self._clock.now().timestamp()):
            for move in node.moves:
                key = _key(node, move)
                pause = self._pauses.get(key)
                if key in self._on_the_way or (pause is not None and now_s < pause.until_s):
                    continue
                self._on_the_way.add(key)
                tasks.create_task(self._carry_out(node, move, key))

    async def _carry_out(self, node: NodeMoves, move: PodMove, key: PodMove | tuple[str, int]) -> None:
        try:
            async with self._places:
                outcome = await self._call(node.sight, move)
        except WrongState:
            return  # the permit is gone: whoever holds it decides anew
        except SwingbusError as fault:
            self._pause_after(key, float(fault.metadata.get("retry_after_s", "0")))
            log.warning("pod_call_failed", call=type(move).__name__, subject=_subject(node, move), message=str(fault))
            return
        finally:
            self._on_the_way.discard(key)
        self._take(node.sight, move, outcome, key)
        log.info(
            "pod_call_made",
            call=type(move).__name__,
            subject=_subject(node, move),
            answer=outcome.answer.value,
            detail=outcome.detail,
        )
        if self._told is not None:
            await self._told(node.sight, move, outcome)

    async def _call(self, sight: BankSight, move: PodMove) -> CallOutcome:
        self.calls_count += 1
        calls, pool, node = self._cluster.calls, sight.pool, sight.node
        assert pool is not None
        assert node is not None
        match move:
            case DeleteMiner(pod=pod):
                return await calls.delete_pod(pod, grace_s=pool.miner_grace_s)
            case EvictPod(pod=pod):
                return await self._ask_to_leave(sight, pod)
            case LiftGate(pod=pod, flip=flip):
                found = self._cluster.state.pod(pod)
                if found is None:
                    return CallOutcome(answer=CallAnswer.GONE)
                return await calls.lift_gate(found, node, pool, flip=flip)
            case MakeMiner(slot=slot, flip=flip):
                unit_size = sight.model.device_class.unit_size
                return await calls.make_miner(pool, node, slot=slot, gpu_count=unit_size, flip=flip)

    async def _ask_to_leave(self, sight: BankSight, ref: PodRef) -> CallOutcome:
        pool, calls = sight.pool, self._cluster.calls
        assert pool is not None
        now_s = self._clock.boottime_s()
        if pool.on_blocked is OnBlocked.DELETE and self._desk.blockings.is_past_deadline(ref, pool, now_s):
            return await self._overrule(ref)
        pod = self._cluster.state.pod(ref)
        # Who was let go and has no node may be bound this very moment: then it is not evicted for being late.
        only_revision = pod.revision if pod is not None and pod.is_under_way else ""
        return await calls.evict_pod(ref, only_revision=only_revision)

    async def _overrule(self, ref: PodRef) -> CallOutcome:
        """Delete a pod that its budget keeps; it has the time to end that it asked for."""
        kept_by = self._desk.blockings.blocked[ref].budget
        try:
            outcome = await self._cluster.calls.delete_pod(ref, grace_s=None)
        except Forbidden as refusal:
            if refusal.reason == "VERB_FORBIDDEN":  # not where the token is worth nothing: that is told elsewhere
                self._desk.blockings.note_not_deleted(ref, str(refusal), self._clock.boottime_s())
            raise
        return replace(outcome, budget=kept_by, is_overruled=outcome.answer is CallAnswer.TAKEN)

    def _take(self, sight: BankSight, move: PodMove, outcome: CallOutcome, key: PodMove | tuple[str, int]) -> None:
        now_s = self._clock.boottime_s()
        match outcome.answer:
            case CallAnswer.TAKEN | CallAnswer.GONE | CallAnswer.STALE:
                self._pauses[key] = _Pause(now_s + _SEEN_AFTER_S)
            case CallAnswer.BLOCKED if isinstance(move, EvictPod):
                self._desk.blockings.note_blocked(
                    move.pod,
                    budget=outcome.budget,
                    detail=outcome.detail,
                    now_s=now_s,
                    is_for_ever=outcome.is_for_ever,
                )
                self._pauses[key] = _Pause(now_s + max(_BLOCKED_PAUSE_S, outcome.retry_after_s or 0.0))
            case _:
                self._pause_after(key, outcome.retry_after_s or 0.0)

    def _pause_after(self, key: PodMove | tuple[str, int], asked_s: float) -> None:
        before = self._pauses.get(key)
        failures_count = 1 if before is None else before.failures_count + 1
        pause_s = max(asked_s, min(_PAUSE_LONGEST_S, _PAUSE_BASE_S * 2.0 ** (failures_count - 1)))
        self._pauses[key] = _Pause(self._clock.boottime_s() + pause_s, failures_count)


def _key(node: NodeMoves, move: PodMove) -> PodMove | tuple[str, int]:
    """Return what must not be asked twice at once: a miner's slot is one thing, whichever flip wants it filled."""
    return (node.sight.model.name, move.slot) if isinstance(move, MakeMiner) else move


def _subject(node: NodeMoves, move: PodMove) -> str:
    return f"{node.sight.model.declared.node} slot {move.slot}" if isinstance(move, MakeMiner) else str(move.pod)
