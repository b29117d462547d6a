from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.backends._orca import parse_load
from scaleinfer.results import Load

NAMED = {"kv_cache_usage_perc": 0.4, "num_requests_waiting": 3.0}
EVERYTHING = {"cpu_utilization": 0.3, "rps_fractional": 10.0, "named_metrics": NAMED}
PAIRS = "named_metrics.kv_cache_usage_perc=0.4, named_metrics.num_requests_waiting=3.0"


@pytest.mark.parametrize(
    ("text", "load"),
    [
        # vLLM's two forms, as it writes them.
        (f"JSON {json.dumps({'named_metrics': NAMED})}", Load(0.4, 3)),
        (f"TEXT {PAIRS}", Load(0.4, 3)),
        # Without the word before, without spaces, in lower case.
        (json.dumps({"named_metrics": NAMED}), Load(0.4, 3)),
        (PAIRS.replace(" ", ""), Load(0.4, 3)),
        (f"json {json.dumps(EVERYTHING)}", Load(0.4, 3)),
        (f"text cpu_utilization=0.3, mem_utilization=0.8, {PAIRS}", Load(0.4, 3)),
        # Older and other servers' names.
        ('JSON {"named_metrics": {"gpu_cache_usage_perc": 0.5}}', Load(0.5)),
        (
            'JSON {"named_metrics": {"kv_cache_utilization": 0.25, "max_token_capacity": 4096}}',
            Load(0.25),
        ),
        ("TEXT named_metrics.kv_cache_utilization=0.25", Load(0.25)),
        ("TEXT num_requests_running=7,num_requests_waiting=0", Load(None, 0, 7)),
        ('{"num_requests_running": 7}', Load(None, None, 7)),
        # A part that is wrong does not spoil the rest.
        ('{"kv_cache_usage_perc": 40, "num_requests_waiting": 1}', Load(None, 1)),
        ('{"kv_cache_usage_perc": [], "gpu_cache_usage_perc": 0.1}', Load(0.1)),
        ("TEXT kv_cache_usage_perc=nan,num_requests_waiting=2", Load(None, 2)),
        ("TEXT kv_cache_usage_perc=0.5,num_requests_waiting=-2", Load(0.5)),
        ("TEXT kv_cache_usage_perc=0.5,num_requests_waiting=inf", Load(0.5)),
    ],
)
def test_a_report_in_every_form(text: str, load: Load) -> None:
    assert parse_load(text) == load


@pytest.mark.parametrize(
    "text",
    [
        "",
        "JSON",
        "TEXT ",
        "JSON {",
        "JSON []",
        "JSON null",
        'JSON "named_metrics": {"kv_cache_usage_perc": 0.4}',
        'JSON {"named_metrics": {}}',
        'JSON {"named_metrics": 3}',
        'JSON {"cpu_utilization": 0.4}',
        "TEXT cpu_utilization=0.4",
        "TEXT =0.4",
        "BIN CQAAAAAAAPA/",
        "x" * 10_000,
    ],
)
def test_what_says_nothing_is_no_report(text: str) -> None:
    assert parse_load(text) is None


METRIC = st.sampled_from(
    ["kv_cache_usage_perc", "num_requests_waiting", "num_requests_running", "x", "named_metrics"]
)
VALUE = st.one_of(
    st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=4), st.just([])
)


@given(
    st.text(max_size=60)
    | st.lists(st.tuples(METRIC, VALUE), max_size=4).map(
        lambda pairs: "TEXT " + ",".join(f"{name}={value}" for name, value in pairs)
    )
    | st.dictionaries(METRIC, VALUE).map(
        lambda metrics: "JSON " + json.dumps({"named_metrics": metrics})
    )
)
def test_any_text_is_a_sane_report_or_none(text: str) -> None:
    load = parse_load(text)
    if load is not None:
        assert load.kv_cache is None or 0 <= load.kv_cache <= 1
        for count in (load.waiting, load.running):
            assert count is None or (isinstance(count, int) and count >= 0)
