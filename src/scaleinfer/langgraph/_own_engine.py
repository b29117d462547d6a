"""The engine of a chat model outside of a map: one for each event loop."""

from __future__ import annotations

import asyncio
from typing import Any

from scaleinfer.program import LLM, open_llm

__all__ = ["OwnEngine"]


class OwnEngine:
    """A model's own engine on one loop, open from the first call to the loop's end."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._opening = asyncio.Lock()
        self._llm: asyncio.Future[LLM] | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def llm(self) -> LLM:
        """Return what makes calls; the first caller opens it."""
        async with self._opening:
            if self._keeper is None or self._keeper.done():
                self._llm = asyncio.get_running_loop().create_future()
                self._keeper = asyncio.create_task(self._keep(self._llm))
        assert self._llm is not None
        return await asyncio.shield(self._llm)

    async def _keep(self, llm: asyncio.Future[LLM]) -> None:
        # What opened it closes it, when this task is cancelled: by `aclose`, or with the loop.
        try:
            async with open_llm(**self._options) as opened:
                llm.set_result(opened)
                await asyncio.Event().wait()
        except BaseException as error:
            if llm.done():
                raise
            llm.set_exception(error)
            if not isinstance(error, Exception):
                raise

    async def aclose(self) -> None:
        """Close it, with what is in flight."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
