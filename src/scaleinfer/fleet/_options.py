"""What a fleet is told about its workers, and what they are started with."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypedDict

from scaleinfer.backends import resolve_backend
from scaleinfer.engine import Concurrency
from scaleinfer.errors import ConfigError
from scaleinfer.fleet._spec import KINDS, WorkerSpec

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from scaleinfer.engine import RateLimit, Retry
    from scaleinfer.fleet.node_server import NodeServer

__all__ = ["WorkerOptions", "model_of", "spec_of"]


class WorkerOptions(TypedDict, total=False):
    """What every way to make a `Fleet` takes, all of it optional.

    Attributes:
        backend: What workers ask: spec strings (`"local"`, a URL, ...), or `module:function` for
            a function that returns an adapter on the node. An adapter made here stays here.
        model: Model to ask.
        base_url: Address of an OpenAI-compatible server that the nodes reach.
        server: A model server that each worker starts on its node.
        concurrency: Calls in flight at each endpoint; `"auto"` finds the best number.
        rate_limit: Requests and tokens a minute at each endpoint.
        retry: How workers try failed calls again.
        exchange: Where messages go; see `exchange_factory`. Default an HTTP exchange of the
            fleet's own.
        name: Name of the fleet. Workers that have lost their coordinator look for a new one of
            the same name.
        secret: What workers must show; made up by default.
        min_workers: Workers that are kept without work.
        max_workers: Most workers; more are started while there is work for them.
        idle_s: Seconds without work after which a worker beyond `min_workers` is ended.
        patience_s: Seconds for which a worker looks for a coordinator that it has lost.
        folder: Where logs are written; all nodes should see it.
        on_event: Called with one line for every worker that comes, goes or breaks.
    """

    backend: str | Sequence[str] | None
    model: str | None
    base_url: str | None
    server: NodeServer | None
    concurrency: int | Concurrency | str
    rate_limit: RateLimit | None
    retry: Retry | None
    exchange: Any
    name: str | None
    secret: str | None
    min_workers: int | None
    max_workers: int | None
    idle_s: float
    patience_s: float
    folder: str | os.PathLike[str] | None
    on_event: Callable[[str], None] | None


def spec_of(given: WorkerOptions, *, fleet: str, secret: str) -> WorkerSpec:
    """Return what workers are started with, as far as it is known before the fleet is open.

    Raises:
        ConfigError: An option cannot be used.
    """
    backend = given.get("backend") or ()
    specs = tuple(backend) if isinstance(backend, list | tuple) else (backend,)
    for one in specs:
        if not isinstance(one, str):
            raise ConfigError(
                f"backend={one!r} cannot travel to the nodes of a fleet.",
                hint="Pass a spec string ('local', a URL, ...) or 'module:function' for a "
                "function that returns the adapter there.",
            )
    server, bounds = given.get("server"), given.get("concurrency", "auto")
    if server is not None and (specs or given.get("base_url")):
        raise ConfigError("server= is what the workers ask; leave out backend= and base_url=.")
    rate_limit, retry = given.get("rate_limit"), given.get("retry")
    spec = WorkerSpec(
        exchange="",
        fleet=fleet,
        secret=secret,
        backend=specs,
        model=given.get("model"),
        base_url=given.get("base_url"),
        concurrency=asdict(bounds) if isinstance(bounds, Concurrency) else bounds,
        rate_limit=None if rate_limit is None else asdict(rate_limit),
        retry={} if retry is None else asdict(retry),
        server=None if server is None else server.to_dict(),
        patience_s=given.get("patience_s", 120.0),
    )
    spec.concurrency_or_none()
    return spec


def model_of(spec: WorkerSpec) -> str | None:
    """Return the model that the workers ask, if that is known without asking them."""
    server = spec.node_server()
    if spec.model is not None or server is not None:
        return spec.model or (None if server is None else server.model)
    if len(spec.backend) > 1 or (spec.backend and spec.backend[0].partition(":")[0] not in KINDS):
        return None
    backend = spec.backend[0] if spec.backend else None
    return resolve_backend(backend, base_url=spec.base_url).backend.model
