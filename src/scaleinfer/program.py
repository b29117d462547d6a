"""Programs: a whole agent per item, whose every call goes through the map's engine.

```python
from scaleinfer import parallel_map


async def review(paper, llm):
    summary = await llm(f"Summarise: {paper['text']}")
    flaws = await llm(f"Name the weakest claim of: {summary.text}")
    return {"summary": summary.text, "weakest": flaws.text}


results = await parallel_map(items, review, journal="review.db")
assert results[0].usage.requests == 2
```
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from scaleinfer._opening import open_calls
from scaleinfer._program import LLM, Graph, Program, current_llm, is_graph, is_program

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["LLM", "Graph", "Program", "current_llm", "is_graph", "is_program", "open_llm"]


@asynccontextmanager
async def open_llm(*, progress: Any = False, **options: Any) -> AsyncIterator[LLM]:
    """Open an engine for single calls, outside of a map.

    ```python
    from scaleinfer.program import open_llm

    async with open_llm(base_url="http://127.0.0.1:8000/v1") as llm:
        answer = await llm("Name a solvent for caffeine.")
    ```

    Args:
        progress: As for `parallel_map`; default none.
        options: The other arguments of `parallel_map`, less those about items.

    Raises:
        ConfigError: An argument or the environment is wrong.
        EndpointError: The endpoint cannot be used.
        JournalError: The journal cannot be opened.
    """
    async with open_calls(progress=progress, **options) as llm:
        yield llm
