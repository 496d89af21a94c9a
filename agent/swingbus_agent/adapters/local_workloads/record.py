"""What the agent must remember of the processes that it started, on disk before and after each start.

Decides nothing. Invariant: a line is durable before the process that it speaks of exists, so a crashed agent finds its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from swingbus.faults import InvalidInput

_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One workload on one unit, from the decision to start it until it is gone."""

    unit: str
    workload: str
    token: str  # in the environment of the process: finds it if the agent died before it wrote `pid`
    started_boottime_s: float
    pid: int | None = None
    start_ticks: int | None = None
    was_ready: bool = False
    kill_at_boottime_s: float | None = None  # set when it was told to end
    failure: str = ""  # why, if it is being ended because it failed


class RunRecord:
    """The file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self, boot_id: str) -> dict[str, Run]:
        """Return the runs of this boot; a missing file and another boot's are both nothing.

        Raises:
            InvalidInput: the file is there but is not what this program writes.
        """
        try:
            content = json.loads(self._path.read_text())
        except FileNotFoundError:
            return {}
        except (ValueError, OSError) as error:
            raise InvalidInput(
                f"{self._path}: the list of running workloads cannot be read ({error}). Stop what runs on this host's GPUs by "
                "hand, remove the file and start the agent again"
            ) from error
        try:
            if content["version"] != _VERSION:
                raise ValueError(f"version {content['version']}")
            if content["boot_id"] != boot_id:
                return {}
            known = {each.name for each in fields(Run)}
            runs = [Run(**{key: value for key, value in row.items() if key in known}) for row in content["runs"]]
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(
                f"{self._path}: the list of running workloads is not of this program ({error!r}). Stop what runs on this "
                "host's GPUs by hand, remove the file and start the agent again"
            ) from error
        return {run.unit: run for run in runs}

    def save(self, runs: Mapping[str, Run], boot_id: str) -> None:
        """Make this the record, durably: the file and its name."""
        content = {"version": _VERSION, "boot_id": boot_id, "runs": [asdict(run) for run in runs.values()]}
        aside = self._path.with_name(self._path.name + ".new")
        with open(aside, "w") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
