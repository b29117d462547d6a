from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.backends._rate_headers import rate_state
from scaleinfer.results import RateState

NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z
OPENAI = {
    "content-type": "application/json",
    "x-ratelimit-limit-requests": "10000",
    "x-ratelimit-limit-tokens": "2000000",
    "x-ratelimit-remaining-requests": "9999",
    "x-ratelimit-remaining-tokens": "1999000",
    "x-ratelimit-reset-requests": "6ms",
    "x-ratelimit-reset-tokens": "6m0s",
}
ANTHROPIC = {
    "anthropic-ratelimit-requests-limit": "50",
    "anthropic-ratelimit-requests-remaining": "49",
    "anthropic-ratelimit-requests-reset": "2027-01-15T08:00:30Z",
    "anthropic-ratelimit-tokens-limit": "40000",
    "anthropic-ratelimit-tokens-remaining": "39000",
    "anthropic-ratelimit-tokens-reset": "2027-01-15T08:01:00Z",
}


@pytest.mark.parametrize(
    ("headers", "state"),
    [
        (OPENAI, RateState(10_000, 9_999, 0.006, 2_000_000, 1_999_000, 360.0)),
        (ANTHROPIC, RateState(50, 49, 30.0, 40_000, 39_000, 60.0)),
        ({"X-RateLimit-Remaining-Requests": "3"}, RateState(None, 3)),
        ({"x-ratelimit-remaining-tokens": "3"}, RateState(remaining_tokens=3)),
        (
            {"ratelimit-limit": "100", "ratelimit-remaining": "50", "ratelimit-reset": "7"},
            RateState(100, 50, 7.0),
        ),
        (
            {"x-ratelimit-limit": "100", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "5"},
            RateState(100, 0, 5.0),
        ),
        ({"content-type": "text/html"}, None),
        ({}, None),
        ({"ratelimit-policy": "10;w=1"}, None),
        ({"x-ratelimit-remaining-requests": "many"}, None),
    ],
)
def test_where_a_client_stands(headers: dict[str, str], state: RateState | None) -> None:
    assert rate_state(headers, now=NOW) == state


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("120ms", 0.12),
        ("2h3m", 7380.0),
        ("1m2.5s", 62.5),
        ("17.7612ms", 0.0177612),
        ("1d", 86_400.0),
        ("250us", 0.00025),
        ("59", 59.0),
        ("0.5", 0.5),
        (" 3s ", 3.0),
        ("-3", 0.0),
        ("0s", 0.0),
        (str(NOW + 20), 20.0),
        (str(int((NOW + 20) * 1000)), 20.0),
        (str(NOW - 20), 0.0),
        ("2027-01-15T08:00:30Z", 30.0),
        ("2027-01-15T09:00:30+01:00", 30.0),
        ("2027-01-15T08:00:30", 30.0),
        ("2020-01-01T00:00:00Z", 0.0),
        ("1970-01-02T00:00:00Z", 0.0),
        ("soon", None),
        ("", None),
        ("3 s", None),
        ("s", None),
        ("5x", None),
        ("nan", None),
        ("1s" * 100, None),
    ],
)
def test_a_reset_in_every_form(text: str, seconds: float | None) -> None:
    headers = {"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": text}
    state = rate_state(headers, now=NOW)
    assert state is not None
    assert state.reset_requests_s == pytest.approx(seconds)


@given(st.sampled_from([OPENAI, ANTHROPIC]), st.text(max_size=40), st.data())
def test_any_value_leaves_a_sane_state(
    headers: dict[str, str], text: str, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(headers)))
    state = rate_state({**headers, name: text}, now=NOW)
    assert state is not None
    for value in state:
        assert value is None or 0 <= value < float("inf")
