"""What FIRST tells of its clusters: routes, models, limits and jobs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "KNOWN", "Job", "ModelLimits", "Route", "alias", "jobs_of", "limits_of", "routes_of", "same",
]  # fmt: skip

KNOWN = {"sophia": "vllm", "metis": "api", "minerva": "api"}
"""The clusters of the documentation, each with its framework."""
_CLOCK = re.compile(r"\b(\d{1,2}:\d{2})(?::\d{2})?\b")
_GROUPS = ("running", "queued", "others", "stopped")


@dataclass(frozen=True, slots=True)
class Route:
    """One framework of one cluster.

    Attributes:
        cluster: The cluster.
        framework: The framework.
        models: The models that the user may ask there.
    """

    cluster: str
    framework: str
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """A model's limits.

    Attributes:
        tokens: Tokens a minute of all users; `None` if that is not told.
        tokens_per_user: The same for each user.
    """

    tokens: float | None = None
    tokens_per_user: float | None = None

    @property
    def least(self) -> float | None:
        """The one that one user meets first."""
        return min((n for n in (self.tokens, self.tokens_per_user) if n), default=None)


@dataclass(frozen=True, slots=True)
class Job:
    """What the batch system does for some models.

    Attributes:
        models: The models it serves.
        framework: The framework; empty if that is not told.
        status: `running`, `starting`, `queued`, `disconnected`, `stopped` or `other`.
        start: When it will probably start, as hours and minutes; empty if that is not told.
    """

    models: tuple[str, ...]
    framework: str
    status: str
    start: str = ""


def alias(model: str) -> str:
    """Return what all names of a model have in common: `openai/gpt-oss-120b` is `gpt-oss-120b`."""
    return model.rpartition("/")[2].lower()


def same(model: str, offered: Iterable[str]) -> str | None:
    """Return the name under which a model is offered; `None` if it is not, or not for certain."""
    names = list(offered)
    if model in names:
        return model
    found = [name for name in names if alias(name) == alias(model)]
    return found[0] if len(found) == 1 else None


def routes_of(body: Any) -> list[Route]:
    """Return the routes in the body of `/list-endpoints`.

    Raises:
        ValueError: It is no such body.
    """
    try:
        return [
            Route(str(cluster), str(framework), tuple(map(str, said.get("models") or ())))
            for cluster, told in body["clusters"].items()
            for framework, said in told["frameworks"].items()
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("it has no clusters with frameworks") from error


def limits_of(body: Any, framework: str) -> dict[str, ModelLimits]:
    """Return each model's limits in the body of `/{cluster}/models`, as far as it tells."""
    entries = body if isinstance(body, list) else _entries(body)
    found = {}
    for entry in entries:
        if isinstance(entry, dict) and entry.get("framework") in (None, framework):
            found[str(entry.get("id"))] = ModelLimits(
                _number(entry.get("rate_limit_token_per_minute")),
                _number(entry.get("rate_limit_token_per_minute_per_user")),
            )
    return found


def _entries(body: Any) -> list[Any]:
    data = body.get("data") if isinstance(body, dict) else None
    return data if isinstance(data, list) else []


def _number(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    return float(value) if number else None


def jobs_of(body: Any) -> list[Job]:
    """Return the jobs in the body of `/{cluster}/jobs`.

    Raises:
        ValueError: It is no such body.
    """
    if not isinstance(body, dict) or not any(group in body for group in _GROUPS):
        raise ValueError("it has no groups of jobs")
    found = []
    for group in _GROUPS:
        for entry in body.get(group) or ():
            if isinstance(entry, dict):
                found.append(_job(entry, group))  # noqa: PERF401 - a comprehension is no clearer
    return found


def _job(entry: Mapping[str, Any], group: str) -> Job:
    models = (name.strip() for name in str(entry.get("Models") or "").split(","))
    clock = _CLOCK.search(str(entry.get("Estimated Start Time") or ""))
    default = {"others": "other"}.get(group, group)
    return Job(
        tuple(name for name in models if name),
        str(entry.get("Framework") or ""),
        str(entry.get("Model Status") or default).lower(),
        clock[1] if clock else "",
    )
