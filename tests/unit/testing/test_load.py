from __future__ import annotations

import json

from scaleinfer.testing._load import Load, load_report, metrics_text


def test_the_load_report_is_worded_as_vllm_does() -> None:
    load = Load(running=3, waiting=2, kv_cache=0.25)
    (value,) = load_report("JSON", load).values()
    kind, _, report = value.partition(" ")
    assert kind == "JSON"
    named = {"kv_cache_usage_perc": 0.25, "num_requests_waiting": 2.0}
    assert report == json.dumps({"named_metrics": named})
    assert load_report("text", load) == {
        "endpoint-load-metrics": "TEXT named_metrics.kv_cache_usage_perc=0.25, "
        "named_metrics.num_requests_waiting=2.0"
    }
    assert load_report("BIN", load) == {}


def test_metrics_have_vllms_names() -> None:
    text = metrics_text(Load(3, 2, 0.25, 100, 40), 'a"b', 7, 8).decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    label = r'{engine="0",model_name="a\"b"}'
    assert values == {
        f"vllm:num_requests_running{label}": "3.0",
        f"vllm:num_requests_waiting{label}": "2.0",
        f"vllm:kv_cache_usage_perc{label}": "0.25",
        f"vllm:prefix_cache_queries_total{label}": "100.0",
        f"vllm:prefix_cache_hits_total{label}": "40.0",
        f"vllm:prompt_tokens_total{label}": "7.0",
        f"vllm:generation_tokens_total{label}": "8.0",
    }
    assert text.count("# TYPE") == text.count("# HELP") == 7
