"""Fan a list of items out over parallel LLM calls and fan the results back in.

```python
from scaleinfer import parallel_map

results = await parallel_map(items, "Summarise in one sentence: {text}")
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaleinfer._lazy import lazy_exports

if TYPE_CHECKING:
    from scaleinfer.backends import Backend, OpenAIBackend
    from scaleinfer.embedding import parallel_embed
    from scaleinfer.engine import Budget, Concurrency, RateLimit, Retry
    from scaleinfer.errors import (
        AuthError,
        BudgetExceeded,
        ConfigError,
        EndpointError,
        JournalError,
        Overloaded,
        Permanent,
        PromptError,
        RateLimited,
        RunStopped,
        ScaleInferError,
        SchemaError,
        Starting,
        Transient,
        WorkerLost,
    )
    from scaleinfer.estimation import estimate
    from scaleinfer.mapping import MapResult, map_sync, parallel_map, stream_map
    from scaleinfer.prompts import Prompt
    from scaleinfer.requests import Sampling
    from scaleinfer.results import Result

__version__ = "0.1.0"

__all__ = [
    "AuthError",
    "Backend",
    "Budget",
    "BudgetExceeded",
    "Concurrency",
    "ConfigError",
    "EndpointError",
    "JournalError",
    "MapResult",
    "OpenAIBackend",
    "Overloaded",
    "Permanent",
    "Prompt",
    "PromptError",
    "RateLimit",
    "RateLimited",
    "Result",
    "Retry",
    "RunStopped",
    "Sampling",
    "ScaleInferError",
    "SchemaError",
    "Starting",
    "Transient",
    "WorkerLost",
    "estimate",
    "map_sync",
    "parallel_embed",
    "parallel_map",
    "stream_map",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    dict.fromkeys(__all__, "errors")
    | dict.fromkeys(("Backend", "OpenAIBackend"), "backends")
    | dict.fromkeys(("MapResult", "map_sync", "parallel_map", "stream_map"), "mapping")
    | dict.fromkeys(("Budget", "Concurrency", "RateLimit", "Retry"), "engine")
    | {
        "Prompt": "prompts",
        "Result": "results",
        "Sampling": "requests",
        "estimate": "estimation",
        "parallel_embed": "embedding",
    },
)
