"""What tokens cost: your own prices, else the table of `genai-prices`; nothing is downloaded.

Sums are kept in whole picodollars (10^-12 USD), so that adding up a million calls rounds nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import date
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from scaleinfer.backends import Backend
    from scaleinfer.results import Usage

__all__ = [
    "LONG_PROMPT",
    "PICO",
    "Price",
    "Pricer",
    "Prices",
    "Rates",
    "cost_usd",
    "price_table",
    "table_date",
]

PICO = 10**12
"""Picodollars of one dollar."""
_PER_MILLION = 10**6
LONG_PROMPT = 100_000
"""Prompt tokens up to which no table has a second price for long contexts."""


@dataclass(frozen=True, slots=True)
class Price:
    """What a model's tokens cost, in US dollars for a million of them.

    Attributes:
        prompt: Prompt tokens.
        completion: Completion tokens, those of reasoning included.
        cached: Prompt tokens that the prefix cache answered; default as `prompt`.
        request: Dollars for each call, besides its tokens.

    Raises:
        ConfigError: A price is negative or no number.
    """

    prompt: float = 0.0
    completion: float = 0.0
    cached: float | None = None
    request: float = 0.0

    def __post_init__(self) -> None:
        for name in ("prompt", "completion", "cached", "request"):
            _check(f"Price.{name}", getattr(self, name), optional=name == "cached")

    @property
    def rates(self) -> Rates:
        """The same in picodollars for one token."""
        cached = self.prompt if self.cached is None else self.cached
        prompt, read, completion = (
            round(dollars * PICO / _PER_MILLION)
            for dollars in (self.prompt, cached, self.completion)
        )
        return Rates(prompt, read, completion, round(self.request * PICO))


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of your own, for models that no public list has.

    ```python
    from scaleinfer.prices import Price, Prices

    prices = Prices({"Qwen/Qwen3-8B": Price(prompt=0.05, completion=0.20, cached=0.01)})
    ```

    Attributes:
        models: A price for each model by its name, as it is asked for or as it answers; `"*"`
            is for every other model. They go before the public list.
        units_per_node_hour: What an hour of a fleet's node costs in your allocation's units.

    Raises:
        ConfigError: A value is no price.
    """

    models: Mapping[str, Price] = field(default_factory=dict)
    units_per_node_hour: float = 1.0

    def __post_init__(self) -> None:
        for name, price in self.models.items():
            if not isinstance(price, Price):
                raise ConfigError(f"Prices: the price of {name!r} must be a Price, not {price!r}.")
        _check("Prices.units_per_node_hour", self.units_per_node_hour, optional=False)

    @classmethod
    def of(cls, value: Prices | Mapping[str, Price] | None) -> Prices:
        """Return `value` as `Prices`.

        Raises:
            ConfigError: It is none.
        """
        if isinstance(value, cls):
            return value
        try:
            return cls({} if value is None else dict(value))  # type: ignore[arg-type] # checked
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"prices must be Prices or a dict of Price, not {value!r}."
            ) from error

    def find(self, *names: str | None) -> Price | None:
        """Return the price of the first of these names that has one."""
        for name in names:
            if name is not None and name in self.models:
                return self.models[name]
        return self.models.get("*")


class Rates(NamedTuple):
    """Picodollars: for a prompt token, one read from cache, a completion token, a call."""

    prompt: int
    cached: int
    completion: int
    request: int = 0

    def cost(self, usage: Usage) -> int:
        """Return the price of what was used, in picodollars."""
        return (
            (usage.prompt_tokens - usage.cached_tokens) * self.prompt
            + usage.cached_tokens * self.cached
            + usage.completion_tokens * self.completion
            + usage.requests * self.request
        )


class Pricer:
    """Prices calls: by your own prices first, then by the public list.

    Args:
        prices: Your own.

    Attributes:
        prices: The same.
        uses_table: True once a price came from the public list.
    """

    def __init__(self, prices: Prices | None = None) -> None:
        self.prices = prices or Prices()
        self.uses_table = False
        self._known: dict[tuple[str, str | None, str | None], tuple[Rates | None, str]] = {}

    def rates(self, backend: Backend, asked: str | None, answered: str | None) -> Rates | None:
        """Return what tokens cost at an endpoint; `None` if nobody says.

        Args:
            backend: The endpoint's adapter.
            asked: The model by the name that it is asked for.
            answered: By the name that it gives itself in an answer, if it is known.
        """
        return self._find(backend, asked, answered)[0]

    def cost(
        self, backend: Backend, asked: str | None, answered: str | None, usage: Usage
    ) -> int | None:
        """Return the price of what was used, in picodollars; `None` if nobody says."""
        rates, listed = self._find(backend, asked, answered)
        if rates is None:
            return None
        if listed and usage.prompt_tokens > LONG_PROMPT:
            return _listed_cost(listed, backend.endpoint, usage)
        return rates.cost(usage)

    def _find(
        self, backend: Backend, asked: str | None, answered: str | None
    ) -> tuple[Rates | None, str]:
        """Return the rates, and the model's name if they are the public list's."""
        key = backend.endpoint, asked, answered
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._looked_up(backend, asked, answered)
        return known

    def _looked_up(
        self, backend: Backend, asked: str | None, answered: str | None
    ) -> tuple[Rates | None, str]:
        own = self.prices.find(asked, answered)
        if own is not None:
            return own.rates, ""
        for name in (answered, asked) if backend.priced else ():
            rates = None if name is None else _listed(name, backend.endpoint)
            if name is not None and rates is not None:
                self.uses_table = True
                return rates, name
        return None, ""


def cost_usd(backend: Backend, model: str | None, usage: Usage) -> float | None:
    """Return the price of `usage` in US dollars by the public list; `None` if it has none.

    A server of your own and the embedded model have no price there.

    Args:
        backend: The endpoint's adapter.
        model: The model that answered.
        usage: What was used.
    """
    cost = Pricer().cost(backend, model, model, usage)
    return None if cost is None else cost / PICO


@lru_cache(maxsize=256)
def _listed(model: str, endpoint: str) -> Rates | None:
    from genai_prices import Usage as Tokens

    some = 1000  # few enough for the price of short contexts
    try:
        prompt = _calculated(Tokens(input_tokens=some), model, endpoint)
        cached = _calculated(Tokens(input_tokens=some, cache_read_tokens=some), model, endpoint)
        completion = _calculated(Tokens(output_tokens=some), model, endpoint)
    except LookupError:
        return None
    return Rates(*(round(pico / some) for pico in (prompt, cached, completion)))


def _listed_cost(model: str, endpoint: str, usage: Usage) -> int:
    """Return the exact price of a long prompt, whose tokens may cost more."""
    from genai_prices import Usage as Tokens

    tokens = Tokens(
        input_tokens=usage.prompt_tokens,
        cache_read_tokens=usage.cached_tokens,
        output_tokens=usage.completion_tokens,
    )
    return _calculated(tokens, model, endpoint)


def _calculated(tokens: Any, model: str, endpoint: str) -> int:
    from genai_prices import calc_price

    return round(calc_price(tokens, model, provider_api_url=endpoint).total_price * PICO)


@cache
def table_date() -> str:
    """Return the newest date that the public list mentions (ISO), empty if it names none.

    The list carries no date of its own; this is the latest day, up to today, from which one of
    its prices holds, so it is at least as new.
    """
    from genai_prices.data_snapshot import get_snapshot

    dates: Iterator[Any] = (
        getattr(price.constraint, "start_date", None)
        for provider in get_snapshot().providers
        for model in provider.models
        if isinstance(model.prices, list)
        for price in model.prices
    )
    today = date.today().isoformat()
    found = [day for day in map(str, dates) if day != "None" and day <= today]
    return max(found, default="")


@cache
def price_table() -> str:
    """Return the public list's name, version and date."""
    from importlib.metadata import version

    day = table_date()
    return f"genai-prices {version('genai-prices')}" + (f", prices of {day}" if day else "")


def _check(name: str, value: Any, *, optional: bool) -> None:
    if value is None and optional:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < math.inf:
        raise ConfigError(f"{name} must be a number of at least 0, not {value!r}.")
