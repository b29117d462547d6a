from __future__ import annotations

import os
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import PurePath
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.errors import ConfigError, PromptError
from scaleinfer.requests import Request, Sampling

CHAT = [{"role": "user", "content": "Is ethanol soluble?"}]
EXAMPLE = """
from scaleinfer.requests import Request, Sampling
sampling = Sampling(temperature=0.5, stop=["\\n"], extra={"tools": [{"b": {1: 2, "x": None}}]})
request = Request([{"role": "user", "content": "Grüße"}], sampling=sampling,
                  schema={"type": "object", "required": ["b", "a"]}, model="m")
print(request.digest().hex())
"""


def in_process(hash_seed: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLE],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_digest_is_the_same_in_every_process() -> None:
    # Written down: a change of this value makes every journal there is ask all again.
    assert {in_process(seed) for seed in ("0", "4711")} == {"6fbe115b5113fceb6e6f16952671ce0e"}


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{"role": "user", "content": "Is ethanol soluble? "}]},
        {"messages": [{"role": "system", "content": "Is ethanol soluble?"}]},
        {"messages": [*CHAT, {"role": "user", "content": "And water?"}]},
        {"messages": None, "prompt": "Is ethanol soluble?"},
        {"schema": {"type": "object"}},
        {"model": "m"},
        {"sampling": Sampling(temperature=0.0)},
        {"sampling": Sampling(max_tokens=1)},
        {"sampling": Sampling(top_p=1.0)},
        {"sampling": Sampling(seed=0)},
        {"sampling": Sampling(n=1)},
        {"sampling": Sampling(stop="x")},
        {"sampling": Sampling(stop=["x", "y"])},
        {"sampling": Sampling(logprobs=True)},
        {"sampling": Sampling(top_logprobs=0)},
        {"sampling": Sampling(extra={"top_k": 5})},
    ],
)
def test_digest_sees_everything_that_may_change_the_answer(change: dict[str, Any]) -> None:
    base = Request(CHAT)
    assert replace(base, **change).digest() != base.digest()
    assert replace(base).digest() == base.digest()


def test_digest_does_not_depend_on_the_order_of_keys_nor_on_equal_spellings() -> None:
    one = Request([{"role": "user", "content": "x", "name": "n"}])
    two = Request([OrderedDict(name="n", content="x", role="user")])
    assert one.digest() == two.digest()
    extra = Request(CHAT, sampling=Sampling(extra={"seed": 3}))
    assert extra.digest() == Request(CHAT, sampling=Sampling(seed=3)).digest()


def test_digest_takes_dates_decimals_paths_and_numpy() -> None:
    exact = Request(CHAT, sampling=Sampling(temperature=0.5, seed=3))
    numpy = Sampling(temperature=np.float64(0.5), seed=np.int64(3))  # type: ignore[arg-type] # as given
    assert Request(CHAT, sampling=numpy).digest() == exact.digest()
    assert Request(CHAT, model=PurePath("a/b")).digest() == Request(CHAT, model="a/b").digest()  # type: ignore[arg-type] # as given
    parts = [{"role": "user", "content": "x", "meta": [date(2026, 1, 1), Decimal("1.5")]}]
    assert Request(parts).digest() == Request(parts).digest()


@pytest.mark.parametrize("bad", ["\ud83d", 2**70, object(), b"PNG", {1, 2}])
def test_what_cannot_be_sent_as_json_is_a_prompt_error(bad: Any) -> None:
    with pytest.raises(PromptError, match="cannot be written as JSON"):
        Request([{"role": "user", "content": bad}]).digest()


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_digest_is_sixteen_bytes_of_any_text(text: str) -> None:
    digest = Request([{"role": "user", "content": text}]).digest()
    assert len(digest) == 16
    assert Request(prompt=text).digest() != digest


def test_only_parameters_that_are_set_are_sent() -> None:
    assert Sampling().to_body() == {}
    sampling = Sampling(temperature=0.0, n=2, stop=["a"], extra={"top_k": 3, "n": 4})
    assert sampling.to_body() == {"temperature": 0.0, "n": 4, "stop": ["a"], "top_k": 3}


def test_sampling_from_a_dict() -> None:
    sampling = Sampling(seed=3)
    assert Sampling.of(sampling) is sampling
    assert Sampling.of(None) == Sampling()
    assert Sampling.of({"seed": 3}) == sampling
    with pytest.raises(ConfigError, match=r"no parameter max_token\..*Known: .*max_tokens"):
        Sampling.of({"max_token": 3})


@pytest.mark.parametrize("wrong", [{"max_tokens": 0}, {"n": 0}, {"temperature": -0.1}])
def test_sampling_that_no_server_takes(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} must"):
        Sampling(**wrong)
