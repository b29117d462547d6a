"""Where a node's journal is: one writer each, found again after a crash."""

from __future__ import annotations

import gc
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel

from scaleinfer.langgraph._journals import Place, claimed, folder_of, journal_path

SAVER = object()
PLACE = Place("ask", thread="7", task="ask:one", checkpointer=SAVER)


def config(ns: str, path: tuple[Any, ...], **more: Any) -> dict[str, Any]:
    return {
        "configurable": {"thread_id": 7, "checkpoint_ns": ns, "__pregel_checkpointer": SAVER},
        "metadata": {"langgraph_node": "ask", "langgraph_path": path},
    } | more


def test_a_place_is_read_from_the_config() -> None:
    assert Place.of(config("ask:one", ("__pregel_pull", "ask")), "x") == PLACE
    sent = Place.of(config("outer:a|1|ask:two", ("__pregel_push", 3, False)), "x")
    assert (sent.graphs, sent.sent, sent.task) == (("outer",), True, "outer:a|1|ask:two")
    assert Place.of({}, "alone") == Place("alone")


def test_without_a_checkpointer_there_is_no_journal(tmp_path: Path) -> None:
    nowhere = replace(PLACE, checkpointer=None)
    assert folder_of(nowhere, None) is None
    assert folder_of(PLACE, False) is None
    assert folder_of(nowhere, tmp_path) == tmp_path / "7"


def test_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert folder_of(PLACE, None) == Path(".scaleinfer/threads/7")
    monkeypatch.setenv("SCALEINFER_THREADS", str(tmp_path / "elsewhere"))
    assert folder_of(PLACE, True) == tmp_path / "elsewhere" / "7"
    assert (tmp_path / "elsewhere" / "7").is_dir()


def test_a_folder_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SCALEINFER_THREADS", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "scaleinfer"):
        assert folder_of(PLACE, None) is None
    assert "ask: no journal, since" in caplog.text
    with pytest.raises(OSError, match="file"):
        folder_of(PLACE, True)


def test_of_a_checkpointer_in_memory_it_is_temporary() -> None:
    saver = InMemorySaver()
    folder = folder_of(replace(PLACE, checkpointer=saver), None)
    assert folder is not None
    assert folder.is_dir()
    assert folder_of(replace(PLACE, checkpointer=saver), None) == folder
    other = folder_of(replace(PLACE, checkpointer=(second := InMemorySaver())), None)
    assert other != folder
    names = {
        journal_path(folder, replace(PLACE, thread=thread, checkpointer=saver), [])
        for thread in ("1", "2")
    }
    assert len(names) == 2
    del saver, second
    gc.collect()
    assert not folder.exists()


def test_names_are_files_names_and_differ(tmp_path: Path) -> None:
    threads = ["a/b", "a-b", "../up", "ä", "", "x" * 300, "x" * 301]
    folders = [folder_of(replace(PLACE, thread=thread), tmp_path) for thread in threads]
    assert len(set(folders)) == len(threads)
    for folder in folders:
        assert folder is not None
        assert folder.resolve().parent == tmp_path.resolve()
    assert journal_path(tmp_path, PLACE, []) == tmp_path / "ask.db"


class Item(BaseModel):
    name: str


def test_a_sent_nodes_journal_is_found_by_its_items(tmp_path: Path) -> None:
    sent = replace(PLACE, sent=True)

    def path(items: Any, place: Place = sent) -> Path:
        return journal_path(tmp_path, place, items)

    assert path([{"a": 1, "b": 2}]) == path([{"b": 2, "a": 1}])
    assert path([Item(name="x")]) == path([Item(name="x")])
    different = [path(["a"]), path(["b"]), path(["a", "b"]), path([Item(name="x")]), path([b"x"])]
    different.append(path(["a"], replace(PLACE, graphs=("outer",))))
    assert len(set(different)) == len(different)


def test_one_writer_each(tmp_path: Path) -> None:
    path = tmp_path / "ask.db"
    with claimed(path) as first, claimed(path) as second, claimed(path) as third:
        assert [first, second, third] == [path, tmp_path / "ask-2.db", tmp_path / "ask-3.db"]
    with claimed(path) as again:
        assert again == path
    with claimed(None) as none:
        assert none is None


def run(path: Path, task: str | None, *, crash: bool = False) -> bool:
    """Run a node; return whether it found what an earlier run had written."""
    try:
        with claimed(path, task) as taken:
            assert taken is not None
            found = taken.exists()
            taken.write_text("answers")
            if crash:
                raise RuntimeError("crashed")
    except RuntimeError:
        pass
    return found


def test_a_run_that_did_not_end_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "ask.db"
    assert not run(path, "one", crash=True)
    assert run(path, "one", crash=True), "the same task again"
    assert run(path, "two"), "the thread was invoked anew"
    assert run(path, "two"), "it had ended, but LangGraph had not heard of it"
    assert not run(path, "three"), "a new run of the node asks anew"
    assert not run(tmp_path / "kept.db", None)
    assert run(tmp_path / "kept.db", None), "a journal that was asked for is kept"
    shutil.rmtree(tmp_path)
