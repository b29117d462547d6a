"""Everything that is no completion: models, health, metrics, the ledger."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer.testing._delivery import JSON_TYPE
from scaleinfer.testing._load import metrics_text
from scaleinfer.testing._refusals import Refusal, wrong_key

if TYPE_CHECKING:
    from scaleinfer.testing._job import Head
    from scaleinfer.testing._ledger import Ledger
    from scaleinfer.testing._load import Load
    from scaleinfer.testing._settings import Settings

__all__ = ["COMPLETIONS", "authorised", "is_own", "page"]

COMPLETIONS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})


def is_own(path: str) -> bool:
    """Return whether a path is the simulation's own, which no fault or outage strikes."""
    return path.startswith("/ledger") or path == "/control"


def authorised(request: Head, settings: Settings) -> bool:
    """Return whether the request may ask: it has the key, or none is wanted."""
    key = settings.api_key
    return key is None or request.authorization == f"Bearer {key}"


def page(request: Head, settings: Settings, ledger: Ledger, load: Load) -> tuple[str, bytes]:
    """Return a page's content type and body.

    Raises:
        Refusal: There is no such page, or not by this method, or not without the key.
    """
    path = request.path
    wanted = "POST" if path == "/control" else "GET"
    if path in COMPLETIONS or (path in _PAGES and request.method != wanted):
        raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, f"{request.method} {path} is not allowed.")
    if path == "/v1/models" and not authorised(request, settings):
        raise wrong_key(request.authorization is not None)
    if path == "/metrics":
        tokens = ledger.prompt_tokens, ledger.completion_tokens
        return _METRICS_TYPE, metrics_text(load, settings.models[0], *tokens)
    return JSON_TYPE, _json_page(path, settings, ledger)


def _json_page(path: str, settings: Settings, ledger: Ledger) -> bytes:
    match path:
        case "/health" | "/control":
            return b"{}"
        case "/v1/models":
            cards = [_card(model, settings) for model in settings.models]
            return orjson.dumps({"object": "list", "data": cards})
        case "/ledger":
            return orjson.dumps(ledger.to_dict())
        case "/ledger/statistics":
            return orjson.dumps(ledger.statistics(), option=orjson.OPT_NON_STR_KEYS)
        case "/ledger/counts":
            return orjson.dumps(ledger.counts())
    raise Refusal(HTTPStatus.NOT_FOUND, f"{path} is not served here.")


_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PAGES = frozenset(
    {
        "/health",
        "/v1/models",
        "/metrics",
        "/control",
        "/ledger",
        "/ledger/statistics",
        "/ledger/counts",
    }
)


def _card(model: str, settings: Settings) -> dict[str, Any]:
    return {
        "id": model,
        "object": "model",
        "created": 0,
        "owned_by": "scaleinfer",
        "max_model_len": settings.max_prompt_tokens,
    }
