"""One sequence in a batch, and the states it goes through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

__all__ = ["DECODING", "FINISHED", "LEFT", "PREFILL", "WAITING", "BatchedRequest"]

T = TypeVar("T")

WAITING, PREFILL, DECODING, FINISHED, LEFT = range(5)


class BatchedRequest(Generic[T]):
    """One sequence on its way through a `BatchingModel`.

    Attributes:
        who: Whatever the caller wants to find again.
        prompt_tokens: Tokens of its prompt.
        answer_tokens: Tokens of its answer.
        cached_tokens: Prompt tokens that came from the prefix cache; known once admitted.
        arrived: Time of its arrival.
        admitted: Time at which it got a slot; `None` while it waits.
        started: Time at which its prompt was computed and decoding began; `None` before.
        finished: Time of its last token; `None` before.
    """

    __slots__ = (
        "admitted", "answer_tokens", "arrived", "blocks", "cached_tokens", "finished",
        "prompt_tokens", "started", "state", "token_clock", "watched", "who",
    )  # fmt: skip

    def __init__(self, who: T, prompt_tokens: int, answer_tokens: int, arrived: float) -> None:
        self.who = who
        self.prompt_tokens = prompt_tokens
        self.answer_tokens = answer_tokens
        self.cached_tokens = 0
        self.arrived = arrived
        self.admitted: float | None = None
        self.started: float | None = None
        self.finished: float | None = None
        self.blocks: Sequence[Hashable] = ()
        self.watched = False
        self.state = WAITING
        self.token_clock = 0.0
