"""The load report an endpoint may add to every answer: ORCA, in its JSON and TEXT forms.

Asked for with the request header `endpoint-load-metrics-format`; vLLM and Triton answer with
`endpoint-load-metrics`. The report's fields are those of `xds.data.orca.v3.OrcaLoadReport`
(github.com/cncf/xds), of which only `named_metrics` says anything about a language model:

```text
JSON {"named_metrics": {"kv_cache_usage_perc": 0.4, "num_requests_waiting": 3.0}}
TEXT named_metrics.kv_cache_usage_perc=0.4, named_metrics.num_requests_waiting=3.0
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer.results import Load

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ASK_FOR_LOAD", "LOAD_HEADER", "parse_load"]

ASK_FOR_LOAD = {"endpoint-load-metrics-format": "JSON"}
"""Header of a request that asks for a report; servers that know none ignore it."""
LOAD_HEADER = "endpoint-load-metrics"

# vLLM's name today, its name until 0.9, and Triton's (TensorRT-LLM backend). All are shares.
_KV_CACHE = ("kv_cache_usage_perc", "gpu_cache_usage_perc", "kv_cache_utilization")
_WAITING = ("num_requests_waiting",)
_RUNNING = ("num_requests_running",)
_LONGEST = 8192


def parse_load(text: str) -> Load | None:
    """Return what a load report says, or None if it says nothing of use.

    Args:
        text: The header's value, with or without the word that names its form.
    """
    if len(text) > _LONGEST:
        return None
    form, _, rest = text.strip().partition(" ")
    form = form.upper()
    if form in {"JSON", "TEXT"}:
        text = rest
    metrics = _from_json(text) if text.lstrip()[:1] == "{" else _from_text(text)
    if not metrics:
        return None
    share = _first(metrics, _KV_CACHE)
    waiting, running = _first(metrics, _WAITING), _first(metrics, _RUNNING)
    if share is not None and share > 1:
        share = None  # no share at all; a guess at what it is would mislead the limiter
    if share is None and waiting is None and running is None:
        return None
    return Load(
        share, None if waiting is None else int(waiting), None if running is None else int(running)
    )


def _from_json(text: str) -> Mapping[str, Any]:
    try:
        report = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    named = report.get("named_metrics") if isinstance(report, dict) else None
    return named if isinstance(named, dict) else report


def _from_text(text: str) -> Mapping[str, Any]:
    metrics: dict[str, Any] = {}
    for pair in text.split(","):
        name, _, value = pair.partition("=")
        metrics[name.strip().removeprefix("named_metrics.")] = value
    return metrics


def _first(metrics: Mapping[str, Any], names: tuple[str, ...]) -> float | None:
    """Return the first of the metrics that is there and a number of its kind."""
    for name in names:
        value = metrics.get(name)
        if value is None:
            continue
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            continue
        if 0 <= number < 1e18:  # noqa: PLR2004 - neither negative, endless nor NaN
            return number
    return None
