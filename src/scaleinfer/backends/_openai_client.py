"""A configured `openai` client as an adapter: its configuration is taken, its calls are not.

The SDK costs milliseconds of CPU per call, so a client is only asked itself where it does
something that a configuration cannot tell.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from scaleinfer.backends._base import Backend

__all__ = ["adapter_of", "is_openai_client"]

_OWN_CLIENTS = frozenset({"OpenAI", "AsyncOpenAI"})
_OWN_TRANSPORTS = frozenset({"SyncHttpxClientWrapper", "AsyncHttpxClientWrapper"})
_SDK_ONLY_OPTIONS = frozenset({"concurrency", "json_schema"})


def is_openai_client(value: object) -> bool:
    """True if the value is a client of the `openai` package; does not import it."""
    return any(
        cls.__module__.partition(".")[0] == "openai" and cls.__name__ in _OWN_CLIENTS
        for cls in type(value).__mro__
    )


def adapter_of(client: Any, *, model: str | None = None, **options: Any) -> Backend:
    """Return the adapter to what a client is configured for.

    Args:
        client: An `openai.AsyncOpenAI`, `openai.OpenAI` or `openai.AsyncAzureOpenAI`.
        model: Model to ask.
        options: Further arguments of `OpenAIBackend`.

    Raises:
        ConfigError: It is no such client, or a synchronous one that must be asked itself.
    """
    if not is_openai_client(client):
        raise ConfigError(
            f"{type(client).__name__} is no client of the openai package.",
            hint="Pass an openai.AsyncOpenAI, openai.OpenAI or openai.AsyncAzureOpenAI.",
        )
    reason = _why_not(client)
    if not reason:
        return _taken_over(client, model, options)
    import openai

    if not isinstance(client, openai.AsyncOpenAI):
        raise ConfigError(
            f"this {type(client).__name__} cannot be taken over: {reason}.",
            hint=f"Pass its asynchronous sister, openai.Async{_public_name(client)}.",
        )
    from scaleinfer.backends.openai_sdk import SDKBackend

    dropped = sorted(set(options) - _SDK_ONLY_OPTIONS)
    if dropped:
        raise ConfigError(
            f"{', '.join(dropped)} cannot be set here: {reason}, so the client is asked itself.",
            hint="Leave them out, or configure the client.",
        )
    backend = SDKBackend(client, model=model, **options)
    logging.getLogger("scaleinfer").warning(
        "%s is asked through the openai SDK, which is slower: %s.", backend.endpoint, reason
    )
    return backend


def _why_not(client: Any) -> str:
    """Return why a client's configuration does not say all it does; empty if it does."""
    cls, transport = type(client), client._client
    names = [name for name, _ in _query(client)]
    reasons = {
        f"{cls.__name__} has its own ways": cls.__name__ not in _OWN_CLIENTS
        or cls.__module__.partition(".")[0] != "openai",
        "it has an http_client of its own": type(transport).__name__ not in _OWN_TRANSPORTS,
        "its http_client has event hooks": any(transport.event_hooks.values()),
        "it has a workload identity": getattr(client, "workload_identity", None) is not None,
        "it has a provider": getattr(client, "_provider", None) is not None,
        "its base URL has a query": bool(client.base_url.query),
        "its default_query has lists": len(names) != len(set(names)),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _taken_over(client: Any, model: str | None, options: dict[str, Any]) -> Backend:
    from scaleinfer.backends.openai import OpenAIBackend

    given = client.default_headers
    # Values that are no strings leave a header out.
    headers = {
        name: value
        for name, value in given.items()
        if isinstance(value, str)
        and not name.lower().startswith("x-stainless-")
        and name.lower() not in {"accept", "content-type"}
        and not (name.lower() == "user-agent" and value == client.user_agent)
    }
    key: Any = getattr(client, "_api_key_provider", None) or client.api_key or ""
    if any(name.lower() == "authorization" for name in given):
        key = ""  # set, or left out, on purpose
    return OpenAIBackend(
        str(client.base_url),
        **(
            {
                "api_key": key,
                "model": model,
                "headers": headers,
                "query": dict(_query(client)),
                "timeout": _seconds(client.timeout),
            }
            | options
        ),
    )


def _query(client: Any) -> list[tuple[str, str]]:
    return parse_qsl(client.qs.stringify(client.default_query), keep_blank_values=True)


def _seconds(timeout: Any) -> float | None:
    """Return the seconds a client waits for an answer, if it was told some."""
    import openai

    if timeout == openai.DEFAULT_TIMEOUT:
        return None
    # httpx counts phase by phase; the answer is what takes long.
    read = getattr(timeout, "read", timeout)
    return float(read) if isinstance(read, int | float) else None


def _public_name(client: Any) -> str:
    for cls in type(client).__mro__:
        if cls.__module__.partition(".")[0] == "openai":
            return str(cls.__name__)
    return "OpenAI"
