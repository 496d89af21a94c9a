"""Open a SQLite file so that nothing acknowledged is lost and nothing damaged is taken for empty.

Decides: whether a file may be used. Refuses to know: its tables. Invariant: every connection runs in WAL mode with
synchronous=FULL, and a damaged or missing file is replaced only when a person asked for it by `--adopt-empty`; the damaged one
is moved aside, never deleted.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from swingbus.faults import Unreachable, WrongState

BUSY_TIMEOUT_S = 5.0


def open_database(
    path: Path, schema: str, *, version: int, check: bool, page_bytes: int = 4096, checkpoint_pages: int = 1000
) -> sqlite3.Connection:
    """Return a connection to a file that exists and is whole, or to a new one.

    Args:
        schema: statements that make the tables where they are not there.
        version: what `user_version` must be; a newer file is refused.
        check: read the whole file for damage (quick for a journal, minutes for a large ring).
        page_bytes: of a new file; larger pages suit blobs.
        checkpoint_pages: pages of WAL after which they are copied into the file.

    Raises:
        WrongState: reason DATABASE_DAMAGED or DATABASE_NEWER. Unreachable: the disk refuses.
    """
    connection: sqlite3.Connection | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        connection.execute(f"PRAGMA page_size={page_bytes}")  # before WAL: afterwards it no longer changes
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA wal_autocheckpoint={checkpoint_pages}")
        connection.execute("PRAGMA synchronous=FULL")
        found = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if found > version:
            raise WrongState(
                f"{path} was written by a newer Swingbus (format {found}, this one knows {version}); install that version.",
                reason="DATABASE_NEWER",
                metadata={"path": str(path)},
            )
        if check:
            verdict = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
        connection.executescript(schema)
        connection.execute(f"PRAGMA user_version={version}")
    except sqlite3.OperationalError as error:
        _close(connection)
        raise Unreachable(
            f"cannot open {path}: {error}; check the disk, its free space and permissions.",
            reason="DATABASE_UNREACHABLE",
            metadata={"path": str(path)},
        ) from error
    except sqlite3.DatabaseError as error:
        _close(connection)
        raise damaged(path, error) from error
    except OSError as error:
        raise Unreachable(
            f"cannot make {path.parent}: {error.strerror}; choose another data_dir.", reason="DATABASE_UNREACHABLE"
        ) from error
    except WrongState:
        _close(connection)
        raise
    return connection


def damaged(path: Path, error: Exception) -> WrongState:
    """Return the fault for a file that is not whole."""
    return WrongState(
        f"{path} is damaged ({error}). Put a copy in its place (the journal: `swingbus-controller restore`), or start again with "
        "--adopt-empty: the file is then moved aside and, for the journal, every bank counts at its ceiling until evidence shows less.",
        reason="DATABASE_DAMAGED",
        metadata={"path": str(path)},
    )


def set_aside(path: Path, suffix: str) -> Path | None:
    """Move a database with its WAL out of the way; return where it went, None where there was none."""
    moved: Path | None = None
    for tail in ("", "-wal", "-shm"):
        source = path.with_name(path.name + tail)
        if source.exists():
            target = path.with_name(f"{path.name}.{suffix}{tail}")
            source.rename(target)
            moved = moved or target
    return moved


def _close(connection: sqlite3.Connection | None) -> None:
    if connection is not None:
        connection.close()
