"""`python -m tests.e2e.wrong_controller BUG ARGS...`: the real controller's program with exactly one part replaced by a wrong one.

Decides which part is wrong; everything else (storage, link, mTLS, planner, ledger) is the real program, started by its own `main`.
The judge is never told who runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace

from swingbus.clock import SystemClock
from swingbus_controller import deciding
from swingbus_controller import main as program
from swingbus_controller.app import engine as engine_module
from swingbus_controller.app.engine import SiteEngine
from swingbus_controller.app.recording import Recorder
from swingbus_controller.domain.power.budget_events import EvidenceWindow, GroupSettled, SettledGrant
from swingbus_controller.ports.journal import JournalEntry

JOURNAL_LAG_S = 4.0


class FreedByTimeEngine(SiteEngine):
    """Counts a grant that must have ended at the safe share: "its agent has fallen to it by now"."""

    def _protect(self, now_s: float, now_unix_s: float) -> None:
        ledger = self.state.ledger
        for bank in ledger.bank_names():
            account = ledger._account(bank)
            over_by_s = ledger.view(bank, now_s).grant_over_by_s
            if over_by_s is not None and now_s > over_by_s and account.newest is not None:
                safe_w = min(account.spec.safe_share_w, account.newest.grant_w)
                account.newest = replace(account.newest, grant_w=safe_w)
                account.older_max_w = None
                account.doubt_w = None
        super()._protect(now_s, now_unix_s)


class AckEngine(SiteEngine):
    """Takes the agent's receipt of a grant for evidence that its machines obey it."""

    def _settle(self, now_s: float) -> None:
        ledger = self.state.ledger
        for group in ledger.groups():
            proofs = ledger.proofs(group)
            windows = list(ledger.meters[group].windows)[-1:]
            is_received = all(p.generation and p.is_adopted and p.confirmed == (p.epoch, p.generation) for p in proofs)
            if not windows or not is_received or all(ledger.is_settled(p.bank) for p in proofs):
                continue
            settled = GroupSettled(
                group=group,
                grants=tuple(
                    SettledGrant(bank=p.bank, epoch=p.epoch, generation=p.generation, grant_w=p.grant_w) for p in proofs
                ),
                windows=tuple(
                    EvidenceWindow(start_s=w.start_s, end_s=w.end_s, mean_w=w.mean_w, upper_w=w.mean_w) for w in windows
                ),
                at_s=now_s,
            )
            self.recorder.record(self.recorder.budget(settled))


class LateRecorder(Recorder):
    """Believes, answers and sends first; the journal follows some seconds later."""

    def record(self, *entries: JournalEntry) -> int:
        for entry in entries:
            if entry.payload is not None:
                self._state.fold(entry.payload)
        late: list[tuple[float, tuple[JournalEntry, ...]]] = self.__dict__.setdefault("late", [])
        late.append((self._clock.boottime_s() + JOURNAL_LAG_S, entries))
        return self.catch_up()

    def catch_up(self) -> int:
        """Journal what is due by now; return the newest revision."""
        late: list[tuple[float, tuple[JournalEntry, ...]]] = self.__dict__.setdefault("late", [])
        while late and late[0][0] <= self._clock.boottime_s():
            self._journal.append(late.pop(0)[1])
        return self._journal.newest_revision()


class SendsFirstEngine(SiteEngine):
    """Sends before it journals."""

    def tick(self, now_s: float, now_unix_s: float) -> None:
        super().tick(now_s, now_unix_s)
        assert isinstance(self.recorder, LateRecorder)
        self.recorder.catch_up()


def _freed_by_time() -> None:
    vars(deciding)["SiteEngine"] = FreedByTimeEngine


def _ack_as_evidence() -> None:
    vars(deciding)["SiteEngine"] = AckEngine


def _sent_before_journal() -> None:
    vars(engine_module)["Recorder"] = LateRecorder
    vars(deciding)["SiteEngine"] = SendsFirstEngine


BUGS: Mapping[str, Callable[[], None]] = {
    "freed-by-time": _freed_by_time,
    "ack-as-evidence": _ack_as_evidence,
    "sent-before-journal": _sent_before_journal,
}


def main(argv: list[str]) -> int:
    """Plant a bug, then run the real program with the arguments left; 2 for an unknown bug."""
    if not argv or argv[0] not in BUGS:
        print(f"wrong_controller: name one bug of {', '.join(BUGS)}, then the controller's arguments", file=sys.stderr)
        return 2
    BUGS[argv[0]]()
    print(f"wrong_controller: {argv[0]} is planted, {SystemClock().now().isoformat()}", flush=True)
    return program.main(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
