"""What a tree reduction refuses, and how texts are measured and cut."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer import ConfigError
from scaleinfer.patterns import tree_reduce
from scaleinfer.patterns._tokens import TokenScale, pieces


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fan_in": 1}, "fan_in must be at least 2"),
        ({"on_missing": "shrug"}, "on_missing must be"),
        ({"prompt_fn": 3}, "prompt_fn must be a function"),
        ({"prompt_fn": "no field"}, "names no field"),
        ({"text": 3}, "text must be a function"),
        ({"mode": "batch"}, "batches take up to a day"),
    ],
)
async def test_what_is_refused_at_once(options: dict[str, Any], words: str) -> None:
    given_options: dict[str, Any] = {"prompt_fn": "{text}", "base_url": "http://x", **options}
    with pytest.raises(ConfigError, match=words):
        await tree_reduce(["a"], **given_options)


def test_tokens_are_estimated_on_the_safe_side_and_corrected() -> None:
    scale = TokenScale()
    assert scale.tokens("x" * 300) == 111
    scale.calibrate(characters=1_000, tokens=200)
    assert scale.tokens("x" * 300) == 67
    scale.calibrate(characters=1_000, tokens=0)
    assert scale.tokens("x" * 300) == 67
    assert TokenScale(len).tokens("abc") == 3


@given(st.text(), st.integers(1, 50))
def test_pieces_are_the_text(text: str, limit: int) -> None:
    found = pieces(text, limit, TokenScale(len))
    assert "".join(found) == text
    assert all(0 < len(piece) <= limit for piece in found)


def test_a_text_is_cut_where_it_hurts_least() -> None:
    paragraphs = "One two. Three four.\n\nFive six. Seven eight."
    assert pieces(paragraphs, 30, TokenScale(len)) == [paragraphs[:22], paragraphs[22:]]
    assert pieces("One two. Three four.", 12, TokenScale(len)) == ["One two. ", "Three four."]
    assert pieces("one two three", 9, TokenScale(len)) == ["one two ", "three"]
    assert pieces("abcdefgh", 3, TokenScale(len)) == ["abc", "def", "gh"]


def test_a_limit_that_nothing_fits_is_refused() -> None:
    with pytest.raises(ConfigError, match="no text is within 1 tokens"):
        pieces("abc", 1, TokenScale(lambda text: 2 * len(text)))
