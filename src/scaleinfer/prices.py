"""What tokens cost, from the price table of `genai-prices`; nothing is downloaded."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scaleinfer.backends import Backend
    from scaleinfer.results import Usage

__all__ = ["cost_usd"]


def cost_usd(backend: Backend, model: str | None, usage: Usage) -> float | None:
    """Return the price of `usage` in US dollars, or None if none is known.

    Prices are those of the provider's public list, as the installed `genai-prices` has them.
    A server of your own and the embedded model have no price.

    Args:
        backend: The endpoint's adapter.
        model: The model that answered.
        usage: What was used.
    """
    if model is None or not backend.priced:
        return None
    rates = _rates(model, backend.endpoint)
    if rates is None:
        return None
    per_prompt, per_cached, per_completion = rates
    fresh = usage.prompt_tokens - usage.cached_tokens
    return (
        fresh * per_prompt
        + usage.cached_tokens * per_cached
        + usage.completion_tokens * per_completion
    )


@lru_cache(maxsize=64)
def _rates(model: str, endpoint: str) -> tuple[float, float, float] | None:
    """Dollars for one prompt token, one cached prompt token, one completion token."""
    from genai_prices import Usage as Tokens
    from genai_prices import calc_price

    def price(tokens: Tokens) -> float:
        return float(calc_price(tokens, model, provider_api_url=endpoint).total_price)

    some = 1000  # few enough for the price of short contexts
    try:
        prompt = price(Tokens(input_tokens=some))
        cached = price(Tokens(input_tokens=some, cache_read_tokens=some))
        completion = price(Tokens(output_tokens=some))
    except LookupError:
        return None
    return prompt / some, cached / some, completion / some
