"""The durable record of a run: what was asked, tried and answered, in one SQLite file.

The contract: a result that was reported is on disk. After `kill -9`, a crash or a power loss
nothing that was reported is lost and nothing is recorded twice; what was in flight is asked again.
One process writes a journal at a time. It works on network file systems too.
"""

from __future__ import annotations

from scaleinfer.journal._batches import BatchEvent, BatchMember, OpenBatch, pack_members
from scaleinfer.journal._format import Manifest
from scaleinfer.journal._history import read_run, read_sights
from scaleinfer.journal._journal import Journal
from scaleinfer.journal._read import (
    RunInfo,
    StoredAttempt,
    StoredResult,
    list_runs,
    read_attempts,
    read_results,
)
from scaleinfer.journal._recover import RecoverReport, recover
from scaleinfer.journal._redaction import redact, redact_data
from scaleinfer.journal._store import Claim
from scaleinfer.journal._upgrade import upgrade
from scaleinfer.journal._verify import VerifyReport, verify
from scaleinfer.journal._writer import JournalStatistics

__all__ = [
    "BatchEvent",
    "BatchMember",
    "Claim",
    "Journal",
    "JournalStatistics",
    "Manifest",
    "OpenBatch",
    "RecoverReport",
    "RunInfo",
    "StoredAttempt",
    "StoredResult",
    "VerifyReport",
    "list_runs",
    "pack_members",
    "read_attempts",
    "read_results",
    "read_run",
    "read_sights",
    "recover",
    "redact",
    "redact_data",
    "upgrade",
    "verify",
]
