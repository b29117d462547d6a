"""What a worker is started with, as JSON that any launcher can carry."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

import orjson

from scaleinfer.backends import Backend, resolve_backends
from scaleinfer.engine import Concurrency, RateLimit, Retry
from scaleinfer.errors import ConfigError
from scaleinfer.fleet.node_server import NodeServer

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["KINDS", "WorkerSpec", "node_backends"]

KINDS = frozenset({"local", "openai", "http", "https", "first", "hosts", "registry", "env"})


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """How to start a worker on its node; credentials are not in it but found there.

    Attributes:
        exchange: Where messages go, as `exchange_factory` reads it.
        fleet: Name of the fleet.
        coordinator: The coordinator's identifier; empty to look for one of the fleet.
        secret: What the coordinator wants to be shown; empty for nothing.
        backend: Endpoints as spec strings, or `module:function` for a function that returns a
            `Backend` (or several) on the node; none for the node's own choice.
        model: Model to ask.
        base_url: Address of an OpenAI-compatible server that the node reaches.
        concurrency: Calls in flight at each endpoint: a number, `"auto"`, or bounds.
        rate_limit: Requests and tokens a minute at each endpoint.
        retry: How failed calls are tried again; the defaults where empty.
        server: Model servers to start on the node (`NodeServer.to_dict`).
        name: The worker's name; made of node and process if empty.
        walltime_s: Seconds after which the worker's job ends; 0 if it says so by itself or never.
        patience_s: Seconds without a coordinator after which the worker ends.
        log: Log file; `{name}` and `{node}` are replaced. Empty for none.
    """

    exchange: str
    fleet: str = "fleet"
    coordinator: str = ""
    secret: str = ""
    backend: tuple[str, ...] = ()
    model: str | None = None
    base_url: str | None = None
    concurrency: int | str | dict[str, int | None] = "auto"
    rate_limit: dict[str, float | None] | None = None
    retry: dict[str, Any] = field(default_factory=dict)
    server: dict[str, Any] | None = None
    name: str = ""
    walltime_s: float = 0.0
    patience_s: float = 120.0
    log: str = ""

    def to_json(self) -> str:
        """Return the spec as a JSON string."""
        return orjson.dumps(asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: It is no such thing.
        """
        try:
            data = dict(orjson.loads(text))
            unknown = sorted(set(data) - {f.name for f in fields(cls)})
            if unknown:
                raise ConfigError(
                    f"the worker's spec has {', '.join(unknown)}, which this version of "
                    "scaleinfer does not know.",
                    hint="Install the same version on the nodes.",
                )
            data["backend"] = tuple(data.get("backend") or ())
            return cls(**data)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"the worker's spec cannot be read: {error}") from error

    def concurrency_or_none(self) -> int | Concurrency | None:
        """Return the bounds as the engine takes them."""
        given = self.concurrency
        if given == "auto":
            return None
        if isinstance(given, dict):
            return Concurrency(**given)  # type: ignore[arg-type] # it checks them itself
        if not isinstance(given, int) or given < 1:
            raise ConfigError(f"concurrency must be 'auto' or a positive integer, not {given!r}.")
        return given

    def rate_limit_or_none(self) -> RateLimit | None:
        """Return the limits as the engine takes them."""
        return None if self.rate_limit is None else RateLimit(**self.rate_limit)

    def retry_rules(self) -> Retry:
        """Return the rules as the engine takes them."""
        return Retry(**self.retry)

    def node_server(self) -> NodeServer | None:
        """Return the model servers to start."""
        return None if self.server is None else NodeServer.from_dict(self.server)


def node_backends(
    specs: Sequence[str | Backend], *, model: str | None = None, base_url: str | None = None
) -> list[Backend]:
    """Return the adapters that a worker asks, as its own node resolves them.

    Raises:
        ConfigError: One of them cannot be made here.
    """
    found: list[Backend] = []
    for spec in specs or (None,):
        if isinstance(spec, str) and ":" in spec and spec.partition(":")[0] not in KINDS:
            found += _made_by(spec)
        else:
            resolved = resolve_backends(spec, model=model, base_url=base_url)
            found += [one.backend for one in resolved]
    return found


def _made_by(spec: str) -> list[Backend]:
    module, _, name = spec.partition(":")
    try:
        made = getattr(import_module(module), name)()
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"backend {spec!r} is no function that this node can import: {error}.",
            hint="Known besides: 'local', 'openai', 'openai:MODEL', or a URL.",
        ) from error
    backends = list(made) if isinstance(made, list | tuple) else [made]
    if not backends or not all(isinstance(one, Backend) for one in backends):
        raise ConfigError(f"{spec} must return a Backend or a list of them, not {made!r}.")
    return backends
