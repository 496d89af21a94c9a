"""Names on the record: machines that ignore or wake, groups that draw more than was granted or than they report.

Decides what is accused and when it is not, and which machines are known to ignore sleep. Nobody is accused of what a disturbance did
(a blip wakes every machine with volatile sleep), and a gap at a meter accuses only while nothing was asked of its group. Invariant: each
subject is accused of each word once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from swingbus_controller.app.recording import Recorder, bank_subject
from swingbus_controller.domain.fleet import orders
from swingbus_controller.domain.fleet.accusing import GapWatch
from swingbus_controller.domain.flips.placement import ORDER_MODES
from swingbus_controller.domain.planning.points import WORKING_MODES, DeviceKind, Mode
from swingbus_controller.domain.power.budget_events import GroupExceeded
from swingbus_controller.domain.power.reports import MeterWindow
from swingbus_controller.domain.site_state import SiteState

WORDS = {"ignored": "ignored_write", "self_woke": "self_woke"}
# Whoever ignored sleep is not asked again for so long: a cut that counts on it is never proven.
IGNORED_S = 3600.0
_ASLEEP = ORDER_MODES[Mode.STANDBY].value
# A step of this share of the group's largest device is more than fans, errors and noise make at a standstill.
STEP_RATIO = 0.5


class Accuser:
    """Keeps what accusations need of the past, and records them."""

    def __init__(self, state: SiteState, recorder: Recorder, now_s: float) -> None:
        self._state = state
        self._recorder = recorder
        self._excused: set[tuple[str, str]] = set()
        self._reported_w: dict[str, float] = {}
        self._watches: dict[str, GapWatch] = {}
        self._grants: dict[str, tuple[object, ...]] = {}
        # A start believes the record.
        for subject, words in state.accusations.items():
            bank, is_device, device = subject.partition("/devices/")
            if is_device and WORDS["ignored"] in words:
                for name in (n for n in state.models if bank_subject(n) == bank):
                    self._note_ignoring(name, device, now_s)

    def take_report(self, name: str, bank: orders.BankReport, now_s: float) -> None:
        """Accuse devices that the agent could not bring where they shall be, and that no disturbance excuses."""
        # Only waking: no blip makes a machine ignore what it is told.
        out_of_place = {(name, s.device) for s in bank.stragglers if s.reason == "self_woke"}
        known = {pair for pair in self._excused if pair[0] == name}
        if now_s < self._state.ledger.disturbed_until_s:
            self._excused |= out_of_place
        # Excused until it was seen in its place once.
        self._excused -= known - out_of_place
        for straggler in bank.stragglers:
            if straggler.reason == "ignored":
                self._note_ignoring(name, straggler.device, now_s)
            word = WORDS.get(straggler.reason)
            if word is None or (straggler.reason == "self_woke" and (name, straggler.device) in self._excused):
                continue
            words = f"{straggler.device} of {name}: {word.replace('_', ' ')} after {straggler.attempt_count} writes; look at the machine"
            self._accuse("device_accused", f"{bank_subject(name)}/devices/{straggler.device}", word, words)

    def take_exceeded(self, exceeded: GroupExceeded) -> None:
        """Accuse a group that draws more than all its grants."""
        words = f"{exceeded.group} draws {(exceeded.upper_w - exceeded.granted_w) / 1000:.1f} kW more than granted"
        self._accuse("group_accused", f"feeders/{exceeded.group}", "exceeds_grant", words)

    def take_modes(self, name: str, devices: Sequence[str], modes: Sequence[int], now_s: float) -> None:
        """Forget that a machine ignores sleep once a reading shows it asleep, or long after it was last asked."""
        ignoring = self._state.ignoring.get(name)
        if ignoring:
            asleep = {device for device, mode in zip(devices, modes, strict=True) if mode == _ASLEEP}
            for device in [d for d, at_s in ignoring.items() if d in asleep or now_s - at_s > IGNORED_S]:
                del ignoring[device]

    def _note_ignoring(self, name: str, device: str, now_s: float) -> None:
        # A GPU's limit is not its sleep: there what is enforced counts, and the agent says what that is.
        if self._state.models[name].kind is DeviceKind.ASIC:
            self._state.ignoring.setdefault(name, {})[device] = now_s

    def take_reported(self, name: str, column: Sequence[float]) -> None:
        """Remember what a bank's devices say that they draw together; one that says nothing makes the sum useless."""
        part = math.fsum(column)
        if math.isnan(part):
            self._reported_w.pop(name, None)
        else:
            self._reported_w[name] = part

    def take_window(self, window: MeterWindow, now_s: float) -> None:
        """Compare a group's meter with what its devices report."""
        ledger = self._state.ledger
        banks = ledger.group_banks(window.feeder)
        if not banks:
            return
        watch = self._watches.setdefault(window.feeder, GapWatch(STEP_RATIO * self._largest_w(banks)))
        grants = tuple(ledger.newest_grant(bank) for bank in banks)
        is_moving = any(self._state.open_flips(bank) for bank in banks) or now_s < ledger.disturbed_until_s
        if is_moving or grants != self._grants.get(window.feeder):
            self._grants[window.feeder] = grants
            watch.disturb()
            return
        if any(bank not in self._reported_w for bank in banks):
            return  # a machine that does not answer now says nothing of the others
        step = watch.take(now_s, window.mean_w, sum(self._reported_w[bank] for bank in banks))
        if step is not None:
            words = (
                f"{window.feeder}: the meter rose by {step.rise_w / 1000:.1f} kW above what its machines report, with nothing asked "
                "of them; one of them draws more than it says, or a load was added"
            )
            self._accuse("group_accused", f"feeders/{window.feeder}", "under_reports", words)

    def _largest_w(self, banks: Sequence[str]) -> float:
        return max(
            point.draw_w
            for bank in banks
            for point in self._state.models[bank].points.values()
            if point.mode in WORKING_MODES
        )

    def _accuse(self, kind: str, subject: str, word: str, words: str) -> None:
        if word in self._state.accusations.get(subject, ()):
            return
        record = {"accusation": {"subject": subject, "word": word}}
        self._recorder.record(self._recorder.entry(kind, subject, words, facts={"word": word}, payload=record))
