"""Bringing a journal of an earlier format up to date without running anything."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing

from scaleinfer.errors import JournalError
from scaleinfer.journal import _format
from scaleinfer.journal._database import connect_writer, inspect, translate
from scaleinfer.journal._lock import Lock

__all__ = ["upgrade"]


def upgrade(path: str | os.PathLike[str]) -> bool:
    """Bring a journal to the format of this version; all that is in it stays.

    Its chain begins with what is there now. It happens in one transaction: a crash leaves the
    journal as it was.

    Returns:
        False if there was nothing to do.

    Raises:
        JournalError: As for writing a journal.
    """
    real = os.path.realpath(path)
    lock = Lock.acquire(real)
    try:
        header = inspect(real)
        if header is None:
            raise JournalError(
                f"There is no journal at {path}.", path=real, hint="Check the path; a run makes it."
            )
        if header.user_version == _format.FORMAT:
            return False
        # Opening it for writing does it.
        with closing(connect_writer(real, file_locks=lock.supports_file_locks)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE").fetchall()
    except (sqlite3.Error, OSError) as error:
        raise translate(error, real) from error
    finally:
        lock.release()
    return True
