"""Put a backup in the place of a journal, while nobody runs on it.

Decides what is refused and what is told. What an older journal means for the site is decided in `domain.site.restored`. Invariant: nothing
of the folder is changed before the backup has been checked, the site compared where that can be, and the new journal is whole.
"""

from __future__ import annotations

import os
import uuid
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from swingbus.clock import Clock, boot_id
from swingbus.faults import InvalidInput, SwingbusError, Unreachable, WrongState
from swingbus_controller.adapters.storage.copying import (
    JOURNAL,
    JournalFacts,
    Progress,
    check_journal,
    read_since,
)
from swingbus_controller.adapters.storage.holding import JournalHold
from swingbus_controller.adapters.storage.journal import SqliteJournal
from swingbus_controller.adapters.storage.replacing import drop_empty_log, replace_database
from swingbus_controller.adapters.storage.unfinished import cannot_write, unfinished
from swingbus_controller.domain.planning.plan import Authority
from swingbus_controller.domain.site.restored import (
    AUTHORITY_KINDS,
    SET_BY_PEOPLE,
    restored_authority,
    restored_epoch,
    restored_payload,
)
from swingbus_controller.ports.journal import JournaledEntry, JournalEntry

AUTHOR = "swingbus-controller restore"
_LISTED = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What was done.

    Attributes:
        facts: of the backup, as it was.
        kept: where the replaced journal is, None where there was none.
        lost: what people set since the backup, newest first, at most 50; None where the replaced journal can't tell.
        why_not_compared: why nobody can tell whether the replaced journal was the same site's, empty where it was or there was none.
    """

    facts: JournalFacts
    epoch: int
    authority: Authority
    kept: Path | None
    lost: tuple[JournaledEntry, ...] | None
    why_not_compared: str


def restore_journal(source: BinaryIO, called: str, data_dir: Path, clock: Clock, progress: Progress) -> Restored:
    """Make a backup the journal of a data folder.

    Args:
        source: the backup's bytes; called: what messages name it.

    Raises:
        WrongState: a controller runs here; the backup is damaged, newer or another site's; the folder is another user's and we are root.
        InvalidInput: it is no journal. Unreachable: the disk refuses.
    """
    _check_owner(data_dir)
    hold = JournalHold(data_dir, alone=True)
    try:
        target = data_dir / JOURNAL
        with unfinished(data_dir, target) as partial:
            _receive(source, called, partial)
            facts = check_journal(partial, progress, called=called)
            if not facts.site:
                raise InvalidInput(f"{called} holds no entry: there is nothing to restore.", reason="NO_JOURNAL")
            replaced = _look_at(target, facts, progress)
            if replaced.facts is not None and replaced.facts.site not in ("", facts.site):
                raise WrongState(
                    f"{called} is the journal of site {facts.site}, {target} that of site {replaced.facts.site}: nothing was changed. "
                    "Give this site's backup, or move the journal away first.",
                    reason="OTHER_SITE",
                    metadata={"site": facts.site, "path": str(target)},
                )
            epoch, authority = _go_on(partial, facts, replaced.facts, clock)
            drop_empty_log(target)
            kept = replace_database(target, partial, clock.now().strftime("replaced-%Y%m%dT%H%M%S"))
        return Restored(
            facts=facts,
            epoch=epoch,
            authority=authority,
            kept=kept,
            lost=replaced.lost,
            why_not_compared=replaced.why_unread,
        )
    finally:
        hold.close()


def _receive(source: BinaryIO, called: str, partial: Path) -> None:
    with partial.open("wb") as file:
        while True:
            try:
                # One call of the system at a time: a signal is heard before the next, which may wait for ever.
                chunk = os.read(source.fileno(), 1 << 20)
            except OSError as error:
                raise Unreachable(
                    f"cannot read {called}: {error.strerror}; nothing was changed.", reason="CANNOT_READ"
                ) from error
            if not chunk:
                return
            file.write(chunk)


def _check_owner(data_dir: Path) -> None:
    """Refuse to leave root's files where the controller, another user, could not read them."""
    folder = next(each for each in (data_dir, *data_dir.absolute().parents) if each.exists())
    if not folder.is_dir():
        raise cannot_write(data_dir, f"{folder} is no folder")
    owner = folder.stat().st_uid
    if os.geteuid() == 0 and owner != 0:
        raise WrongState(
            f"{folder} belongs to user {owner}: restore as that user, `runuser -u swingbus -- swingbus-controller restore - < FILE`.",
            reason="OTHER_USER",
            metadata={"path": str(folder)},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Replaced:
    """What the journal that is replaced says, as far as it can be read: it may be why somebody restores."""

    facts: JournalFacts | None = None
    lost: tuple[JournaledEntry, ...] | None = None
    why_unread: str = ""


def _look_at(path: Path, backup: JournalFacts, progress: Progress) -> _Replaced:
    if not path.exists():
        return _Replaced()
    try:
        facts = check_journal(path, progress)
    except SwingbusError as error:
        return _Replaced(why_unread=error.reason)
    try:
        lost = read_since(path, backup.revision, SET_BY_PEOPLE, _LISTED)
    except SwingbusError:
        return _Replaced(facts=facts)
    return _Replaced(facts=facts, lost=tuple(each for each in lost if each.entry.author != "site file"))


def _go_on(path: Path, facts: JournalFacts, replaced: JournalFacts | None, clock: Clock) -> tuple[int, Authority]:
    """Append what a restored journal begins with; return its epoch and authority."""
    now_unix_s = clock.now().timestamp()
    epoch = restored_epoch((facts.epoch, *(() if replaced is None else (replaced.epoch,))), now_unix_s)
    with closing(SqliteJournal(path)) as journal:
        newest = journal.find(kinds=AUTHORITY_KINDS, newest_first=True, limit=1)
        authority = restored_authority(newest[0].entry.payload if newest else None)
        instance = f"restore-{uuid.uuid4().hex}"
        journal.claim_epoch(instance, epoch - 1)
        message = f"an older journal was put back, as of event {facts.revision}: authority is {authority.value} until an admin has set it"
        journal.append(
            [
                JournalEntry(
                    kind="journal_restored",
                    subject=f"sites/{facts.site}",
                    author=AUTHOR,
                    reason="limits, curtailments and pins that were set since are not in it",
                    message=message,
                    at_unix_s=now_unix_s,
                    facts={"revision": str(facts.revision), "epoch": str(epoch)},
                    payload=restored_payload(
                        epoch=epoch, instance=instance, boot_id=boot_id(), now_s=clock.boottime_s(), authority=authority
                    ),
                )
            ]
        )
    if path.with_name(path.name + "-wal").exists():  # closing copies it into the file
        raise Unreachable(
            f"cannot write {path}: its write-ahead log is still there; check the disk.", reason="CANNOT_WRITE"
        )
    return epoch, authority
