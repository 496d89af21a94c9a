"""Copy a journal while a controller writes it, and tell whether a file is a whole journal.

Decides: what is a journal that this program can go on from. Refuses to know: what entries mean. Invariants: a copy is one moment of the
journal, everything acknowledged before it included; a file appears under its name whole, checked and durable, or not at all.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from swingbus.faults import InvalidInput, NotFound, SwingbusError, Unreachable, WrongState
from swingbus_controller.adapters.storage.database import BUSY_TIMEOUT_S
from swingbus_controller.adapters.storage.journal import ENTRY_COLUMNS, JOURNAL_VERSION, read_entry
from swingbus_controller.adapters.storage.unfinished import remove_leftovers, sync, unfinished
from swingbus_controller.ports.journal import JournaledEntry

JOURNAL = "journal.sqlite"
# What SQLite reports progress by; some milliseconds of work.
_STEPS = 20_000
_COLUMNS = {
    "term": {"one", "epoch", "instance", "compacted_revision"},
    "entries": {"revision", "epoch", "at_unix_s", "kind", "subject", "author", "reason", "message", "facts", "payload"},
}

# Called often while something is worked on, with its name and the share that is done (None: unknown).
Progress = Callable[[str, float | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalFacts:
    """What a journal says of itself.

    Attributes:
        site: id of its site, empty where nothing is in it yet.
        newest_unix_s: when its newest entry was made, None where there is none.
    """

    site: str
    epoch: int
    revision: int
    newest_unix_s: float | None
    size_bytes: int


def copy_journal(data_dir: Path, target: Path, progress: Progress) -> JournalFacts:
    """Write a copy of a data folder's journal, a controller on it or not; return what is in the copy, read back and checked.

    Raises:
        NotFound: no journal there. WrongState: it is damaged or newer than this program. Unreachable: the disk refuses.
    """
    source = _journal_in(data_dir)
    remove_leftovers(data_dir)
    with unfinished(target.parent, target) as partial:
        facts = _copy(source, partial, progress)
        sync(partial)
        partial.rename(target)
        try:
            sync(target.parent)
        except OSError:
            target.unlink(missing_ok=True)
            raise
        return facts


@contextmanager
def passing_copy(data_dir: Path, progress: Progress) -> Iterator[tuple[BinaryIO, JournalFacts]]:
    """Give a copy to read that lies in the data folder meanwhile, for whoever has no other place. Raises as `copy_journal` does."""
    source = _journal_in(data_dir)
    with unfinished(data_dir, data_dir, next_step="Make room in it, or run as the user it belongs to.") as partial:
        facts = _copy(source, partial, progress)
        with partial.open("rb") as file:
            yield file, facts


def _journal_in(data_dir: Path) -> Path:
    source = data_dir / JOURNAL
    if not source.is_file():
        raise NotFound(
            f"there is no journal at {source}: name the controller's data folder with --data-dir.",
            reason="NO_JOURNAL",
            metadata={"path": str(source)},
        )
    return source


def _copy(source: Path, partial: Path, progress: Progress) -> JournalFacts:
    with _faults_of(source, partial.parent.parent), closing(_open(source)) as database:
        _check_is_journal(database, source)
        whole_bytes = max(1, _size_bytes(database))

        def told() -> int:
            progress("copying", min(1.0, partial.stat().st_size / whole_bytes))
            return 0

        database.set_progress_handler(told, _STEPS)
        # One read transaction: one moment, however long it takes and whatever is written meanwhile. It waits for nobody, nobody for it.
        database.execute("VACUUM INTO ?", (str(partial),))
    return check_journal(partial, progress, called=source)


def check_journal(path: Path, progress: Progress, *, called: Path | str | None = None) -> JournalFacts:
    """Read a whole file and return what is in it. Raises InvalidInput for no journal, WrongState for a damaged or newer one.

    Args:
        called: what messages name instead of `path`.
    """
    name = path if called is None else called
    with _faults_of(name, path.parent), closing(_open(path)) as database:
        _check_is_journal(database, name)

        def told() -> int:
            progress("checking", None)
            return 0

        database.set_progress_handler(told, _STEPS)
        verdict = str(database.execute("PRAGMA integrity_check(1)").fetchone()[0])
        if verdict != "ok":
            raise _damaged(name, verdict)
        epoch = int(database.execute("SELECT epoch FROM term").fetchone()[0])
        newest = database.execute("SELECT revision, at_unix_s FROM entries ORDER BY revision DESC LIMIT 1").fetchone()
        subject = database.execute("SELECT subject FROM entries WHERE subject LIKE 'sites/%' LIMIT 1").fetchone()
        return JournalFacts(
            site="" if subject is None else str(subject[0]).split("/")[1],
            epoch=epoch,
            revision=0 if newest is None else int(newest[0]),
            newest_unix_s=None if newest is None else float(newest[1]),
            size_bytes=_size_bytes(database),
        )


def read_since(path: Path, revision: int, kinds: Sequence[str], limit: int) -> tuple[JournaledEntry, ...]:
    """Return the newest entries of some kinds after a revision, newest first, and change nothing in the file."""
    with _faults_of(path, path.parent), closing(_open(path)) as database:
        rows = database.execute(
            f"SELECT {ENTRY_COLUMNS} FROM entries WHERE revision > ? AND kind IN ({','.join('?' * len(kinds))}) "
            "ORDER BY revision DESC LIMIT ?",
            (revision, *kinds, limit),
        ).fetchall()
    return tuple(read_entry(row, path) for row in rows)


def _open(path: Path) -> sqlite3.Connection:
    # Read-only: nothing of a running controller's is checkpointed or removed when we are done.
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None
    )


def _size_bytes(database: sqlite3.Connection) -> int:
    pages, size = (int(database.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "page_size"))
    return pages * size


def _check_is_journal(database: sqlite3.Connection, name: Path | str) -> None:
    found = {table: {str(row[1]) for row in database.execute(f"PRAGMA table_info({table})")} for table in _COLUMNS}
    version = int(database.execute("PRAGMA user_version").fetchone()[0])
    if all(found.values()) and version > JOURNAL_VERSION:
        raise WrongState(
            f"{name} was written by a newer Swingbus (format {version}, this one knows {JOURNAL_VERSION}); use that version.",
            reason="DATABASE_NEWER",
            metadata={"path": str(name)},
        )
    if not all(wanted <= found[table] for table, wanted in _COLUMNS.items()):
        raise InvalidInput(
            f"{name} is no journal of Swingbus; give a file that `swingbus-controller backup` wrote.",
            reason="NO_JOURNAL",
            metadata={"path": str(name)},
        )


def _damaged(name: Path | str, why: str) -> WrongState:
    return WrongState(
        f"{name} is damaged ({why}): nothing was changed. Use an older backup.",
        reason="DATABASE_DAMAGED",
        metadata={"path": str(name)},
    )


@contextmanager
def _faults_of(name: Path | str, place: Path) -> Iterator[None]:
    """Turn SQLite's faults into ours: of the disk (full, refused), or of the content."""
    try:
        yield
    except SwingbusError:
        raise
    except sqlite3.OperationalError as error:
        raise Unreachable(
            f"cannot read {name} or write in {place}: {error}; check the disk, its free space and permissions.",
            reason="DATABASE_UNREACHABLE",
            metadata={"path": str(name)},
        ) from error
    except sqlite3.DatabaseError as error:
        raise _damaged(name, str(error)) from error
