"""Prices: your own, the public list's, long contexts, and batches."""

from __future__ import annotations

from typing import Any

import pytest

from scaleinfer.errors import ConfigError
from scaleinfer.prices import PICO, Price, Pricer, Prices, cost_usd, price_table, table_date
from scaleinfer.results import Usage


class OpenAI:
    endpoint = "https://api.openai.com/v1"
    priced = True
    model = "gpt-4o-mini"


class Gemini:
    endpoint = "https://generativelanguage.googleapis.com"
    priced = True
    model = "gemini-2.5-pro"


class OwnServer:
    endpoint = "http://127.0.0.1:8000/v1"
    priced = False
    model = "Qwen/Qwen3-8B"


def cost(backend: Any, model: str | None, usage: Usage) -> float | None:
    return cost_usd(backend, model, usage)


def test_the_public_list_knows_prompt_cached_and_completion_tokens() -> None:
    fresh = cost(OpenAI(), "gpt-4o-mini", Usage(1_000_000, 0, 0, 1))
    cached = cost(OpenAI(), "gpt-4o-mini", Usage(1_000_000, 0, 1_000_000, 1))
    written = cost(OpenAI(), "gpt-4o-mini", Usage(0, 1_000_000, 0, 1))
    assert fresh is not None
    assert cached is not None
    assert written is not None
    assert cached < fresh < written


def test_long_prompts_have_a_price_of_their_own() -> None:
    short = cost(Gemini(), "gemini-2.5-pro", Usage(100_000, 0, 0, 1))
    long = cost(Gemini(), "gemini-2.5-pro", Usage(300_000, 0, 0, 1))
    assert short is not None
    assert long is not None
    assert long > 3 * short * 1.5


def test_a_server_of_your_own_has_no_public_price() -> None:
    assert cost(OwnServer(), "gpt-4o-mini", Usage(10, 10, 0, 1)) is None
    assert cost(OpenAI(), None, Usage(10, 10, 0, 1)) is None
    assert cost(OpenAI(), "no such model", Usage(10, 10, 0, 1)) is None


def test_your_own_prices_go_first_by_either_name() -> None:
    prices = Prices({"gpt-4o-mini": Price(prompt=1.0), "*": Price(completion=2.0, request=0.5)})
    pricer = Pricer(prices)
    backend: Any = OpenAI()
    usage = Usage(100, 10, 40, 1)
    asked = pricer.cost(backend, "gpt-4o-mini", "gpt-4o-mini-2024-07-18", usage)
    assert asked == 100 * 10**6
    answered = pricer.cost(backend, None, "gpt-4o-mini", usage)
    assert answered == asked
    other = pricer.cost(backend, "site-model", None, usage)
    assert other == 10 * 2 * 10**6 + PICO // 2
    assert not pricer.uses_table
    assert Pricer().cost(backend, "gpt-4o-mini", "unheard-of", usage) is not None


def test_cached_tokens_cost_as_others_unless_said() -> None:
    assert Price(prompt=2.0).rates.cached == 2 * 10**6
    assert Price(prompt=2.0, cached=0.0).rates.cached == 0


@pytest.mark.parametrize("wrong", [5, "x", {"m": 3}])
def test_prices_are_prices(wrong: Any) -> None:
    with pytest.raises(ConfigError):
        Prices.of(wrong)


def test_the_list_says_how_old_it_is() -> None:
    date = table_date()
    assert "2024-01-01" < date < "2100"
    assert price_table().startswith("genai-prices ")
    assert price_table().endswith(f"prices of {date}")
