"""Coordinator and workers over Academy, leases, launching, node-local model servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaleinfer._lazy import lazy_exports

if TYPE_CHECKING:
    from scaleinfer.fleet._attach import RunningFleet, running_fleet
    from scaleinfer.fleet._entry import run_worker
    from scaleinfer.fleet._fleet import Fleet
    from scaleinfer.fleet._launch import Launcher
    from scaleinfer.fleet._live import show_statuses, watch
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
    "RunningFleet",
    "WorkerFacts",
    "WorkerOptions",
    "WorkerSpec",
    "WorkerStatus",
    "exchange_factory",
    "run_worker",
    "running_fleet",
    "show_statuses",
    "watch",
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
        "RunningFleet": "_attach",
        "WorkerFacts": "_status",
        "WorkerOptions": "_options",
        "WorkerSpec": "_spec",
        "WorkerStatus": "_status",
        "exchange_factory": "exchange",
        "run_worker": "_entry",
        "running_fleet": "_attach",
        "show_statuses": "_live",
        "watch": "_live",
    },
)
