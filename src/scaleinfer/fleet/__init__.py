"""Coordinator and workers over Academy, leases, launching, node-local model servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaleinfer._lazy import lazy_exports

if TYPE_CHECKING:
    from scaleinfer.fleet._fleet import Fleet
    from scaleinfer.fleet._launch import Launcher
    from scaleinfer.fleet._options import WorkerOptions
    from scaleinfer.fleet._spec import WorkerSpec
    from scaleinfer.fleet._status import FleetStatus, WorkerFacts, WorkerStatus
    from scaleinfer.fleet.coordinator import Coordinator
    from scaleinfer.fleet.exchange import exchange_factory
    from scaleinfer.fleet.node_server import NodeServer
    from scaleinfer.fleet.worker import InferenceWorker

__all__ = [
    "Coordinator",
    "Fleet",
    "FleetStatus",
    "InferenceWorker",
    "Launcher",
    "NodeServer",
    "WorkerFacts",
    "WorkerOptions",
    "WorkerSpec",
    "WorkerStatus",
    "exchange_factory",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Coordinator": "coordinator",
        "Fleet": "_fleet",
        "FleetStatus": "_status",
        "InferenceWorker": "worker",
        "Launcher": "_launch",
        "NodeServer": "node_server",
        "WorkerFacts": "_status",
        "WorkerOptions": "_options",
        "WorkerSpec": "_spec",
        "WorkerStatus": "_status",
        "exchange_factory": "exchange",
    },
)
