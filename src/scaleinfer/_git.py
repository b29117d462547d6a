"""The state of the repository that a program is in: which commit, and whether it was changed."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["git_state", "source_folder"]

_PATIENCE_S = 2.0
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")
_MOST_LINKS = 5


def source_folder(function: Any) -> Path:
    """Return the folder of a function's source; where there is none, the current one."""
    try:
        path = inspect.getsourcefile(inspect.unwrap(function)) if callable(function) else None
    except (TypeError, OSError, ValueError):
        path = None
    if path is None or not os.path.isabs(path) or not os.path.exists(path):
        return Path.cwd()
    folder = Path(path).parent
    # A notebook's cells are files in a temporary folder: the notebook itself is elsewhere.
    return Path.cwd() if "ipykernel" in folder.name else folder


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return commit, branch and whether tracked files differ from them.

    The commit is read from the repository's files; only for the differences `git` is asked, two
    seconds at the most.

    Args:
        folder: Any folder of the repository.

    Returns:
        `commit` (`None` before the first), `branch` (`None` if no branch is checked out) and
        `dirty` (`None` if that could not be found out in time); `None` outside a repository.
    """
    try:
        found = _repository(folder)
        if found is None:
            return None
        root, git = found
        branch, commit = _head(git)
    except OSError:
        return None
    return {"commit": commit, "branch": branch, "dirty": _dirty(root)}


def _repository(folder: Path) -> tuple[Path, Path] | None:
    for root in (folder, *folder.parents):
        git = root / ".git"
        if git.is_dir():
            return root, git
        if git.is_file():  # of a worktree or a submodule
            target = git.read_text("utf-8", "replace").removeprefix("gitdir:").strip()
            return root, (root / target)
    return None


def _head(git: Path) -> tuple[str | None, str | None]:
    common = git / "commondir"
    shared = git / common.read_text("utf-8").strip() if common.is_file() else git
    text = (git / "HEAD").read_text("utf-8", "replace").strip()
    branch = None
    for _ in range(_MOST_LINKS):
        if not text.startswith("ref:"):
            break
        name = text.removeprefix("ref:").strip()
        branch = branch or name.removeprefix("refs/heads/")
        text = _reference(shared, name)
    return branch, text if _COMMIT.match(text) else None


def _reference(git: Path, name: str) -> str:
    loose = git / name
    if loose.is_file():
        return loose.read_text("utf-8", "replace").strip()
    packed = git / "packed-refs"
    if packed.is_file():
        for line in packed.read_text("utf-8", "replace").splitlines():
            commit, _, other = line.partition(" ")
            if other == name:
                return commit
    return ""


def _dirty(root: Path) -> bool | None:
    command = ["git", "-c", "core.fsmonitor=false", "status", "--porcelain", "-uno"]
    try:
        done = subprocess.run(
            command,
            cwd=root,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return bool(done.stdout.strip()) if done.returncode == 0 else None
