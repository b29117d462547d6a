"""What a call asks of the pool of endpoints."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaleinfer.engine._call import Call
    from scaleinfer.engine._pool import Pool
    from scaleinfer.policy import Audience
    from scaleinfer.requests import Request

__all__ = ["ANYWHERE", "Want", "Wants"]

_ANSWER_TOKENS = 256
"""Tokens expected of an answer without `max_tokens`, for rate limits; corrected afterwards."""
_CHARACTERS_PER_TOKEN = 4


@dataclass(slots=True)
class Want:
    """What a call asks of the pool.

    Attributes:
        tokens: Tokens it will probably use; only rate limits care.
        affinity: Group of calls that share a prompt prefix.
        avoid: Endpoints that have just failed it.
        remaining: Items left in the run, if that is known.
        audience: Who may see it, if not everybody.
    """

    tokens: int = 0
    affinity: int | None = None
    avoid: tuple[int, ...] = ()
    remaining: int | None = None
    audience: Audience | None = None


ANYWHERE = Want()


class Wants:
    """Says what the calls of a run ask of its pool; nothing that the pool has no use for.

    Args:
        pool: The endpoints' state.
        several: True if there is, or may come, more than one endpoint.

    Attributes:
        several: The same.
        rated: True once an endpoint has told a rate limit of its own.
    """

    def __init__(self, pool: Pool, *, several: bool) -> None:
        self.several = several
        self.rated = False
        self._pool = pool

    def of(self, call: Call, unasked: int | None = None) -> Want:
        """Return what a request's first call wants; with so many items that nobody works on."""
        rated, audience = self.rated or self._pool.rated, call.audience
        if not self.several and not rated and audience is None:
            return ANYWHERE
        tokens = _expected_tokens(call.request) if rated else 0
        return Want(tokens, call.affinity if self.several else None, (), unasked, audience)

    def of_pack(self, requests: Sequence[Request], audience: Audience | None) -> Want:
        """Return what a call for several requests wants."""
        rated = self.rated or self._pool.rated
        return Want(sum(map(_expected_tokens, requests)) if rated else 0, audience=audience)

    def after(self, want: Want, failed: int, unasked: int | None) -> Want:
        """Return what a request wants once an endpoint has failed it."""
        if not self.several:
            return want
        avoid = (*want.avoid, failed)
        if not self._pool.has_other(set(avoid), want.audience):
            avoid = (failed,)
        return replace(want, avoid=avoid, remaining=unasked)

    def has_elsewhere(self, want: Want, failed: int) -> bool:
        """True if another endpoint than those that failed a request would take it now."""
        return self.several and self._pool.has_other({*want.avoid, failed}, want.audience)


def _expected_tokens(request: Request) -> int:
    if request.input is not None:
        return len(request.input) // _CHARACTERS_PER_TOKEN + 1
    asked = request.prompt or ""
    characters = len(asked) + sum(len(str(m.get("content"))) for m in request.messages or ())
    sampling = request.sampling
    answers = (sampling.max_tokens or _ANSWER_TOKENS) * (sampling.n or 1)
    return characters // _CHARACTERS_PER_TOKEN + answers
