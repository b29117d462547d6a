"""Where a node keeps its journal: a file for each thread and node, with one writer each.

LangGraph runs a node again after a crash, with the same thread id, and the node then asks only
for what the journal does not have. A node may run several times at once: `Send` starts it once
per payload, and a graph within a graph may be sent as well. Such a run's file is named after
its items, so that it finds them again whatever the order of the sends; equal ones that run at
the same time take numbers.

A journal that nobody asked for serves a run that did not end, and no other: a graph that comes
by the same node again, in a loop or with the thread's next invocation, wants new answers. The
file beside it, `NAME.db-done`, names the task that ended; another task begins anew.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
import threading
import weakref
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Place", "claimed", "folder_of", "journal_path"]

DEFAULT_FOLDER = Path(".scaleinfer", "threads")
"""Below the working directory, unless `SCALEINFER_THREADS` names another folder."""

_LOG = logging.getLogger("scaleinfer")
_PUSH = "__pregel_push"
_NAME = 80

_in_use: set[Path] = set()
_lock = threading.Lock()
_temporary: weakref.WeakKeyDictionary[Any, Path] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node runs.

    Attributes:
        node: Its name.
        thread: The thread's id; `None` without one.
        graphs: Names of the nodes whose graphs it is in, outermost first.
        sent: True if a `Send` started it.
        task: LangGraph's name for this run of the node, which a run after a crash has too;
            `None` outside a graph.
        checkpointer: What keeps the thread, if anything does.
    """

    node: str
    thread: str | None = None
    graphs: tuple[str, ...] = ()
    sent: bool = False
    task: str | None = None
    checkpointer: Any = None

    @classmethod
    def of(cls, config: Mapping[str, Any], default: str) -> Place:
        """Read it from a node's `RunnableConfig`.

        Args:
            config: As LangGraph gives it to a node.
            default: Name of the node if it runs outside a graph.
        """
        configurable = config.get("configurable") or {}
        metadata = config.get("metadata") or {}
        thread = configurable.get("thread_id")
        # "outer:task|1|inner:task": a name and a task at each level; numbers tell calls apart.
        task = str(configurable.get("checkpoint_ns") or "")
        levels = task.split("|")
        names = [level.partition(":")[0] for level in levels if level and not level.isdigit()]
        path: tuple[Any, ...] = metadata.get("langgraph_path") or ("",)
        return cls(
            node=str(metadata.get("langgraph_node") or default),
            thread=None if thread is None else str(thread),
            graphs=tuple(names[:-1]),
            sent=path[0] == _PUSH,
            task=task or None,
            checkpointer=configurable.get("__pregel_checkpointer"),
        )


def folder_of(place: Place, journal: bool | str | os.PathLike[str] | None) -> Path | None:
    """Return the folder in which a thread's journals are; `None` for no journal.

    Args:
        place: Where the node runs.
        journal: What the user said: a folder, True, False, or nothing, which is True where
            there is a checkpointer.
    """
    if journal is False or (journal is None and not place.checkpointer):
        return None
    if journal is None or journal is True:
        if _in_memory(place.checkpointer):
            return _beside(place.checkpointer)
        root = Path(os.environ.get("SCALEINFER_THREADS") or DEFAULT_FOLDER)
    else:
        root = Path(journal)
    folder = root / _file_name(place.thread or "no-thread")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if journal is not None:
            raise
        _LOG.warning(
            "%s: no journal, since %s cannot be made (%s): a run again would ask everything. "
            "Set SCALEINFER_THREADS or journal= to a folder that can be written.",
            place.node, folder, error,
        )  # fmt: skip
        return None
    return folder


def _in_memory(checkpointer: Any) -> bool:
    from langgraph.checkpoint.memory import InMemorySaver

    return isinstance(checkpointer, InMemorySaver)


def _beside(checkpointer: Any) -> Path:
    """Return a folder that lives as long as a checkpointer that is in memory.

    A later process that uses the same thread id has nothing to do with it.
    """
    with _lock:
        folder = _temporary.get(checkpointer)
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="scaleinfer-threads-"))
            weakref.finalize(checkpointer, shutil.rmtree, folder, ignore_errors=True)
            _temporary[checkpointer] = folder
    return folder


def journal_path(folder: Path, place: Place, items: Any) -> Path:
    """Return the journal of one run of a node, as long as no other one is under way."""
    name = ".".join(map(_file_name, (*place.graphs, place.node)))
    if place.sent or place.graphs:
        name += f".{_digest(items)}"
    if _in_memory(place.checkpointer):
        name = f"{_file_name(place.thread or 'no-thread')}.{name}"
    return folder / f"{name}.db"


@contextmanager
def claimed(path: Path | None, task: str | None = None) -> Iterator[Path | None]:
    """Take a journal's path, or one with a number if it is taken in this process.

    Args:
        path: The journal's; `None` for none.
        task: The run of the node that it is to serve; `None` to keep it for every later one.
    """
    if path is None:
        yield None
        return
    with _lock:
        taken, number = path.absolute(), 1
        while taken in _in_use:
            number += 1
            taken = path.absolute().with_name(f"{path.stem}-{number}{path.suffix}")
        _in_use.add(taken)
    try:
        if task is not None:
            _begin(taken, task)
        yield taken
        if task is not None:
            _done(taken).write_text(task, encoding="utf-8")
    finally:
        with _lock:
            _in_use.discard(taken)


def _begin(path: Path, task: str) -> None:
    """Remove a journal whose run has ended, unless the same run comes again."""
    try:
        if _done(path).read_text(encoding="utf-8") == task:
            return
        # First of all, so that only one of two processes goes on.
        _done(path).unlink()
    except FileNotFoundError:
        return
    path.unlink(missing_ok=True)


def _done(path: Path) -> Path:
    return path.with_name(f"{path.name}-done")


def _file_name(name: str) -> str:
    """Return a name that is a file's name everywhere, and another one for every other name."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:_NAME]
    if plain == name:
        return plain
    return f"{plain.strip('-')}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"


def _digest(items: Any) -> str:
    """Return a hash of a list of items that other processes come to as well, if they can."""
    listed = items if isinstance(items, list | tuple) else []
    options = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_SORT_KEYS
    digest = hashlib.blake2b(digest_size=6)
    for item in listed:
        digest.update(orjson.dumps(item, default=_plain, option=options) + b"\n")
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    return repr(value) if dump is None else dump(mode="json")
