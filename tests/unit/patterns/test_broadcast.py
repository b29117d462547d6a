"""What a broadcast refuses."""

from __future__ import annotations

from typing import Any

import pytest

from scaleinfer import ConfigError, OpenAIBackend
from scaleinfer.patterns import broadcast

URL = "http://127.0.0.1:9/v1"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("backends", "options", "words"),
    [
        (None, {}, "somebody to ask"),
        ([], {"models": []}, "somebody to ask"),
        ([URL], {"base_url": URL}, "both say whom to ask"),
        ([URL], {"backend": URL}, "both say whom to ask"),
        ([URL, URL], {}, "was named twice"),
        (None, {"models": ["a", "a"], "base_url": URL}, "was named twice"),
        (["nowhere:"], {}, "is unknown"),
    ],
)
async def test_what_is_refused_at_once(backends: Any, options: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        await broadcast("Hi", backends, **options)


@pytest.mark.anyio
async def test_two_models_of_one_endpoint_are_two_rows() -> None:
    backends = [OpenAIBackend(URL, model="a"), OpenAIBackend(URL, model="a")]
    with pytest.raises(ConfigError, match="v1 a was named twice"):
        await broadcast("Hi", backends)
