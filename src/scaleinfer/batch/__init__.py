"""Whole files of requests, answered within hours at a lower price.

Rows are packed into input files that an endpoint takes, submitted, watched and joined with their
answers again. What is submitted is in the journal first, so that no row is paid for twice.
"""

from __future__ import annotations

from scaleinfer.batch._choice import Choice, cancel_after, choose_mode, next_place
from scaleinfer.batch._client import BatchClient
from scaleinfer.batch._options import Batch
from scaleinfer.batch._rows import Row
from scaleinfer.batch._waiting import Landed, Taker

__all__ = [
    "Batch",
    "BatchClient",
    "Choice",
    "Landed",
    "Row",
    "Taker",
    "cancel_after",
    "choose_mode",
    "next_place",
]
