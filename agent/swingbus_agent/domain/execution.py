"""Bring the devices of one bank to their targets and know, by reading back, which of them are there.

Decides: what to write next to which device, when to write again, who does not obey, who woke up by itself. Refuses to know:
how many watts are allowed (the governor) and how a write is made (the drivers). Invariants: a device is held only by a reading
that began after its last write ended; lowering is never delayed by anything but a write in flight; a workload starts only when
its unit's GPUs are free by a reading and their limits are read back; a rise is only proposed here, the governor decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from swingbus_agent.domain.asking import asked_of, is_close
from swingbus_agent.domain.counting import device_counted_w
from swingbus_agent.domain.device_track import DeviceTrack
from swingbus_agent.domain.orders import (
    BankCounting,
    HoldingReport,
    Mode,
    PointOrder,
    StragglerReport,
    UnitWorkload,
)
from swingbus_agent.domain.readings import BankSpec, Condition, Kind
from swingbus_agent.domain.selection import Target
from swingbus_agent.domain.unit_emptiness import report_holding, why_not_empty
from swingbus_agent.domain.views import DeviceView, ExecutionTimes, Notice, UnitView, Verb, Write
from swingbus_agent.domain.waking import Wakers
from swingbus_agent.domain.workload import WorkloadPhase

_SPREADS_COUNT = 16  # the pause has long been the longest one

_RUNS = (WorkloadPhase.STARTING, WorkloadPhase.READY, WorkloadPhase.UNREADY)


class BankExecution:
    """The devices of one bank on their way to their targets; pure, single-threaded."""

    def __init__(self, spec: BankSpec, times: ExecutionTimes) -> None:
        self.spec = spec
        self._times = times
        self._tracks = {device.device: DeviceTrack() for device in spec.devices}
        self._units: dict[int, list[str]] = {}
        for device in spec.devices:
            self._units.setdefault(device.unit, []).append(device.device)
        self._views: dict[str, DeviceView] = {}
        self._unit_views: dict[int, UnitView] = {}
        self._unit_busy: set[int] = set()
        # Asked since they were last seen: asking again before a look tells nothing new.
        self._unit_asked: set[int] = set()
        self._unit_failed_s: dict[int, float] = {}
        self._wakers = Wakers()
        self._efficiencies: dict[str, float] = {}

    # What the bank shall do.

    def aim(self, targets: Mapping[str, Target]) -> None:
        """Take new targets by device; a device without one is left alone."""
        for device, track in self._tracks.items():
            target = targets.get(device)
            if track.target is not None and target is not None and _is_same_aim(track.target, target):
                track.target = target
                continue
            if track.target != target:
                self._turn(track, target)
                track.was_held = False
                track.woke = False
                track.set_refused = False
        for unit in list(self._unit_failed_s):
            # A new order is a new try.
            if self._unit_target(unit) is None:
                del self._unit_failed_s[unit]

    def _turn(self, track: DeviceTrack, target: Target | None) -> None:
        """Leave one target for another: what was ignored is remembered, what was only brief is not held against it."""
        kind = self.spec.kind
        if track.target is not None:
            track.asks.note_ignored(asked_of(kind, track.target), track.asked_count - 1)
        track.target = target
        track.attempts = 0
        track.has_stepped = False
        track.ignored_before = 0 if target is None else track.asks.ignored_count(asked_of(kind, target))
        if target is not None:
            track.is_ignoring = track.ignored_before >= self._times.attempts
        if not track.is_ignoring:  # a known liar is asked no more often for an order's sake
            track.next_try_s = -math.inf

    def retry_failed(self) -> None:
        """Let failed workloads start again: a newer order asks for them."""
        self._unit_failed_s.clear()

    def target(self, device: str) -> Target | None:
        """Return what a device shall do."""
        return self._tracks[device].target

    # What is seen.

    def observe(self, views: Iterable[DeviceView], units: Iterable[UnitView], now_s: float) -> tuple[Notice, ...]:
        """Take in readings; return what is worth telling."""
        notices: list[Notice] = []
        for view in views:
            before = self._views.get(view.device)
            self._views[view.device] = view
            if view.power_w is not None and view.hashrate_ths and not view.is_booting and view.mode is Mode.MINING:
                self._efficiencies[view.device] = view.power_w / view.hashrate_ths
            if before is None or view.read_started_s > before.read_started_s:
                notices.extend(self._judge(view, now_s))
        for unit in units:
            self._unit_views[unit.unit] = unit
            self._unit_asked.discard(unit.unit)
        notices.extend(self._wakers.name(now_s))
        return tuple(notices)

    def _judge(self, view: DeviceView, now_s: float) -> Iterable[Notice]:
        track = self._tracks[view.device]
        if view.condition is not Condition.OK or not self._is_later(track, view):
            return
        for asked, count in track.asks.see(view).items():
            if count >= self._times.attempts:
                yield Notice(
                    kind="device_obeyed_again",
                    device=view.device,
                    message=f"{view.device} now does what it ignored {count} times: {asked}",
                )
                if track.target is None:
                    track.is_ignoring = False
        if track.target is None:
            return
        if asked_of(self.spec.kind, track.target).is_shown(view):
            track.follow()
        if self.is_held(view.device):
            track.was_held = True
            track.woke = False
            track.next_try_s = -math.inf
            return
        if track.was_held and track.target.mode is Mode.STANDBY and view.mode in (Mode.MINING, Mode.INFERENCE):
            track.was_held = False
            track.woke = True
            track.attempts = 0
            track.next_try_s = -math.inf  # caught again at once
            if view.has_restarted:
                yield Notice(
                    kind="device_restarted",
                    device=view.device,
                    message=f"{view.device} restarted and runs again although it shall rest; it is put back to rest",
                )
            else:
                self._wakers.note(view.device, now_s)
        elif track.was_held:
            track.was_held = False
            track.next_try_s = -math.inf

    def _is_later(self, track: DeviceTrack, view: DeviceView) -> bool:
        return not track.writing and view.read_started_s >= track.write_ended_s

    def is_held(self, device: str) -> bool:
        """Tell whether a later reading shows the device at its target."""
        track, view = self._tracks[device], self._views.get(device)
        if (
            track.target is None
            or view is None
            or view.condition is not Condition.OK
            or not self._is_later(track, view)
        ):
            return False
        return self._is_at(view, track.target)

    def _is_at(self, view: DeviceView, target: Target) -> bool:
        if self.spec.kind is Kind.GPU:
            if target.power_w > 0 and not is_close(view.enforced_w, target.power_w):
                return False
            unit = self._unit_views.get(view.unit, UnitView(unit=view.unit))
            if not target.workload:
                return self.is_released(view.unit)
            return unit.workload == target.workload and unit.phase is WorkloadPhase.READY
        return asked_of(self.spec.kind, target).is_shown(view)

    def is_released(self, unit: int) -> bool:
        """Tell whether a reading after the last workload's end shows no process on the unit's GPUs."""
        state = self._unit_views.get(unit, UnitView(unit=unit))
        if (
            unit in self._unit_busy
            or unit in self._unit_asked
            or state.has_process
            or state.phase not in (WorkloadPhase.IDLE, WorkloadPhase.FAILED)
        ):
            return False
        return not why_not_empty(state, self._views_of(unit))

    def _views_of(self, unit: int) -> list[DeviceView | None]:
        return [self._views.get(device) for device in self._units.get(unit, ())]

    # What to ask next.

    def plan(self, counting: BankCounting, now_s: float) -> tuple[Write, ...]:
        """Return what may be asked now, lowering first; the caller asks the governor for each."""
        writes = list(
            self._plan_units(counting, now_s) if self.spec.kind is Kind.GPU else self._plan_miners(counting, now_s)
        )
        return tuple(sorted(writes, key=lambda write: (write.is_raise, write.verb.value, write.unit, write.device)))

    def _is_due(self, track: DeviceTrack, view: DeviceView | None, now_s: float) -> bool:
        return view is not None and not track.writing and now_s >= track.next_try_s

    def _plan_miners(self, counting: BankCounting, now_s: float) -> Iterable[Write]:
        for device, track in self._tracks.items():
            view = self._views.get(device)
            target = track.target
            if target is None or view is None or not self._is_due(track, view, now_s) or self.is_held(device):
                continue
            was_asked = track.attempts or track.has_stepped
            if view.condition is Condition.OK and not self._is_later(track, view) and was_asked:
                continue  # written, not yet read back
            is_blind = view.condition is not Condition.OK
            if is_blind and not (target.mode is Mode.STANDBY and view.condition is Condition.UNAVAILABLE):
                continue  # rest may be asked of one that does not answer just now; nothing else, and never of a hung one
            write = self._miner_write(device, track, view, target, counting)
            if write is not None:
                yield write

    def _miner_write(
        self, device: str, track: DeviceTrack, view: DeviceView, target: Target, counting: BankCounting
    ) -> Write | None:
        def write(verb: Verb, *, is_raise: bool, mode: Mode, enforced_w: float | None) -> Write:
            return Write(
                verb=verb,
                device=device,
                unit=view.unit,
                target=target,
                is_raise=is_raise,
                counted_w=device_counted_w(counting, Kind.ASIC, mode, enforced_w),
                attempt=track.attempts + 1,
            )

        if target.mode is Mode.STANDBY:
            return write(Verb.SLEEP, is_raise=False, mode=Mode.MINING, enforced_w=view.enforced_w)
        if view.mode is Mode.STANDBY:
            stored_w = view.enforced_w
            if stored_w is not None and not track.set_refused and not is_close(stored_w, target.power_w):
                # Asleep it draws the same at any profile: set it first, so that it wakes into the right one.
                return write(Verb.SET_POWER, is_raise=False, mode=Mode.STANDBY, enforced_w=stored_w)
            wakes_at_w = None if stored_w is None else max(stored_w, target.power_w)
            return write(Verb.WAKE, is_raise=True, mode=Mode.MINING, enforced_w=wakes_at_w)
        if view.is_booting and track.attempts:
            return None
        if view.enforced_w is not None and is_close(view.enforced_w, target.power_w):
            return None  # booting or state unknown: nothing to ask
        is_raise = view.enforced_w is not None and target.power_w > view.enforced_w
        worst_w = None if view.enforced_w is None else max(view.enforced_w, target.power_w)
        return write(Verb.SET_POWER, is_raise=is_raise, mode=Mode.MINING, enforced_w=worst_w)

    def _unit_target(self, unit: int) -> Target | None:
        return next((self._tracks[device].target for device in self._units.get(unit, ())), None)

    def _plan_units(self, counting: BankCounting, now_s: float) -> Iterable[Write]:
        for unit, devices in self._units.items():
            target = self._unit_target(unit)
            if target is None:
                continue
            state = self._unit_views.get(unit, UnitView(unit=unit))
            runs_it = state.workload == target.workload and state.phase in _RUNS
            lowered, raised = self._limits(devices, target, counting, now_s)
            yield from lowered
            if state.holders and state.mode is Mode.INFERENCE:
                # A miner is deleted for who comes; a customer's pod may stay where a miner was meant. It is bounded by the limit, which is
                # granted for this unit: unraised, the order would never be read back, and nothing in the bank be proven.
                yield from raised
                raised = []
            if unit in self._unit_busy or unit in self._unit_asked:
                continue
            if state.phase is WorkloadPhase.STOPPING:
                if state.holders and state.workload == target.workload:
                    # Nobody ended the pods that hold it, and now they are right there: take the note back.
                    yield self._unit_write(Verb.START_WORKLOAD, unit, target)
                continue
            if state.phase in _RUNS and state.workload != target.workload:
                yield self._unit_write(Verb.STOP_WORKLOAD, unit, target)
                continue
            if runs_it or (target.workload and self.is_released(unit)) or not target.workload:
                yield from raised
            if not target.workload or runs_it or lowered or raised or not self.is_released(unit):
                continue
            if not all(self._limit_is_held(device, target) for device in devices):
                continue
            failed_s = self._unit_failed_s.get(unit)
            if state.phase is WorkloadPhase.FAILED and state.workload == target.workload:
                if failed_s is None:
                    self._unit_failed_s[unit] = now_s
                    continue
                if now_s - failed_s < self._times.backoff_max_s:
                    continue
            yield self._unit_write(Verb.START_WORKLOAD, unit, target)

    def _unit_write(self, verb: Verb, unit: int, target: Target) -> Write:
        # A workload's watts are bounded by the limits that are already in force: starting it raises no counted watt.
        return Write(verb=verb, device="", unit=unit, target=target, is_raise=False, counted_w=0.0)

    def _limit_is_held(self, device: str, target: Target) -> bool:
        view, track = self._views.get(device), self._tracks[device]
        if view is None or view.condition is not Condition.OK or not self._is_later(track, view):
            return False
        return target.power_w <= 0 or is_close(view.enforced_w, target.power_w)

    def _limits(
        self, devices: Sequence[str], target: Target, counting: BankCounting, now_s: float
    ) -> tuple[list[Write], list[Write]]:
        lowered: list[Write] = []
        raised: list[Write] = []
        if target.power_w <= 0:
            return lowered, raised
        for device in devices:
            track, view = self._tracks[device], self._views.get(device)
            if view is None or view.condition is not Condition.OK or not self._is_due(track, view, now_s):
                continue
            if self._limit_is_held(device, target) or (track.attempts and not self._is_later(track, view)):
                continue
            is_raise = view.enforced_w is not None and target.power_w > view.enforced_w
            worst_w = None if view.enforced_w is None else max(view.enforced_w, target.power_w)
            write = Write(
                verb=Verb.SET_POWER,
                device=device,
                unit=view.unit,
                target=target,
                is_raise=is_raise,
                counted_w=device_counted_w(counting, Kind.GPU, target.mode, worst_w),
                attempt=track.attempts + 1,
            )
            (raised if is_raise else lowered).append(write)
        return lowered, raised

    # What became of it.

    def note_sent(self, write: Write) -> None:
        """Note that a write is on its way."""
        if write.device:
            self._tracks[write.device].writing = True
        else:
            self._unit_busy.add(write.unit)

    def note_answered(self, write: Write, *, was_taken: bool, now_s: float) -> tuple[Notice, ...]:
        """Note that a write was answered (taken or refused) or was cut off; a later reading shows what it did."""
        if not write.device:
            self._unit_busy.discard(write.unit)
            self._unit_asked.add(write.unit)
            return ()
        track = self._tracks[write.device]
        track.writing = False
        track.write_ended_s = now_s
        if write.verb is Verb.SET_POWER and not was_taken:
            track.set_refused = True
        patience_s = self._times.verify_s
        if write.verb is Verb.WAKE or (write.verb is Verb.SET_POWER and self.spec.kind is Kind.ASIC and was_taken):
            patience_s = max(patience_s, self._times.boot_s)
        if write.verb is Verb.SET_POWER and write.counted_w and not was_taken:
            patience_s = self._times.verify_s
        is_step = write.verb is Verb.SET_POWER and self._is_resting(write.device) and write.target.mode is Mode.MINING
        asked = asked_of(self.spec.kind, write.target)
        track.asks.note_asked(asked, math.inf if is_step else now_s + patience_s)
        if track.target is None or write.target != track.target:
            return ()  # the order changed meanwhile: this attempt says nothing about the new one
        if is_step:
            # Only the first of two steps; the wake follows as soon as the new profile (or the refusal) is read back.
            track.has_stepped = True
            track.next_try_s = now_s
            return ()
        track.attempts += 1
        spread = 2.0 ** max(0, min(track.asked_count, _SPREADS_COUNT) - 1)
        track.next_try_s = now_s + min(max(self._times.backoff_max_s, patience_s), patience_s * spread)
        if track.asked_count >= self._times.attempts and not track.is_ignoring:
            track.is_ignoring = True
            track.asks.note_ignored(asked, track.asked_count)
            return (
                Notice(
                    kind="write_ignored",
                    device=write.device,
                    message=f"{write.device} was asked {track.asked_count} times for {write.target.point or asked} and does not show it; "
                    "it counts at what it shows; look at the machine",
                ),
            )
        return ()

    def note_timed_out(self, write: Write, *, quarantine_s: float, now_s: float) -> tuple[Notice, ...]:
        """Note that a write got no answer: it may land later."""
        notices = self.note_answered(write, was_taken=True, now_s=now_s)
        if write.device:
            track = self._tracks[write.device]
            track.quarantined_until_s = now_s + quarantine_s
            # It may never have heard of it: this one counts in its own order only.
            track.asks.note_asked(asked_of(self.spec.kind, write.target), math.inf)
        return notices

    def _is_resting(self, device: str) -> bool:
        view = self._views.get(device)
        return self.spec.kind is Kind.ASIC and view is not None and view.mode is Mode.STANDBY

    # What to tell.

    def counted(self, counting: BankCounting) -> dict[str, float | None]:
        """Return per device what it counts at as read back; None where the newest reading says nothing."""
        result: dict[str, float | None] = {}
        for device in self._tracks:
            view = self._views.get(device)
            if view is None or view.condition is not Condition.OK or not self._is_telling(view):
                result[device] = None
            else:
                result[device] = device_counted_w(counting, self.spec.kind, view.mode, view.enforced_w)
        return result

    def _is_telling(self, view: DeviceView) -> bool:
        """Tell whether a reading says enough to count the device at less than its ceiling."""
        if self.spec.kind is Kind.GPU:
            return view.enforced_w is not None
        return view.mode is Mode.STANDBY or (view.mode is not Mode.UNKNOWN and view.enforced_w is not None)

    def sweep_began_s(self) -> float:
        """Return when the oldest of the readings that count began; minus infinity before every device was asked once."""
        if len(self._views) < len(self._tracks):
            return -math.inf
        begun = [view.read_started_s for view in self._views.values() if view.condition is Condition.OK]
        return min(begun, default=-math.inf)

    def is_in_progress(self, now_s: float) -> bool:
        """Tell whether any device is still expected to get to its target by itself or by a write to come."""
        for device, track in self._tracks.items():
            if track.writing:
                return True
            view = self._views.get(device)
            if track.target is None or view is None or view.condition is not Condition.OK or track.is_ignoring:
                continue
            if now_s < track.quarantined_until_s:
                continue
            if self.spec.kind is Kind.GPU and self._is_bounded(device, track.target, view):
                continue
            if not self.is_held(device):
                return True
        return bool(self._unit_busy)

    def _is_bounded(self, device: str, target: Target, view: DeviceView) -> bool:
        """Tell whether a GPU's watts are where they shall be and its unit holds nothing that must go first.

        Whether a workload is ready is the workload's own story: its watts are bounded by the limit from the start. A pod that is in
        the way is the controller's to move, and may be allowed to stay (its budget says so): its watts are bounded by the limit too.
        """
        state = self._unit_views.get(view.unit, UnitView(unit=view.unit))
        holds_other = state.has_process and state.workload != target.workload
        is_clear = not holds_other and state.phase is not WorkloadPhase.STOPPING
        return self._limit_is_held(device, target) and (is_clear or state.holders is not None)

    def held_count(self) -> int:
        """Return how many devices are read back at their targets."""
        return sum(self.is_held(device) for device in self._tracks)

    def is_stuck(self, device: str, now_s: float) -> bool:
        """Tell whether a device does not obey although it answers, and is not to be asked again yet."""
        track = self._tracks[device]
        return track.is_ignoring and now_s < track.next_try_s

    def last_write_s(self, device: str) -> float:
        """Return when the last write to a device ended; minus infinity where there was none."""
        return self._tracks[device].write_ended_s

    def view(self, device: str) -> DeviceView | None:
        """Return the newest reading of a device."""
        return self._views.get(device)

    def efficiency_j_per_th(self, device: str) -> float | None:
        """Return a miner's efficiency when it last hashed; None if it was never seen hashing."""
        return self._efficiencies.get(device)

    def stragglers(self, now_s: float) -> tuple[StragglerReport, ...]:
        """Return the devices that are not where they shall be, with why."""
        result: list[StragglerReport] = []
        for device, track in self._tracks.items():
            if track.target is None or self.is_held(device):
                continue
            view = self._views.get(device)
            if view is not None and view.condition is Condition.HUNG:
                reason = "hung"
            elif now_s < track.quarantined_until_s:
                reason = "quarantined"
            elif view is None or view.condition is not Condition.OK:
                reason = "unreachable"
            elif track.woke:
                reason = "self_woke"
            elif track.is_ignoring:
                reason = "ignored"
            else:
                reason = "in_flight"
            result.append(StragglerReport(device=device, reason=reason, attempt_count=track.asked_count))
        return tuple(result)

    def observed(self) -> tuple[PointOrder, ...]:
        """Return how many devices are seen at which point."""
        counts: dict[tuple[str, Mode, float, str], int] = {}
        units: dict[tuple[str, Mode, float, str], set[int]] = {}
        for device, track in self._tracks.items():
            view = self._views.get(device)
            if view is None or view.condition is not Condition.OK:
                key = ("", Mode.UNKNOWN, 0.0, "")
            elif track.target is not None and self.is_held(device):
                key = (track.target.point, track.target.mode, track.target.power_w, track.target.workload)
            else:
                seen = self.seen(device)
                key = (
                    ("", Mode.UNKNOWN, 0.0, "")
                    if seen is None
                    else (seen.point, seen.mode, seen.power_w, seen.workload)
                )
            counts[key] = counts.get(key, 0) + 1
            if view is not None and self.spec.kind is Kind.GPU:
                units.setdefault(key, set()).add(view.unit)
        return tuple(
            PointOrder(
                point=key[0],
                mode=key[1],
                power_w=key[2],
                count=count,
                workload=key[3],
                units=tuple(sorted(units.get(key, ()))),
            )
            for key, count in sorted(counts.items(), key=lambda item: (item[0][1].value, *item[0][:1], item[0][2]))
        )

    def seen(self, device: str) -> Target | None:
        """Return what a device is seen doing, named by the bank's own points; None where it is not known."""
        view = self._views.get(device)
        if view is None or view.condition is not Condition.OK or view.mode is Mode.UNKNOWN:
            return None
        workload = ""
        if self.spec.kind is Kind.GPU:
            state = self._unit_views.get(view.unit)
            if state is not None and state.phase in (
                WorkloadPhase.STARTING,
                WorkloadPhase.READY,
                WorkloadPhase.STOPPING,
            ):
                workload = state.workload
        is_resting_miner = self.spec.kind is Kind.ASIC and view.mode is Mode.STANDBY
        watts = 0.0 if is_resting_miner or view.enforced_w is None else view.enforced_w
        return self._named(view.mode, watts, workload, is_any=is_resting_miner)

    def _named(self, mode: Mode, watts: float, workload: str, *, is_any: bool = False) -> Target:
        for point in self.spec.points:
            if point.mode is mode and (is_any or is_close(watts, point.power_w)):
                power_w = 0.0 if is_any else point.power_w
                return Target(point=point.point, mode=mode, power_w=power_w, workload=workload)
        return Target(point="", mode=mode, power_w=watts, workload=workload)

    def given(self, device: str) -> Target | None:
        """Return what a device is seen doing, or what it will do by itself: whoever was given a GPU works there soon."""
        seen, view = self.seen(device), self._views.get(device)
        state = self._unit_views.get(view.unit) if view is not None else None
        if seen is None or state is None or state.mode is None or not seen.workload or seen.mode is not Mode.STANDBY:
            return seen
        return self._named(state.mode, seen.power_w, seen.workload)

    def ready_workloads(self) -> tuple[UnitWorkload, ...]:
        """Return units whose workload is ready by its own probe."""
        return tuple(
            UnitWorkload(unit=unit, workload=state.workload)
            for unit, state in sorted(self._unit_views.items())
            if state.phase is WorkloadPhase.READY
        )

    def failed_workloads(self) -> tuple[UnitWorkload, ...]:
        """Return units whose workload failed, with why."""
        return tuple(
            UnitWorkload(unit=unit, workload=state.workload, reason=state.reason)
            for unit, state in sorted(self._unit_views.items())
            if state.phase is WorkloadPhase.FAILED
        )

    def released_units(self) -> tuple[int, ...]:
        """Return units on whose GPUs no process runs, by a reading after the end of the last workload."""
        if self.spec.kind is not Kind.GPU:
            return ()
        return tuple(unit for unit in sorted(self._units) if self.is_released(unit))

    def unit_holdings(self) -> tuple[HoldingReport, ...]:
        """Return who holds each unit, where pods are the workloads."""
        reports = (report_holding(state, self._views_of(unit)) for unit, state in sorted(self._unit_views.items()))
        return tuple(report for report in reports if report is not None)


def _is_same_aim(before: Target, after: Target) -> bool:
    """Tell whether two targets ask the same of a device, whatever the point is called."""
    return (before.mode, before.power_w, before.workload) == (after.mode, after.power_w, after.workload)
