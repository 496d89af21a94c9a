"""What is told of moves and flips on pods, nodes and pools: pure, from what was done and what came of it.

Decides which of them are worth an event, and its words. Invariant: the same move for the same flip makes the same story, so that it is told
once however often the call was sent.
"""

from __future__ import annotations

from dataclasses import replace

from swingbus_controller.app.cluster_sights import BankSight
from swingbus_controller.domain.cluster.facts import ClusterPod, PodRef, Pool
from swingbus_controller.domain.cluster.pod_moves import DeleteMiner, EvictPod, LiftGate, MakeMiner, PodMove
from swingbus_controller.domain.cluster.pool_words import Story
from swingbus_controller.domain.flips.flip import Flip, Phase
from swingbus_controller.domain.planning.points import Mode
from swingbus_controller.ports.cluster import CallAnswer, CallOutcome

# A miner that dies and is made again outside any flip is told once in this time, however often that happens.
_REMADE_TOLD_EVERY_S = 600.0
# What Kubernetes calls it when it, or somebody through it, takes a pod away.
_DISRUPTIONS = {
    "PreemptionByScheduler": "the scheduler gives its place to a pod of higher priority",
    "EvictionByEvictionAPI": "somebody else evicted it (a drain, an autoscaler, a descheduler)",
    "DeletionByTaintManager": "its node has a taint that it does not tolerate",
    "DeletionByPodGC": "its node is gone",
    "TerminationByKubelet": "the node's kubelet ends it (node pressure, or the node shuts down)",
}
_ENDS = {Phase.ACTIVE: "FlipDone", Phase.ROLLED_BACK: "FlipRolledBack", Phase.FAILED: "FlipFailed"}


def story_of_move(
    sight: BankSight, move: PodMove, outcome: CallOutcome, *, miner_flip: str = "", at_unix_s: float
) -> Story | None:
    """Return what is told of a call, None where nobody needs to hear of it.

    Args:
        miner_flip: the flip that a deleted miner leaves for.
    """
    node, pool = sight.node, sight.pool
    if node is None or pool is None:
        return None
    on_node = Story(
        kind="Node", about=node.name, uid=node.uid, flip="", reason="", action="", text="", at_unix_s=at_unix_s
    )
    match move, outcome.answer:
        case LiftGate(pod=ref, flip=flip), CallAnswer.TAKEN:
            cap = f", {pool.inference_cap_w:.0f} W per GPU" if pool.inference_cap_w is not None else ""
            return _of_pod(
                ref,
                flip,
                reason="GateLifted",
                action="LiftGate",
                text=f"let go to node {node.name}{_for(flip, ', into a place that stood empty')}: its watts are held{cap}",
                at_unix_s=at_unix_s,
            )
        case EvictPod(pod=ref, flip=flip), CallAnswer.TAKEN if outcome.is_overruled:
            budget = f"disruption budget {ref.namespace}/{outcome.budget}" if outcome.budget else "a disruption budget"
            return _of_pod(
                ref,
                flip,
                reason="DeletedOverBudget",
                action="Delete",
                text=f"deleted from node {node.name}: {budget} kept it, and pool {pool.name} says onBlocked: {pool.on_blocked}",
                at_unix_s=at_unix_s,
                is_warning=True,
            )
        case EvictPod(pod=ref, flip=flip), CallAnswer.TAKEN:
            why = (
                f"flip {flip} gives its GPUs to others"
                if flip
                else "hands are inside its bank, or it found no place in time"
            )
            return _of_pod(
                ref,
                flip,
                reason="Evicted",
                action="Evict",
                text=f"asked to leave node {node.name}: {why}",
                at_unix_s=at_unix_s,
            )
        case EvictPod(pod=ref, flip=flip), CallAnswer.BLOCKED:
            budget = f"disruption budget {ref.namespace}/{outcome.budget}" if outcome.budget else "a disruption budget"
            return _of_pod(
                ref,
                flip,
                reason="EvictionBlocked",
                action="Evict",
                text=f"{budget} keeps it on node {node.name}: {outcome.detail}. Pool {pool.name} says onBlocked: {pool.on_blocked}",
                at_unix_s=at_unix_s,
                is_warning=True,
            )
        case DeleteMiner(pod=ref), CallAnswer.TAKEN:
            return replace(
                on_node,
                flip=miner_flip,
                reason="MinerStopped",
                action="DeleteMiner",
                text=f"miner {ref} was told to leave{_for(miner_flip, ': it had ended, or mining shall hold fewer GPUs here')}",
                once_for=ref.uid,
            )
        case MakeMiner(slot=slot, flip=flip), CallAnswer.TAKEN:
            return replace(
                on_node,
                flip=flip,
                reason="MinerStarted",
                action="MakeMiner",
                text=f"miner of slot {slot} was made{_for(flip, ': its place stood empty')}",
                once_for=flip or f"slot {slot} {at_unix_s // _REMADE_TOLD_EVERY_S:.0f}",
            )
        case _:
            return None


def story_of_disruption(pod: ClusterPod, pool: Pool, *, at_unix_s: float) -> Story | None:
    """Return what is told of a pod of ours that somebody else takes away while it serves, None where nobody does. Once for each pod."""
    if not pod.disruption or not pod.node:
        return None
    why = _DISRUPTIONS.get(pod.disruption, "somebody else takes it away")
    returns = "; if its owner makes it again, it waits behind the gate" if pod.owner_uid else "; nobody makes it again"
    story = _of_pod(
        pod.ref,
        "",
        reason="Disrupted",
        action="Watch",
        text=f"leaves node {pod.node}, and not for Swingbus: {why} ({pod.disruption}). Pool {pool.name} keeps its GPUs counted "
        f"until they are seen free{returns}",
        at_unix_s=at_unix_s,
        is_warning=True,
    )
    return replace(story, once_for=pod.ref.uid)


def _of_pod(
    pod: PodRef, flip: str, *, reason: str, action: str, text: str, at_unix_s: float, is_warning: bool = False
) -> Story:
    return Story(
        kind="Pod",
        about=pod,
        uid=pod.uid,
        flip=flip,
        reason=reason,
        action=action,
        text=text,
        at_unix_s=at_unix_s,
        is_warning=is_warning,
    )


def _for(flip: str, without: str) -> str:
    return f" for flip {flip}" if flip else without


def ended_unix_s(flip: Flip) -> float:
    """Return when a flip that is over ended."""
    return flip.axis.unix_s(flip.since_s)


def story_of_flip(flip: Flip, pool: Pool) -> Story | None:
    """Return what is told of a flip that is over, None where it changed no tenant."""
    reason = _ENDS.get(flip.phase)
    if reason is None or not flip.is_mode_flip:
        return None
    who = (
        ""
        if flip.pod is None
        else f" for pod {flip.pod}"
        if flip.aim.mode is Mode.INFERENCE
        else f" from pod {flip.pod}"
    )
    how = f": {flip.undo_cause}" if flip.undo_cause else ""
    ended = {
        Phase.ACTIVE: "done",
        Phase.ROLLED_BACK: f"rolled back{how}",
        Phase.FAILED: f"failed{how}. Its GPUs stay counted in full; swingctl flip show {flip.id}",
    }[flip.phase]
    return Story(
        kind="CapacityPool",
        about=pool.name,
        uid=pool.uid,
        flip=flip.id,
        reason=reason,
        action="Flip",
        text=f"{flip.count} GPU of {flip.bank}, {path_of(flip)}{who}: {ended}",
        at_unix_s=ended_unix_s(flip),
        is_warning=flip.phase is Phase.FAILED,
    )


def path_of(flip: Flip) -> str:
    """Return from which mode to which a flip goes, for people and as a metric's label."""
    return f"{flip.origin.mode.value} to {flip.aim.mode.value}"
