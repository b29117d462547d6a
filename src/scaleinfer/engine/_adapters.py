"""A run's adapters for the endpoints of a pool: they come and go with these."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaleinfer.backends._base import Backend
    from scaleinfer.engine._pool import Pool
    from scaleinfer.requests import Request

__all__ = ["Adapters"]


class Adapters:
    """The adapter of each endpoint of a pool, in the pool's order.

    Args:
        given: What the run was given, opened.
        pool: The endpoints' state.
        model: The model as the run names it.

    Attributes:
        known: The adapters known so far: one list for good, for whoever waits until a call can
            be paid for looks again at what it may cost.
    """

    def __init__(self, given: Sequence[Backend], pool: Pool, model: str | None) -> None:
        self.known = pool.adapters(given)
        self._given = given
        self._pool = pool
        self._model = model
        self._seen = pool.changes
        self._own_names = self._has_own_names()

    def at(self, place: int) -> Backend:
        """Return the adapter of an endpoint; one that has come since is taken note of."""
        if self._seen != self._pool.changes:
            self._seen = self._pool.changes
            self.known[:] = self.all()
            self._own_names = self._has_own_names()
        return self.known[place]

    @property
    def packing(self) -> int:
        """Requests that an endpoint takes in one call, at the most."""
        return max(backend.packing for backend in self._given)

    def all(self) -> list[Backend]:
        """Return the adapter of each endpoint that there is now."""
        return self._pool.adapters(self._given)

    def named(self, request: Request) -> Request:
        """Return the request as endpoints are asked that have names of their own for the model."""
        if self._own_names and request.model == self._model:
            return replace(request, model=None)
        return request

    def _has_own_names(self) -> bool:
        return {backend.model for backend in self.known} - {self._model} != set()
