from __future__ import annotations

import math
from typing import Any

import pytest

from scaleinfer.errors import ConfigError
from scaleinfer.testing import Change
from scaleinfer.testing._changes import Timeline, what_of
from scaleinfer.testing._refusals import Refusal


def test_what_is_not_given_stays() -> None:
    assert Change(at=3, until=4).what == {}
    assert Change(slots=3, down=False).what == {"slots": 3, "down": False}


@pytest.mark.parametrize(
    "options",
    [
        {"at": 2, "until": 1},
        {"down": "gone"},
        {"slots": 0},
        {"slots": 1.5},
        {"slowdown": 0},
        {"slowdown": math.inf},
        {"requests_per_second": 0},
        {"requests_per_minute": -1},
        {"tokens_per_minute": 0},
        {"max_waiting": -1},
    ],
)
def test_impossible_changes_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Change(**options)


def test_changes_come_in_the_order_of_their_times() -> None:
    one, two, three = Change(at=5), Change(at=1, until=9), Change(at=5, slots=1)
    timeline = Timeline([one, two, three])
    assert timeline.due == 1
    assert timeline.times() == [1, 5, 9]
    assert timeline.pop(0.5) is None
    assert timeline.pop(7) is two
    timeline.add(Change(at=2))
    assert [timeline.pop(7) for _ in range(4)] == [Change(at=2), one, three, None]
    assert timeline.due == math.inf


def test_messages_to_control() -> None:
    assert what_of(b'{"slots": null, "down": "503"}') == {"slots": math.inf, "down": "503"}
    for data in (b"", b"[]", b'{"unknown": 1}', b'{"slots": 0}', b'{"slots": "many"}', b"3"):
        with pytest.raises(Refusal):
            what_of(data)
