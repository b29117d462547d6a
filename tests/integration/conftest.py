"""Fixtures of the tests that use the embedded model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def local_model(request: pytest.FixtureRequest) -> Path:
    """The embedded model's file, installed once into pytest's cache folder.

    Its `parent.parent` is what `SCALEINFER_DATA` must be for a process that is to find it.
    """
    from scaleinfer.backends._local_files import install_model

    assert request.config.cache is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SCALEINFER_LOCAL_MODEL", raising=False)
        patch.setenv("SCALEINFER_DATA", str(request.config.cache.mkdir("scaleinfer")))
        path = install_model(progress=lambda _line: None)
    return path


@pytest.fixture(scope="session")
def local_engine(local_model: Path) -> Iterator[Path]:
    """The model's file with its engine running, as one engine serves a whole process."""
    from scaleinfer.backends._local_shared import close_engines, shared_engine

    shared_engine(local_model).ready.result()
    yield local_model
    close_engines()
