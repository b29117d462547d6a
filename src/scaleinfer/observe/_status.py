"""The status file beside a journal, which says once a second where its run stands."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import orjson

from scaleinfer.observe._snapshot import Snapshot

__all__ = ["RunStatus", "read_status", "remove_status", "status_path", "write_status"]

_SUFFIX = "-status"


@dataclass(frozen=True, slots=True)
class RunStatus:
    """Where a run stood when it last said so.

    Attributes:
        snapshot: The run.
        journal_run: Its number in the journal.
        written: Unix time.
    """

    snapshot: Snapshot
    journal_run: int
    written: float


def status_path(journal: str | os.PathLike[str]) -> str:
    """Return where the status of a journal's run is."""
    return os.path.realpath(journal) + _SUFFIX


def write_status(journal: str, snapshot: Snapshot, journal_run: int) -> None:
    """Say where a run stands; a file that cannot be written is done without.

    Readers see the old file or the new one, never half of it.
    """
    path = status_path(journal)
    made = f"{path}-new"
    data = asdict(snapshot) | {"journal_run": journal_run, "written": time.time()}
    try:
        Path(made).write_bytes(orjson.dumps(data, default=str))
        os.replace(made, path)
    except (OSError, TypeError, ValueError):
        _unlink(made)


def remove_status(journal: str) -> None:
    """Take the file away: the run has ended, and the journal says how."""
    for name in (status_path(journal), status_path(journal) + "-new"):
        _unlink(name)


def read_status(journal: str | os.PathLike[str]) -> RunStatus | None:
    """Return what a run last said; `None` if there is nothing."""
    try:
        data = orjson.loads(Path(status_path(journal)).read_bytes())
        known = {field.name for field in fields(Snapshot)}
        snapshot = Snapshot(**{name: value for name, value in data.items() if name in known})
        return RunStatus(snapshot, int(data["journal_run"]), float(data["written"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _unlink(path: str) -> None:
    with suppress(OSError):
        Path(path).unlink(missing_ok=True)
