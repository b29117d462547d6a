"""Streamed text adds up to the whole text, whatever the tokens' borders."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.backends._local_text import TextStream, cut_at_stop


def _decode(token_ids: list[int]) -> str:
    return bytes(token_ids).decode("utf-8", "replace")


def _pieces(data: bytes, borders: list[int]) -> list[list[int]]:
    cuts = sorted({min(border, len(data)) for border in borders} | {0, len(data)})
    return [list(data[a:b]) for a, b in itertools.pairwise(cuts)]


@given(
    st.text(alphabet="abé日😀", max_size=20),
    st.lists(st.integers(0, 60)),
    st.lists(st.text(alphabet="abé", min_size=1, max_size=3), max_size=2),
)
def test_deltas_add_up(text: str, borders: list[int], stop: list[str]) -> None:
    stream = TextStream(_decode, tuple(stop))
    given_text = "".join(stream.feed(piece) for piece in _pieces(text.encode(), borders))
    assert text.startswith(given_text)
    assert given_text + stream.finish() == cut_at_stop(text, tuple(stop))


def test_cut_is_at_the_first_stop_string() -> None:
    assert cut_at_stop("one two three", ("three", "two")) == "one "
    assert cut_at_stop("one", ()) == "one"


def test_text_is_given_at_once_without_stop_strings() -> None:
    stream = TextStream(_decode)
    assert stream.feed(list(b"abc")) == "abc"
    assert stream.feed(list("é".encode())[:1]) == ""
    assert stream.feed(list("é".encode())[1:]) == "é"
