from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

import scaleinfer

HEAVY = (
    "academy",
    "aiohttp",
    "asyncio",
    "click",
    "datasets",
    "genai_prices",
    "gguf",
    "globus_compute_sdk",
    "httpx",
    "langchain_core",
    "langgraph",
    "numpy",
    "openai",
    "openvino",
    "openvino_genai",
    "orjson",
    "pandas",
    "polars",
    "pyarrow",
    "pydantic",
    "rich",
    "tenacity",
    "xllamacpp",
)


def loaded_by(code: str) -> set[str]:
    """Return which heavy packages a fresh interpreter has loaded after `code`."""
    show = f"{code}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", show], capture_output=True, text=True, check=True, timeout=60
    )
    return {name.partition(".")[0] for name in json.loads(done.stdout)} & set(HEAVY)


def test_at_most_thirty_public_names_that_all_exist() -> None:
    assert len(scaleinfer.__all__) <= 30
    assert sorted(scaleinfer.__all__) == scaleinfer.__all__
    for name in scaleinfer.__all__:
        assert getattr(scaleinfer, name).__name__ == name
    assert set(scaleinfer.__all__) < set(dir(scaleinfer))


def test_every_error_is_public() -> None:
    from scaleinfer import errors

    assert set(errors.__all__) - {"error_from_dict"} < set(scaleinfer.__all__)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'parallel_mop'"):
        scaleinfer.parallel_mop  # noqa: B018 - the access is the test


@pytest.mark.parametrize(
    "room", ["backends", "data", "engine", "errors", "journal", "mapping", "observe", "testing"]
)
def test_every_name_a_room_offers_exists(room: str) -> None:
    module = importlib.import_module(f"scaleinfer.{room}")
    for name in module.__all__:
        assert hasattr(module, name), f"{room}.{name}"


def test_import_loads_nothing_heavy() -> None:
    assert loaded_by("import scaleinfer; dir(scaleinfer); scaleinfer.__version__") == set()


def test_naming_the_front_door_loads_no_framework_and_no_model_runtime() -> None:
    loaded = loaded_by("from scaleinfer import *")
    allowed = {"asyncio", "orjson"}
    assert loaded - allowed == set()


def test_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert scaleinfer.__version__ == version("scaleinfer")
