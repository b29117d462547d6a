"""What the tests of the data room share."""

from __future__ import annotations

import polars as pl
import pytest


@pytest.fixture(scope="session", autouse=True)
def _polars_has_started() -> None:
    """Have polars make the event queues that it keeps for the life of the process."""
    pl.LazyFrame({"n": [1]}).collect()
