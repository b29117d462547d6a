from __future__ import annotations

import base64
import hashlib
import html.parser
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.errors import ConfigError, Permanent, RateLimited
from scaleinfer.observe import (
    Digest,
    Place,
    ResultSummary,
    RunRecord,
    Table,
    report_page,
    write_report,
)
from scaleinfer.observe._digest import full_text
from scaleinfer.observe._escape import shown
from scaleinfer.observe._plots import distributions
from scaleinfer.results import Attempt, Result, Usage

if TYPE_CHECKING:
    from pathlib import Path

START = 1_700_000_000.0
VOID = {"meta", "input", "path", "rect", "circle"}
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)> \u202e\0\ud800 \"'&"


class Page(html.parser.HTMLParser):
    """Checks that tags nest, and keeps what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def record(endpoints: int = 2) -> RunRecord:
    found = RunRecord(START)
    for number in range(300):
        name = f"http://<{number % endpoints}>/v1"
        bad = number % 10 == 0
        found.attempted(
            Attempt(
                1,
                name,
                START + number / 10,
                0.4,
                "RateLimited" if bad else "ok",
                429 if bad else None,
                100,
                20,
                cost_usd=0.001,
            )
        )
        found.limits(number / 10, [Place(name, 8 + number // 30, "<finding> the knee")])
    return found


def results(number: int = 40, text: str = "CCO") -> list[Result]:
    found = []
    for n in range(number):
        ok = n % 4 != 0
        error = None if ok else RateLimited(f"come back {text}", status=429)
        found.append(
            Result(
                f"k{n}",
                n,
                {"smiles": text, "n": n},
                ok=ok,
                value=f"answer {n} {text}",
                error=error,
                usage=Usage(10, 5, 0, 1),
                attempts=1,
                latency_s=n / 10,
                endpoint=text,
            )
        )
    return found


def page(shown_results: list[Result], **changes: Any) -> str:
    whole = ResultSummary(len(shown_results), 1, 2, name=EVIL, stopped=EVIL, journal=EVIL)
    values: dict[str, Any] = {
        "record": record(),
        "manifest": {"prompt_fn": EVIL, "packages": {"scaleinfer": EVIL}, "list": [1, EVIL]},
        "where": EVIL,
        "tables": [Table(EVIL, (EVIL, "#n"), [(EVIL, EVIL)], EVIL)],
    }
    return report_page(whole, Digest(shown_results), **values | changes)


def test_whatever_a_text_holds_it_is_only_shown() -> None:
    text = page(results(text=EVIL))
    read = Page(text)
    assert read.count("script") == 1
    assert read.count("img") == 0
    assert not any(name.startswith("on") for _, attrs in read.tags for name in attrs)
    assert any("</script><script>alert(1)" in words for words in read.words)
    assert "\0" not in text
    assert "\u202e" not in text
    assert "⟨U+202E⟩" in text
    assert "⟨U+0000⟩" in text
    text.encode("utf-8")


@given(st.text(max_size=200))
def test_any_text_keeps_the_page_whole(text: str) -> None:
    Page(f'<p title="{shown(text)}">{shown(text)}</p>')
    shown(text).encode("utf-8")


def test_nothing_is_fetched_and_only_our_own_script_and_style_count() -> None:
    text = page(results())
    read = Page(text)
    policy = next(
        attrs["content"] or ""
        for tag, attrs in read.tags
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        [content] = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert {"link", "iframe", "object", "embed", "base", "form"}.isdisjoint(
        tag for tag, _ in read.tags
    )
    names = {name for _, attrs in read.tags for name in attrs}
    assert names.isdisjoint({"src", "href", "srcset", "action", "style", "xlink:href"})


def test_charts_show_what_happened() -> None:
    read = Page(page(results()))
    words = " ".join(read.words)
    # Answers, calls in flight (all, and each of two), tokens, errors, cost, three distributions.
    assert read.count("svg") == 10
    assert "RateLimited 429 (30)" in words
    assert "The limiters' decisions" in words
    assert "<finding> the knee" in words
    assert "p50" in words


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 7, 11])
def test_quantiles_of_tokens_are_whole_and_not_below_the_least(tokens: int) -> None:
    one = RunRecord(START)
    one.attempted(*[Attempt(1, "a", START, 0.1, "ok", None, tokens, tokens)] * 40)
    assert distributions(one).count(f"p50 {tokens}, p90 {tokens}, p99 {tokens}") == 2


def test_many_endpoints_become_one_line() -> None:
    read = Page(page(results(), record=record(endpoints=20)))
    assert sum(words == "all others" for words in read.words) >= 2
    assert read.count("svg") < 16


def test_a_run_without_calls_has_no_charts() -> None:
    for nothing in (None, RunRecord(START)):
        read = Page(page([], record=nothing))
        assert read.count("svg") == 0
    one = RunRecord(START)
    one.attempted(Attempt(1, "a", START, 0.0, "ok"))
    Page(page([], record=one))


def test_slowest_and_failed_items_are_picked() -> None:
    digest = Digest(results(3000))
    assert (digest.total, digest.ok, digest.failed) == (3000, 2250, 750)
    assert [result.index for result in digest.slowest[:2]] == [2999, 2998]
    assert len(digest.slowest) == 50
    assert len(digest.bad) == 500
    assert len(digest.first) == 200
    assert [(group.kind, group.count) for group in digest.failures] == [("RateLimited 429", 750)]
    assert digest.usage == Usage(30_000, 15_000, 0, 3000)


def test_resumed_items_were_not_slow() -> None:
    found = results(4)
    found[3].resumed = True
    assert [result.index for result in Digest(found).slowest] == [2, 1]


def test_restricted_items_are_named_but_not_shown() -> None:
    found = results(8, text="secret formula")
    for result in found:
        result.restricted, result.endpoint = True, "site"
    text = page(found)
    assert "secret formula" not in text
    assert "restricted by the policy" in text


@pytest.mark.parametrize(
    "value",
    [
        "x" * 50_000_000,
        {"image": "x" * 50_000_000, "more": list(range(1_000_000))},
        list(range(1_000_000)),
        {"a": {"b": {"c": [[[[[[[[1]]]]]]]]}}},
        b"x" * 1_000_000,
        {1: 10**100, "\ud800": "\ud800"},
    ],
    ids=["text", "dict", "list", "deep", "bytes", "odd"],
)
def test_huge_and_odd_values_are_cut(value: Any) -> None:
    text = full_text(value, 2000)
    assert len(text) < 2100
    shown(text).encode()


def test_the_size_does_not_grow_with_the_run(tmp_path: Path) -> None:
    sizes = []
    for number in (3000, 12_000):
        path = tmp_path / f"{number}.html"
        write_report(path, ResultSummary(number, 0, 0), results(number), record=record())
        sizes.append(path.stat().st_size)
    assert sizes[1] < 1.1 * sizes[0]
    with pytest.raises(ConfigError, match="cannot be written"):
        write_report(tmp_path / "no" / "r.html", ResultSummary(0, 0, 0), [])


def test_errors_without_a_status_are_shown() -> None:
    found = [Result("k", 0, None, error=Permanent("no <b>"))]
    words = Page(page(found)).words
    assert "no <b>" in words
    assert "Permanent: no <b>" in words
    assert "k" in words
