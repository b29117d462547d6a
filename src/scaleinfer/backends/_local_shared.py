"""One engine for each model and way of computing in this process, ended with the process."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from typing import TYPE_CHECKING

from scaleinfer.backends._local_engine import Engine
from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["close_engines", "shared_engine"]

_engines: dict[tuple[Path, bool, int | None], Engine] = {}
_engines_lock = threading.Lock()
_loaded_before_fork = False


def shared_engine(path: Path, *, exact: bool = False, threads: int | None = None) -> Engine:
    """Return this process's engine for a model file, starting it if there is none.

    Raises:
        ConfigError: The file is no model, or this process was forked from one that had
            loaded the runtime.
    """
    if _loaded_before_fork:
        raise ConfigError(
            "The embedded model was loaded before this process was forked, and its threads "
            "are gone.",
            hint="Start worker processes with the spawn method, or use the model in them only.",
        )
    key = (path.resolve(), exact, threads)
    with _engines_lock:
        engine = _engines.get(key)
        if engine is None or engine.dead:
            engine = _engines[key] = Engine(key[0], exact=exact, threads=threads)
        return engine


def close_engines() -> None:
    """End all engines of the process and wait for their threads."""
    with _engines_lock:
        engines = list(_engines.values())
        _engines.clear()
    for engine in engines:
        engine.close()


def _forget_engines() -> None:
    global _loaded_before_fork, _engines_lock  # noqa: PLW0603 - the child's own state
    _loaded_before_fork = _loaded_before_fork or bool(_engines)
    _engines.clear()
    _engines_lock = threading.Lock()


# Daemon threads still run when atexit's callbacks do, so the C++ runtime is gone before the
# interpreter is.
atexit.register(close_engines)
with contextlib.suppress(AttributeError):  # there is no fork on Windows
    os.register_at_fork(after_in_child=_forget_engines)
