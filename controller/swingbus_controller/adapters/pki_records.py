"""The certificate authority's records on disk: what was issued, and what counts no more.

`index.jsonl` is append-only, one line per certificate, durable before a bundle leaves the room. `denied.txt` holds revoked serials, one a
line with a comment, so that a person can edit it in an emergency; the running controller sees a change at the next call.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from swingbus.bundle import write_private
from swingbus.faults import InvalidInput
from swingbus.logs import get_logger

_SERIAL = re.compile(r"[0-9a-f]{1,40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedCertificate:
    """One line of the index."""

    serial: str  # lower-case hexadecimal
    name: str
    role: str  # agent, viewer, operator, admin, or server
    not_before: datetime
    not_after: datetime
    issue_time: datetime


class IssueIndex:
    """The append-only list of what was issued."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, certificate: IssuedCertificate) -> None:
        """Record one certificate; durable on return."""
        row = {
            key: value.isoformat() if isinstance(value, datetime) else value
            for key, value in asdict(certificate).items()
        }
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> Sequence[IssuedCertificate]:
        """Return everything issued, oldest first. Raises InvalidInput naming the first line that cannot be read."""
        if not self._path.exists():
            return ()
        names = {f.name for f in fields(IssuedCertificate)}
        issued: list[IssuedCertificate] = []
        for number, line in enumerate(self._path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if set(row) != names:
                    raise ValueError(f"it must hold exactly {', '.join(sorted(names))}")
                times = {
                    key: datetime.fromisoformat(row[key]).astimezone(UTC)
                    for key in names
                    if key.endswith(("_time", "_before", "_after"))
                }
                issued.append(IssuedCertificate(**{**row, **times}))
            except (ValueError, TypeError) as error:
                raise InvalidInput(
                    f"{self._path} line {number} is no record of a certificate: {error}; restore the file from a backup "
                    "or remove that line",
                    reason="BAD_CERTIFICATE_INDEX",
                    metadata={"path": str(self._path), "line": str(number)},
                ) from error
        return issued


class DenyListFile:
    """Revoked serials in a text file; re-read when it changes. A file that turns bad keeps the last good list and says so once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._denied = parse_deny_list(self._read(), str(path))
        self._seen = self._stamp()

    def is_denied(self, serial: str) -> bool:
        stamp = self._stamp()
        if stamp != self._seen:
            self._seen = stamp
            try:
                self._denied = parse_deny_list(self._read(), str(self._path))
            except (InvalidInput, OSError, UnicodeDecodeError) as error:
                get_logger().error(
                    "deny_list_rejected", path=str(self._path), message=str(error), kept_count=len(self._denied)
                )
            else:
                get_logger().info("deny_list_read", path=str(self._path), denied_count=len(self._denied))
        return serial in self._denied

    def deny(self, serial: str, comment: str) -> None:
        """Add a serial for good; durable on return."""
        if serial in self._denied:
            return
        line = f"{serial}  # {' '.join(comment.split())}\n"
        text = self._read()
        parse_deny_list(text + line, str(self._path))
        write_private(self._path, text + line)
        self._denied |= {serial}
        self._seen = self._stamp()

    def _read(self) -> str:
        return self._path.read_text(encoding="utf-8") if self._path.exists() else ""

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_size


def parse_deny_list(text: str, where: str) -> frozenset[str]:
    """Return the serials of a deny list: one a line, `#` starts a comment."""
    serials = set()
    for number, line in enumerate(text.splitlines(), start=1):
        serial = parse_serial(line.partition("#")[0])
        if not serial:
            continue
        if not _SERIAL.fullmatch(serial):
            raise InvalidInput(
                f"{where} line {number} is no serial in hexadecimal: {line[:60]!r}; certificate list shows serials",
                reason="BAD_DENY_LIST",
                metadata={"path": where, "line": str(number)},
            )
        serials.add(serial)
    return frozenset(serials)


def parse_serial(text: str) -> str:
    """Return a serial as this program writes it, from any usual spelling (`0A:1B`, `0x0a1b`)."""
    return text.strip().lower().replace(":", "").removeprefix("0x").lstrip("0")


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory against another process that issues at the same time."""
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
