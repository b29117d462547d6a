"""The front door's arguments, checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from scaleinfer._batch_mode import checked_deadline, checked_mode
from scaleinfer._manifest import describe_run
from scaleinfer._program import Graph, Program, is_program
from scaleinfer.backends import Backend, resolve_backends
from scaleinfer.engine import (
    Budget,
    Concurrency,
    Dispatch,
    RateLimit,
    Retry,
)
from scaleinfer.errors import ConfigError
from scaleinfer.policy import Policy
from scaleinfer.prices import Prices
from scaleinfer.prompts import Renderer
from scaleinfer.requests import Sampling

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from pydantic import BaseModel

    from scaleinfer._batch_mode import Mode
    from scaleinfer.backends import Resolved
    from scaleinfer.fleet import Fleet
    from scaleinfer.prices import Price

__all__ = ["BackendSpec", "Options", "ProgressMode", "PromptFn"]

ProgressMode = bool | Literal["auto", "bar", "notebook", "log", "none"]
BackendSpec = Any
"""A `Backend`, a spec string, a URL, or a configured client of the openai package."""
PromptFn = str | Callable[[Any], Any] | Program | Graph


_IN_MANIFEST = (
    "concurrency", "rate_limit", "dispatch", "priority", "retry", "ordered", "on_error", "packing",
    "deadline", "budget",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """The front door's arguments, checked; their meaning is documented there."""

    items: Any
    prompt_fn: PromptFn
    chosen: tuple[Resolved, ...]
    system: str | None
    schema: type[BaseModel] | None
    sampling: Sampling
    concurrency: int | Concurrency | None
    rate_limit: RateLimit | None
    dispatch: Dispatch
    priority: int
    retry: Retry
    journal: str | os.PathLike[str] | None
    key: Callable[[Any], Any] | None
    ordered: bool
    on_error: Literal["return", "raise"]
    progress: ProgressMode
    name: str | None
    packing: int | None = None
    renderer: type[Renderer] = Renderer
    mode: Mode = "online"
    deadline: float | None = None
    budget: Budget | None = None
    prices: Prices = Prices()  # noqa: RUF009 - it is frozen
    policy: Policy | None = None

    @classmethod
    def of(
        cls,
        *,
        backend: BackendSpec | Sequence[BackendSpec] | None,
        model: str | None,
        base_url: str | None,
        api_key: str | None,
        sampling: Sampling | Mapping[str, Any] | None,
        concurrency: int | Concurrency | Literal["auto"],
        rate_limit: RateLimit | None,
        dispatch: Dispatch | None,
        retry: Retry | None,
        fleet: Fleet | None,
        mode: Mode = "online",
        deadline: float | timedelta | None = None,
        budget: Budget | None = None,
        prices: Prices | Mapping[str, Price] | None = None,
        **others: Any,
    ) -> Options:
        """Check the arguments.

        Raises:
            ConfigError: One of them cannot be used.
        """
        given = backend if isinstance(backend, list | tuple) else [backend]
        if not given:
            raise ConfigError("backend=[] names no endpoint.")
        if fleet is not None:
            elsewhere = {"backend": backend, "base_url": base_url, "api_key": api_key}
            _not_with_a_fleet(elsewhere | {"rate_limit": rate_limit, "model": model})
            given = [fleet.backend(priority=others["priority"], once=budget is not None)]
            # Its workers have tried all there is to try, except what may have been paid for.
            attempts = (retry or Retry()).attempts if budget is not None else 1
            retry = replace(retry or Retry(), attempts=attempts, patience=0.0)
        chosen = tuple(
            resolved
            for one in given
            for resolved in resolve_backends(one, base_url=base_url, model=model, api_key=api_key)
        )
        if len({id(one.backend) for one in chosen}) < len(chosen):
            raise ConfigError("backend= names the same adapter twice.")
        _check("rate_limit", rate_limit, RateLimit)
        _check("dispatch", dispatch, Dispatch)
        _check("retry", retry, Retry)
        _check("budget", budget, Budget)
        _check("policy", others.get("policy"), Policy)
        if not isinstance(others["priority"], int):
            raise ConfigError(f"priority must be an integer, not {others['priority']!r}.")
        if others["on_error"] not in {"return", "raise"}:
            raise ConfigError(f"on_error must be 'return' or 'raise', not {others['on_error']!r}.")
        if others["key"] is not None and not callable(others["key"]):
            raise ConfigError("key must be a function, e.g. key=lambda item: item['id'].")
        return cls(
            chosen=chosen,
            mode=checked_mode(mode, fleet=fleet is not None),
            deadline=checked_deadline(deadline),
            budget=budget,
            prices=Prices.of(prices),
            sampling=Sampling.of(sampling),
            concurrency=_concurrency(concurrency),
            rate_limit=rate_limit,
            dispatch=dispatch or Dispatch(),
            retry=retry or Retry(),
            **others,
        )

    def describe(self, backends: list[Backend]) -> tuple[str, dict[str, Any]]:
        """Return the run's fingerprint and what its manifest says; see `describe_run`."""
        policy = self.policy
        return describe_run(
            backends=backends,
            prompt_fn=self.prompt_fn,
            system=self.system,
            schema=self.schema,
            sampling=self.sampling,
            program=is_program(self.prompt_fn),
            parameters=self._parameters(),
            keep_prompts=policy is None or policy.keeps_prompts,
        )

    def _parameters(self) -> dict[str, Any]:
        """Return the arguments that a journal's manifest names besides the program."""
        policy = self.policy
        named = {name: getattr(self, name) for name in _IN_MANIFEST}
        return {
            **{name: value for name, value in named.items() if value is not None},
            "mode": self.mode if isinstance(self.mode, str) else type(self.mode).__name__,
            "key": getattr(self.key, "__qualname__", None),
            "policy": None if policy is None else policy.describe(),
        }


def _not_with_a_fleet(arguments: dict[str, Any]) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise ConfigError(
                f"{name}= is for a map without a fleet.", hint=f"Fleet.local(n, {name}=...)"
            )


def _check(name: str, value: Any, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        raise ConfigError(f"{name} must be a {kind.__name__}, not {value!r}.")


def _concurrency(value: Any) -> int | Concurrency | None:
    if value == "auto":
        return None
    if isinstance(value, Concurrency):
        return value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(
            f"concurrency must be 'auto', a positive integer or a Concurrency, not {value!r}."
        )
    return value
