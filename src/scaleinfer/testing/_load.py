"""What a server says of its load: ORCA's header and Prometheus' text, with vLLM's names."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["REPORT_FORMAT", "REPORT_HEADER", "Load", "load_report", "metrics_text"]

REPORT_FORMAT = "endpoint-load-metrics-format"
"""Header by which a request asks for a load report: `JSON` or `TEXT`."""

REPORT_HEADER = "endpoint-load-metrics"


class Load(NamedTuple):
    """A server's load at one moment.

    Attributes:
        running: Requests that have a slot.
        waiting: Requests that wait for one.
        kv_cache: Share of the KV cache in use, 0 to 1.
        prefix_queries: Prompt tokens looked up in the prefix cache so far.
        prefix_hits: Those of them that were found.
    """

    running: int
    waiting: int
    kv_cache: float = 0.0
    prefix_queries: int = 0
    prefix_hits: int = 0


def load_report(form: str, load: Load) -> dict[str, str]:
    """Return the header of an ORCA load report, as vLLM sends it; none for an unknown form.

    vLLM reports two figures (`vllm/entrypoints/serve/utils/orca_metrics.py`), both as floats,
    with unstreamed answers only:

        endpoint-load-metrics: JSON {"named_metrics": {"kv_cache_usage_perc": 0.4, ...}}
        endpoint-load-metrics: TEXT named_metrics.kv_cache_usage_perc=0.4, ...
    """
    usage, waiting = float(load.kv_cache), float(load.waiting)
    match form.lower():
        case "json":
            value = (
                f'JSON {{"named_metrics": {{"kv_cache_usage_perc": {usage}, '
                f'"num_requests_waiting": {waiting}}}}}'
            )
        case "text":
            value = (
                f"TEXT named_metrics.kv_cache_usage_perc={usage}, "
                f"named_metrics.num_requests_waiting={waiting}"
            )
        case _:
            return {}
    return {REPORT_HEADER: value}


def metrics_text(load: Load, model: str, prompt_tokens: int, completion_tokens: int) -> bytes:
    """Return a page in Prometheus' text format, with the names and labels of vLLM's."""
    rows = (
        ("num_requests_running", "gauge", "Requests in the batch.", load.running),
        ("num_requests_waiting", "gauge", "Requests that wait.", load.waiting),
        ("kv_cache_usage_perc", "gauge", "KV cache usage, 1 is all of it.", load.kv_cache),
        ("prefix_cache_queries_total", "counter", "Tokens looked up.", load.prefix_queries),
        ("prefix_cache_hits_total", "counter", "Tokens found.", load.prefix_hits),
        ("prompt_tokens_total", "counter", "Prompt tokens answered.", prompt_tokens),
        ("generation_tokens_total", "counter", "Tokens of answers.", completion_tokens),
    )
    label = model.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    text = "".join(
        f"# HELP vllm:{name} {what}\n# TYPE vllm:{name} {kind}\n"
        f'vllm:{name}{{engine="0",model_name="{label}"}} {float(value)}\n'
        for name, kind, what, value in rows
    )
    return text.encode()
