"""What becomes of a flip whose pod comes no more, or refuses to leave: the next in line takes the place, or the flip goes back.

Decides nothing itself: `domain.cluster.succession` says who is next, `step` what that means. Invariant: a flip is changed only by a
step of its own, recorded before anything follows from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog

from swingbus_controller.app.flipping import FlipRunner
from swingbus_controller.app.recording import Recorder
from swingbus_controller.domain.cluster.blocking import Blockings
from swingbus_controller.domain.cluster.facts import ClusterPod, PodRef
from swingbus_controller.domain.cluster.state import ClusterState
from swingbus_controller.domain.cluster.succession import Brought, find_heir, what_became
from swingbus_controller.domain.flips.flip import Direction, Flip
from swingbus_controller.domain.flips.flip_events import PodReplaced
from swingbus_controller.domain.flips.flip_steps import InvalidTransition, step
from swingbus_controller.domain.planning.points import Mode
from swingbus_controller.domain.site_state import SiteState

log = structlog.get_logger()


class PodFollowing:
    """Follows the pods that one site's flips name."""

    def __init__(
        self,
        *,
        state: SiteState,
        cluster: ClusterState,
        recorder: Recorder,
        flips: FlipRunner,
        blockings: Blockings,
        resting_words: Callable[[ClusterPod], str],
    ) -> None:
        """Args:
        resting_words: why nobody of a pod's workload is let go just now, empty where nothing speaks against it.
        """
        self._state = state
        self._cluster = cluster
        self._recorder = recorder
        self._flips = flips
        self._blockings = blockings
        self._resting_words = resting_words
        self._brought = Brought()

    def follow(self, line: Mapping[str, Sequence[ClusterPod]], now_s: float) -> None:
        """Give the place of a pod that is gone to the next in line, or let its flip go.

        Args:
            line: by bank, pods that may come there, as they stood a round ago.
        """
        named: dict[PodRef, list[Flip]] = {}
        for flip in self._state.open_flips():
            if flip.pod is not None and flip.direction is Direction.FORWARD:
                named.setdefault(flip.pod, []).append(flip)
        for ref, flips in named.items():
            bank = flips[0].bank
            if flips[0].aim.mode is Mode.INFERENCE:
                self._follow_coming(ref, flips, line.get(bank, ()), now_s)
            elif (why := self._why_stays(ref, bank, now_s)) and not flips[0].is_safety:
                self._let_go(flips, why, now_s)
        self._brought.forget_others(named.keys())

    def _follow_coming(self, ref: PodRef, flips: list[Flip], line: Sequence[ClusterPod], now_s: float) -> None:
        bank = flips[0].bank
        pod = self._cluster.pod(ref)
        here = ("", self._state.models[bank].declared.node)
        if pod is not None and not pod.is_over and not pod.is_leaving and pod.node in here:
            self._brought.note(pod)
            return
        self._brought.note_lost(ref, now_s)
        if pod is not None and pod.is_over:
            self._blockings.note_rejected(bank, pod.ref, pod.failure or "it ended", now_s)
        if not self._blockings.is_resting(bank, now_s):
            if (heir := self._heir(ref, flips, line)) is not None:
                self._hand_over(ref, flips, heir, now_s)
                return
            # Before a miner was told to leave nothing is lost by going back; afterwards it would cost the next pod one more.
            if self._brought.may_be_followed(ref, now_s) and not any(flip.has_touched_nothing for flip in flips):
                return
        self._let_go(flips, f"pod {ref} {what_became(pod)}", now_s)

    def _heir(self, ref: PodRef, flips: Sequence[Flip], line: Sequence[ClusterPod]) -> ClusterPod | None:
        node = self._cluster.nodes.get(self._state.models[flips[0].bank].declared.node)
        if node is None:
            return None
        named = {flip.pod for flip in self._state.open_flips()}
        in_line = [pod for each in line if (pod := self._cluster.pod(each.ref)) is not None and pod.ref not in named]
        unbound = [p for p in self._cluster.unbound() if p.ref not in named and not self._resting_words(p)]
        return find_heir(self._brought.seen.get(ref), sum(flip.count for flip in flips), node, in_line, unbound)

    def _hand_over(self, ref: PodRef, flips: Sequence[Flip], heir: ClusterPod, now_s: float) -> None:
        gone = self._brought.seen.get(ref)
        # Whom nobody remembers, after a restart, may have come.
        had_come = gone is None or bool(gone.node)
        event = PodReplaced(event_id=f"{ref.uid}.replaced", at_s=now_s, pod=heir.ref, had_come=had_come)
        followed = [step(flip, event)[0] for flip in flips]
        self._recorder.record(*self._flips.swapped_entries(followed, self._state.holdings[flips[0].bank]))

    def _why_stays(self, ref: PodRef, bank: str, now_s: float) -> str:
        pool = self._cluster.pools.get(self._state.models[bank].declared.pool)
        return "" if pool is None else self._blockings.why_given_up(ref, pool, now_s)

    def _let_go(self, flips: Iterable[Flip], why: str, now_s: float) -> None:
        for flip in flips:
            try:
                self._flips.cancel(flip, author="controller", reason=why, now_s=now_s)
            except InvalidTransition as refusal:
                log.warning("flip_not_cancelled", flip=flip.id, message=str(refusal))
