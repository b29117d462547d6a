"""Which models an endpoint offers: the lists differ from gateway to gateway."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import orjson

__all__ = ["lists_deployments", "offers", "other_list", "parse_models"]

_AZURE = (".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com")


def parse_models(body: bytes) -> list[str]:
    """Return the models' names in a list of models.

    Understood are OpenAI's list, a bare one (Together), Ollama's own, and links of the
    Hypertext Application Language (Aitta).

    Raises:
        ValueError: It is no list of models.
    """
    try:
        data = bare = orjson.loads(body)
        if isinstance(data, Mapping):
            if "data" in data:
                data = data["data"]
            elif "models" in data:
                data = data["models"]
            else:
                data = data["_links"]["item"]
        # A HAL document with a single link has no list of it.
        entries = [data] if isinstance(data, Mapping) else data
        names = [_name(entry) for entry in entries]
        if not names and entries is bare:
            raise KeyError("data")  # it could be a list of anything
        return names
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError("no list of models") from error


def _name(entry: Any) -> str:
    if isinstance(entry, str):
        return entry
    for field in ("id", "name", "model"):
        if isinstance(entry, Mapping) and entry.get(field):
            return str(entry[field])
    raise KeyError("id")


def offers(models: list[str], wanted: str) -> bool:
    """Return whether a model can be asked, as far as the list tells.

    Ollama takes `llama3` for `llama3:latest`, OpenRouter takes variants (`:nitro`) of what it
    lists, LiteLLM lists patterns (`openai/*`).
    """
    if wanted in models or f"{wanted}:latest" in models:
        return True
    plain, _, variant = wanted.rpartition(":")
    if variant and plain in models:
        return True
    return any(fnmatchcase(wanted, name) for name in models if "*" in name)


def lists_deployments(url: str) -> bool:
    """Return False for Azure, which lists models that could be deployed, not what is."""
    return not (urlsplit(url).hostname or "").endswith(_AZURE)


def other_list(url: str) -> str | None:
    """Return where else a server without `/models` below its base URL may list its models."""
    parts = urlsplit(url)
    # Aitta: .../openai/v1 beside .../model.
    head, found, _ = parts.path.rstrip("/").rpartition("/openai/v1")
    return urlunsplit(parts._replace(path=f"{head}/model")) if found else None
