"""After the story: flips that are open then get as long as their deadlines allow, so that only one that is stuck is left open.

When a story ends is chance to a flip: it may have just begun, or begun anew because the controller was killed. But every phase has a
deadline, and a flip that can't be finished goes back the way it came: what lives comes to an end, what is open for longer is stuck.
Times are seconds of the scenario. Does nothing to a flip.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import grpc

from swingbus.capacity.v1alpha import capacity_pb2
from swingbus_sim.demo.watcher import bank_words

LATE_S = 10.0  # a few rounds, on a busy machine too: a controller sees once in a round whose deadline has passed
_LOOK_S = 1.0


async def wait_for_flips(
    flips: Callable[[], Awaitable[Sequence[capacity_pb2.Flip]]],
    *,
    longest_s: float,
    unix_at_zero: float,
    now: Callable[[], float],
    note: Callable[[str], None],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> float:
    """Wait until no flip is open or all that are open are stuck; return how long that took.

    Args:
        flips: asks the controller for all of them. Where it does not answer it is waited for, too.
        longest_s: how long a flip can be open if none of its phases outlives its deadline: the wait ends then at the latest.
        unix_at_zero: the scenario's second 0, for the controller's deadlines.
        note: takes what is waited for, whenever that changes.
    """
    began_s = now()
    told = ""
    while True:
        try:
            left = {_words(f, unix_at_zero): _deadline_s(f, unix_at_zero) for f in await flips() if _is_open(f)}
            words, latest_s = ", ".join(left), max(left.values(), default=0.0)
        except grpc.aio.AioRpcError:
            words, latest_s = "the controller, which does not answer", now()
        waited_s = now() - began_s
        if not words:
            return waited_s
        if waited_s >= longest_s or now() > latest_s + LATE_S:
            note(f"stuck, after {waited_s:.0f} s more: {words}")
            return waited_s
        if words != told:
            note(f"the story is over; waiting for {words}")
            told = words
        await sleep(_LOOK_S)


def _is_open(flip: capacity_pb2.Flip) -> bool:
    return not flip.HasField("end_time")


def _deadline_s(flip: capacity_pb2.Flip, unix_at_zero: float) -> float:
    return flip.deadline_time.ToMilliseconds() / 1000.0 - unix_at_zero


def _words(flip: capacity_pb2.Flip, unix_at_zero: float) -> str:
    phase = capacity_pb2.FlipPhase.Name(flip.phase).removeprefix("FLIP_PHASE_").lower()
    what = f"{flip.device_count} of {bank_words(flip.bank)} from {flip.from_point} to {flip.to_point}"
    return f"{what} ({phase}, until second {_deadline_s(flip, unix_at_zero):.0f})"
