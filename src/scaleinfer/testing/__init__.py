"""An OpenAI-compatible simulated server to test your own code against.

`SimulatedServer` answers without a model, with the latency and the faults you script, and its
`Ledger` knows the truth about every request that arrived: by prompt, how often it was asked and
answered, what went wrong and whether the client went away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaleinfer._lazy import lazy_exports

if TYPE_CHECKING:
    from scaleinfer.testing._batch_settings import BatchApi
    from scaleinfer.testing._batched_request import BatchedRequest
    from scaleinfer.testing._batching import BatchingModel
    from scaleinfer.testing._batching_settings import Batching
    from scaleinfer.testing._changes import Change
    from scaleinfer.testing._faults import Fault
    from scaleinfer.testing._first import SimulatedFirst
    from scaleinfer.testing._first_settings import (
        FirstChange,
        FirstCluster,
        FirstModel,
        FirstToken,
    )
    from scaleinfer.testing._ledger import Ledger
    from scaleinfer.testing._prefix import prefix_blocks
    from scaleinfer.testing._process import ServerProcess
    from scaleinfer.testing._record import RequestRecord
    from scaleinfer.testing._server import SimulatedServer
    from scaleinfer.testing._view import RequestView

__all__ = [
    "BatchApi",
    "BatchedRequest",
    "Batching",
    "BatchingModel",
    "Change",
    "Fault",
    "FirstChange",
    "FirstCluster",
    "FirstModel",
    "FirstToken",
    "Ledger",
    "RequestRecord",
    "RequestView",
    "ServerProcess",
    "SimulatedFirst",
    "SimulatedServer",
    "prefix_blocks",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "BatchApi": "_batch_settings",
        "BatchedRequest": "_batched_request",
        "Batching": "_batching_settings",
        "BatchingModel": "_batching",
        "Change": "_changes",
        "Fault": "_faults",
        "FirstChange": "_first_settings",
        "FirstCluster": "_first_settings",
        "FirstModel": "_first_settings",
        "FirstToken": "_first_settings",
        "Ledger": "_ledger",
        "RequestRecord": "_record",
        "RequestView": "_view",
        "ServerProcess": "_process",
        "SimulatedFirst": "_first",
        "SimulatedServer": "_server",
        "prefix_blocks": "_prefix",
    },
)
