"""The package's names: all there, none imported before it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scaleinfer import patterns


@pytest.mark.parametrize("name", patterns.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(patterns, name) is not None
    assert name in dir(patterns)


def test_importing_the_package_imports_nothing_of_it() -> None:
    code = (
        "import sys, scaleinfer.patterns\n"
        "print([m for m in sys.modules if m.startswith('scaleinfer.')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "['scaleinfer._lazy', 'scaleinfer.patterns']"


def test_what_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'vote'"):
        patterns.vote  # noqa: B018  # asked for its error
