"""What a blackboard refuses."""

from __future__ import annotations

from typing import Any

import pytest

from scaleinfer import ConfigError
from scaleinfer.patterns import blackboard


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("agents", "options", "words"),
    [
        ({}, {}, "needs agents"),
        (["{}"], {}, "needs agents"),
        ({"a": "no field"}, {}, "names no field"),
        ({"a": 3}, {}, "prompt_fn of 'a' must be a function"),
        ({"a": "{n}"}, {"rounds": 0}, "rounds must be at least 1"),
        ({"a": "{n}"}, {"until": 3}, "until must be a function"),
    ],
)
async def test_what_is_refused_at_once(agents: Any, options: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        await blackboard(agents, {"n": 0}, base_url="http://x", **options)
