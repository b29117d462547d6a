from __future__ import annotations

import html.parser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from scaleinfer.errors import Permanent, PromptError, RateLimited, SchemaError
from scaleinfer.observe import ResultSummary, result_html, result_text
from scaleinfer.observe._summary import shorten
from scaleinfer.results import Result, Usage


class Verdict(BaseModel):
    soluble: bool
    reason: str


def results() -> list[Result]:
    found = []
    for n in range(30):
        result = Result(f"k{n}", n, {"smiles": "C<O>", "n": n}, attempts=1, latency_s=0.5)
        if n % 5 == 0:
            result.error = RateLimited("come back <later>", status=429)
        elif n == 1:
            result.error = SchemaError("no JSON", hint="Raise max_tokens.")
        else:
            result.ok, result.value = True, Verdict(soluble=True, reason="a & b")
        found.append(result)
    found[2].resumed = True
    found[3].finish_reason = "length"
    return found


def summary(**changes: Any) -> ResultSummary:
    values: dict[str, Any] = {
        "total": 30,
        "ok": 23,
        "failed": 7,
        "resumed": 1,
        "elapsed_s": 83.0,
        "usage": Usage(812_000, 91_000, 0, 30),
        "cost_usd": 0.0312,
        "stopped": "Ctrl-C <now>",
        "name": "<b>molecules",
    }
    return ResultSummary(**(values | changes))


class Reader(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parsed(content: str) -> Reader:
    reader = Reader()
    reader.feed(content)
    reader.close()
    assert reader.open == []
    assert reader.tags <= {"div", "b", "span", "table", "thead", "tbody", "tr", "th", "td"}
    return reader


def test_the_html_shows_results_and_failures_by_kind() -> None:
    words = parsed(result_html(summary(), results())).words
    assert "<b>molecules" in words
    assert (
        "23 ok · 7 failed · 1 resumed · 1:23 · 20.9/min · 812k + 91k tokens · $0.031" in words
        or ("23 ok · 7 failed · 1 resumed · 1:23 · 21/min · 812k + 91k tokens · $0.031" in words)
    )
    assert "Stopped: Ctrl-C <now>" in words
    assert "smiles=C<O>, n=2" in words
    assert "soluble=True, reason=a & b" in words
    assert "soluble=True, reason=a & b (cut)" in words
    assert "resumed" in words
    assert "and 20 more" in words
    assert words.count("RateLimited 429") == 1
    assert "item 0: come back <later>" in words
    assert "Raise max_tokens." in words
    assert words.index("6", words.index("failed")) < words.index("SchemaError")


def test_the_text_shows_the_same() -> None:
    text = result_text(summary(), results())
    assert "23 ok, 7 failed, 1 resumed, 1:23" in text
    assert "  6 x RateLimited 429, for example item 0: come back <later>" in text
    assert "Raise max_tokens." in text
    assert "and 20 more" in text
    assert "soluble=True, reason=a & b (cut)" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("journal", [None, "run.db"])
def test_advice_speaks_of_a_journal_as_there_was_one(journal: str | None) -> None:
    text = result_text(summary(journal=journal), results())
    assert ("the same journal" in text) == (journal is not None)


def test_nothing_and_all_well() -> None:
    nothing = ResultSummary(0, 0, 0)
    assert result_text(nothing, []) == "scaleinfer: 0 ok, 0.0 s"
    parsed(result_html(nothing, []))
    good = [Result("k", 0, "CCO", ok=True, value="yes", attempts=1)]
    content = result_html(ResultSummary(1, 1, 0), good)
    assert "more" not in content
    assert "failed" not in content


anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=9),
    max_leaves=10,
)


@given(
    item=anything, value=anything, message=st.text(), ok=st.booleans(), width=st.integers(40, 120)
)
def test_any_item_and_value_is_shown_safely(
    item: Any, value: Any, message: str, ok: bool, width: int
) -> None:
    error = None if ok else PromptError(message, hint=message)
    result = Result("k", 0, item, ok=ok, value=value if ok else None, error=error)
    whole = ResultSummary(1, int(ok), int(not ok), name=message)
    parsed(result_html(whole, [result]))
    text = result_text(whole, [result], width=width)
    table = text.splitlines()[1:]
    assert max(map(len, table)) <= width
    assert all(line.isprintable() for line in text.splitlines())


def test_huge_items_are_cut_before_they_are_looked_at() -> None:
    image = {"image": "x" * 50_000_000, "more": list(range(1_000_000))}
    assert shorten(image, 60) == "image=" + "x" * 53 + "…"
    assert len(shorten(list(range(1_000_000)), 60)) <= 60
    assert shorten(Permanent("no"), 60) == "Permanent('no')"
