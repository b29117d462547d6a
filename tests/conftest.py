"""Fixtures every test uses."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio only: the wire client needs it."""
    return "asyncio"
