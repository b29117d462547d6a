"""Which mode `auto` takes and why, and where rows go that a batch left out."""

from __future__ import annotations

from typing import Any

import pytest

from scaleinfer.backends import BatchLimits
from scaleinfer.batch import Batch, cancel_after, choose_mode, next_place
from scaleinfer.errors import ConfigError

PAID: dict[str, Any] = {
    "available": True, "limits": BatchLimits(), "discount": 0.5, "priced": True,
    "deadline": None, "items": 10_000,
}  # fmt: skip


@pytest.mark.parametrize(
    ("differs", "mode", "why"),
    [
        ({}, "batch", "50 % less and may take up to 24 h"),
        ({"deadline": 90_000}, "batch", "50 % less"),
        ({"items": None}, "batch", "50 % less"),
        ({"deadline": 7200}, "online", "within 2 h 00 min, a batch may take 24 h"),
        ({"available": False}, "online", "no batch API"),
        ({"limits": None}, "online", "no batch API"),
        ({"items": 12}, "online", "12 items are too few"),
        ({"discount": None, "priced": False}, "online", "your own"),
        ({"discount": None}, "online", "not known to be cheaper"),
        ({"discount": 1.0}, "online", "not known to be cheaper"),
    ],
)
def test_auto_says_why(differs: dict[str, Any], mode: str, why: str) -> None:
    choice = choose_mode(**(PAID | differs))
    assert choice.mode == mode
    assert why in choice.why


LEFT: dict[str, Any] = {
    "sent": 1, "leftovers": "auto", "attempts": 8, "time_left": None, "window_s": 86_400.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("differs", "place"),
    [
        ({}, "batch"),
        ({"sent": 2}, "online"),
        ({"time_left": 3600.0}, "online"),
        ({"time_left": 1e6}, "batch"),
        ({"leftovers": "online"}, "online"),
        ({"leftovers": "batch", "sent": 5}, "batch"),
        ({"leftovers": "batch", "sent": 8}, "online"),
        ({"leftovers": "batch", "time_left": 1.0}, "online"),
        ({"attempts": 1}, "online"),
    ],
)
def test_where_rows_go_next(differs: dict[str, Any], place: str) -> None:
    assert next_place(**(LEFT | differs)) == place


def test_a_quarter_of_the_time_is_left_for_the_rest() -> None:
    assert cancel_after(None) is None
    assert cancel_after(1000.0) == 750.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_rows": 0}, {"max_bytes": -1}, {"max_open": 0}, {"leftovers": "nowhere"},
        {"poll_s": (0.0, 1.0)}, {"poll_s": (2.0, 1.0)}, {"settle_s": -1.0},
    ],
)  # fmt: skip
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Batch(**wrong)
