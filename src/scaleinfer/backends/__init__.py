"""One adapter per kind of endpoint. The only room that speaks HTTP."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scaleinfer._lazy import lazy_exports
from scaleinfer.backends._base import Backend, EndpointStatus, Follower
from scaleinfer.backends._batch_base import (
    BatchAnswer,
    BatchBackend,
    BatchLimits,
    BatchProblem,
    BatchState,
)
from scaleinfer.backends._openai_client import adapter_of, is_openai_client
from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from scaleinfer.backends._batch_first import FirstBatches
    from scaleinfer.backends._globus_transfer import GlobusTransfer
    from scaleinfer.backends.first import FirstBackend, FirstLimits
    from scaleinfer.backends.local import LocalBackend
    from scaleinfer.backends.openai import OpenAIBackend
    from scaleinfer.backends.openai_sdk import SDKBackend
    from scaleinfer.backends.sets import EndpointSet

__all__ = [
    "Backend",
    "BatchAnswer",
    "BatchBackend",
    "BatchLimits",
    "BatchProblem",
    "BatchState",
    "EndpointSet",
    "EndpointStatus",
    "FirstBackend",
    "FirstBatches",
    "FirstLimits",
    "Follower",
    "GlobusTransfer",
    "LocalBackend",
    "OpenAIBackend",
    "Resolved",
    "SDKBackend",
    "resolve_backend",
    "resolve_backends",
]


__getattr__, __dir__ = lazy_exports(
    __name__,
    {"FirstBackend": "first", "FirstBatches": "_batch_first", "FirstLimits": "first"}
    | {"LocalBackend": "local", "OpenAIBackend": "openai", "SDKBackend": "openai_sdk"}
    | {"EndpointSet": "sets", "GlobusTransfer": "_globus_transfer"},
)


@dataclass(frozen=True, slots=True)
class Resolved:
    """The backend a call uses, and why.

    Attributes:
        backend: The adapter, not opened.
        reason: Where the choice comes from, in words.
        by_default: True if nobody chose it.
    """

    backend: Backend
    reason: str
    by_default: bool = False


def resolve_backend(
    backend: Any = None,
    *,
    base_url: str | None = None,
    model: str | None = None,
    api_key: str | None = None,
) -> Resolved:
    """Return the backend that a call with these arguments uses.

    In this order: `backend` (an adapter, a client of the `openai` package, or a spec:
    `"local"`, `"local:PATH.gguf"`, `"openai"`, `"first:"` (all clusters), `"first:sophia/vllm"`,
    `"hosts:FILE"`, `"registry:URL"`, `"env:"`, a URL), `base_url`, the variable
    `SCALEINFER_BACKEND`, the embedded model.

    Raises:
        ConfigError: The spec is unknown, or the arguments contradict each other.
    """
    if isinstance(backend, Backend):
        if base_url is not None or api_key is not None:
            raise ConfigError(
                "backend= is an adapter that has its own address and key.",
                hint="Leave out base_url= and api_key=, or pass them to the adapter.",
            )
        if model is not None and model != backend.model:
            raise ConfigError(
                f"model={model!r} is not what the backend= adapter asks ({backend.model}).",
                hint="Pass the model to the adapter; a single prompt's goes into Prompt(model=).",
            )
        return Resolved(backend, "backend= argument")
    if backend is not None:
        if is_openai_client(backend):
            if base_url is not None or api_key is not None:
                raise ConfigError(
                    "backend= is a client that has its own address and key.",
                    hint="Leave out base_url= and api_key=, or configure the client.",
                )
            adapter = adapter_of(backend, model=model)
            return Resolved(adapter, f"backend= argument, an openai.{type(backend).__name__}")
        if not isinstance(backend, str):
            raise ConfigError(
                f"backend must be a Backend, an openai client or a string, not {backend!r}."
            )
        return Resolved(_from_spec(backend, base_url, model, api_key), "backend= argument")
    if base_url is not None:
        return Resolved(_from_spec("openai", base_url, model, api_key), "base_url= argument")
    spec = os.environ.get("SCALEINFER_BACKEND")
    if spec:
        return Resolved(_from_spec(spec, None, model, api_key), "SCALEINFER_BACKEND")
    reason = "nothing else was chosen"
    if os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_API_KEY"):
        reason += "; for the server in your OPENAI_ variables pass backend='openai'"
    return Resolved(_from_spec("local", None, model, None), reason, by_default=True)


def resolve_backends(
    backend: Any = None,
    *,
    base_url: str | None = None,
    model: str | None = None,
    api_key: str | None = None,
) -> list[Resolved]:
    """Return the backends that a call with these arguments uses.

    Raises:
        ConfigError: As `resolve_backend`.
    """
    return [resolve_backend(backend, base_url=base_url, model=model, api_key=api_key)]


def _from_spec(spec: str, base_url: str | None, model: str | None, api_key: str | None) -> Backend:
    kind, _, rest = spec.partition(":")
    if kind in {"http", "https"}:
        if base_url is not None:
            raise ConfigError("backend= and base_url= both name a server; pass one of them.")
        kind, base_url = "openai", spec
    elif kind == "openai":
        model = model or rest or None
    if kind == "openai":
        from scaleinfer.backends.openai import OpenAIBackend

        return OpenAIBackend(base_url, api_key=api_key, model=model)
    if kind == "local":
        if base_url is not None:
            raise ConfigError("The embedded model has no base_url.", hint="Drop one of the two.")
        if model is not None:
            raise ConfigError(
                f"The embedded model is the only one here; model={model!r} cannot be asked.",
                hint="Name its server: base_url=, backend='openai', or 'local:PATH.gguf'.",
            )
        from scaleinfer.backends.local import LocalBackend

        return LocalBackend(rest or None)
    if kind in _SETS:
        return _set_of(kind, rest, base_url=base_url, model=model, api_key=api_key)
    if kind == "first":
        from scaleinfer.backends.first import FirstBackend

        if not rest:
            (every,) = FirstBackend.federated(model=model, base_url=base_url, token=api_key)
            return every
        return FirstBackend(rest, model=model, base_url=base_url, token=api_key)
    raise ConfigError(
        f"backend {spec!r} is unknown.",
        hint="Known: 'local', 'local:PATH.gguf', 'openai', 'openai:MODEL', 'first:', "
        "'first:CLUSTER/FRAMEWORK', 'hosts:FILE', 'registry:URL', 'env:', or a URL.",
    )


_SETS = ("hosts", "registry", "env")


def _set_of(
    kind: str, rest: str, *, base_url: str | None, model: str | None, api_key: str | None
) -> Backend:
    from scaleinfer.backends.sets import EndpointSet

    if base_url is not None:
        raise ConfigError(f"backend='{kind}:' says where its servers are; leave out base_url=.")
    if kind == "env":
        return EndpointSet.env(rest or "OPENAI_BASE_URL", model=model, api_key=api_key)
    if not rest:
        what = "FILE" if kind == "hosts" else "URL"
        raise ConfigError(f"backend='{kind}:' lacks its {what.lower()}: '{kind}:{what}'.")
    if kind == "hosts":
        return EndpointSet.hosts(rest, model=model, api_key=api_key)
    return EndpointSet.registry(rest, model=model, api_key=api_key)
