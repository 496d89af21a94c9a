"""`swingbus-controller backup` and `restore`: the journal out of its folder and back, from the command line.

Decides words and files; the work is `adapters.storage.copying` and `restoring`. Needs nothing but the data folder: no shell, no tar, no
other place to write. Faults are left to `main`, which prints them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from swingbus.clock import Clock, SystemClock
from swingbus.faults import AlreadyExists, InvalidInput, NotFound
from swingbus_controller.adapters.storage.copying import JournalFacts, Progress, copy_journal, passing_copy
from swingbus_controller.adapters.storage.restoring import Restored, restore_journal
from swingbus_controller.adapters.storage.unfinished import cannot_write
from swingbus_controller.leaving import leaving_at_sigterm
from swingbus_controller.ports.journal import JournaledEntry

DEFAULT_DATA = Path("/var/lib/swingbus/data")
TELL_AFTER_S = 2.0
_CHUNK_BYTES = 1 << 20

_BACKUP_EXAMPLES = """examples:
  swingbus-controller backup journal.backup
  swingbus-controller backup - > journal.backup
  kubectl exec -n swingbus-system deployment/swingbus-controller -- swingbus-controller backup - > journal.backup
"""
_RESTORE_EXAMPLES = """examples:
  swingbus-controller restore journal.backup
  swingbus-controller restore - < journal.backup
"""


def mount(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `backup` and `restore` to the controller's sub-commands."""
    backup = commands.add_parser(
        "backup",
        help="copy the journal, also while the controller runs",
        description="Write a consistent copy of the journal, while a controller runs or not, and check it. Telemetry and certificates are "
        "not in it (docs/operations.md).",
        epilog=_BACKUP_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    backup.add_argument("file", metavar="FILE", help="a new file, - for standard output")
    backup.set_defaults(run=_backup)
    restore = commands.add_parser(
        "restore",
        help="put a backup in the journal's place, while no controller runs",
        description="Put a backup in the journal's place. The journal that is there is kept beside it. Authority is advise from then on, "
        "until an admin says otherwise: what people set since the backup is not in it (docs/operations.md).",
        epilog=_RESTORE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    restore.add_argument("file", metavar="FILE", help="what backup wrote, - for standard input")
    restore.set_defaults(run=_restore)
    for parser in (backup, restore):
        parser.add_argument(
            "--data-dir",
            type=Path,
            default=DEFAULT_DATA,
            metavar="DIR",
            help="[controller] data_dir of the site file (default: %(default)s)",
        )


class Teller:
    """Says what is under way, on standard error: first after two seconds, then every two."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due_s = clock.monotonic_s() + TELL_AFTER_S

    def tell(self, what: str, ratio: float | None) -> None:
        """Print how far something is, if it is time."""
        now_s = self._clock.monotonic_s()
        if now_s >= self._due_s:
            self._due_s = now_s + TELL_AFTER_S
            print(what if ratio is None else f"{what}: {ratio:.0%}", file=sys.stderr, flush=True)


def _backup(arguments: argparse.Namespace) -> int:
    with leaving_at_sigterm():
        return _back_up(arguments)


def _back_up(arguments: argparse.Namespace) -> int:
    progress = Teller(SystemClock()).tell
    if arguments.file == "-":
        facts = _stream_backup(arguments.data_dir, progress)
    else:
        target = Path(arguments.file)
        if target.exists() or target.is_symlink():
            raise AlreadyExists(
                f"{target} exists: choose another name, it is not overwritten.",
                reason="FILE_EXISTS",
                metadata={"path": str(target)},
            )
        if not target.parent.is_dir():
            raise NotFound(
                f"there is no directory {target.parent}: make it first.",
                reason="NO_DIRECTORY",
                metadata={"path": str(target.parent)},
            )
        facts = copy_journal(arguments.data_dir, target, progress)
    print(f"{arguments.file}: {_described(facts)}; checked, whole", file=sys.stderr)
    return 0


def _stream_backup(data_dir: Path, progress: Progress) -> JournalFacts:
    """Copy and check first, in the data folder (the only place that is surely writable), then write to standard output."""
    if sys.stdout.isatty():
        raise InvalidInput("standard output is a terminal: send it to a file (`> FILE`).", reason="STDOUT_IS_TERMINAL")
    with passing_copy(data_dir, progress) as (file, facts):
        while chunk := file.read(_CHUNK_BYTES):
            _put_out(chunk)
    return facts


def _put_out(chunk: bytes) -> None:
    try:
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise cannot_write("standard output", error.strerror or str(error)) from error


def _restore(arguments: argparse.Namespace) -> int:
    with leaving_at_sigterm():
        return _put_back(arguments)


def _put_back(arguments: argparse.Namespace) -> int:
    clock = SystemClock()
    progress = Teller(clock).tell
    if arguments.file == "-":
        if sys.stdin.isatty():
            raise InvalidInput(
                "standard input is a terminal: give it the backup (`< FILE`).", reason="STDIN_IS_TERMINAL"
            )
        done = restore_journal(sys.stdin.buffer, "standard input", arguments.data_dir, clock, progress)
    else:
        with _opened(Path(arguments.file)) as file:
            done = restore_journal(file, arguments.file, arguments.data_dir, clock, progress)
    for line in _told(done):
        print(line)
    return 0


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise NotFound(
            f"cannot read {path}: {error.strerror}; give a file that `swingbus-controller backup` wrote.",
            reason="NO_BACKUP",
            metadata={"path": str(path)},
        ) from error


def _described(facts: JournalFacts) -> str:
    """Return one line about a journal."""
    until = "" if facts.newest_unix_s is None else f" to event {facts.revision} of {_stamp(facts.newest_unix_s)}"
    return f"journal of site {facts.site or '(none yet)'}{until}, epoch {facts.epoch}, {facts.size_bytes:,} bytes"


def _told(done: Restored) -> Sequence[str]:
    """Return what an operator has to know after a restore, and the next steps."""
    lines = [f"restored the {_described(done.facts)}; it goes on above epoch {done.epoch}"]
    if done.kept is not None:
        lines.append(f"the journal that was there is kept: {done.kept}")
    if done.why_not_compared:
        lines.append(
            f"WARNING: the journal that was there cannot be read ({done.why_not_compared}): nobody compared the sites. Make sure that this "
            f"is site {done.facts.site}"
        )
    if done.lost is None:
        lines.append(
            "what people set since the backup is not known here: limits, curtailments, pins, lockouts, authority, reservations"
        )
    elif done.lost:
        lines.append("set since the backup, and not in it (newest first):")
        lines += [f"  {_lost_line(each)}" for each in done.lost]
    else:
        lines.append("people set nothing since the backup")
    lines += [
        f"authority is {done.authority.value}: nothing is written to the site, agents stay at their safe share",
        "next: start the controller, set again what is missing (swingctl limit set ...), then swingctl authority set control",
    ]
    return lines


def _lost_line(each: JournaledEntry) -> str:
    entry = each.entry
    limit = (entry.payload or {}).get("budget", {}).get("limit", {})
    words = f"{limit['name']} limit {limit['limit_w'] / 1000:,.1f} kW" if "limit_w" in limit else entry.message
    about = entry.subject.partition("/")[2].partition("/")[2]
    return f"{_stamp(entry.at_unix_s)}  {entry.kind} {about} by {entry.author}: {words}"


def _stamp(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
