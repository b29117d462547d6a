"""What a simulated FIRST gateway serves: clusters, models, tokens, and how they change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from scaleinfer.errors import ConfigError

__all__ = ["FirstChange", "FirstCluster", "FirstModel", "FirstToken", "ModelState"]

ModelState: TypeAlias = Literal["hot", "cold", "offline"]
_STATES = ("hot", "cold", "offline")
_TOKEN_STATES = ("active", "expired", "lapsed", "provider")


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstModel:
    """A model on one cluster.

    Attributes:
        name: Its name there.
        state: `hot`: it answers. `cold`: its first request starts it; that one waits, later
            ones get 503 until it runs. `offline`: every request gets 503. On a cluster with
            `direct=True` no request starts a model, and all that are not hot are "not live".
        queue_s: Seconds that its job waits in the batch system's queue.
        load_s: Seconds that it then takes to load.
        tokens_per_minute: Tokens a minute, of all users together.
        tokens_per_minute_per_user: The same for each user.
        latency: Seconds that its answers take on top of the gateway's latency.
        max_prompt_tokens: Longer prompts are refused by its server.
        denied: Who may not use it: `idp` (wrong identity provider) or `group`.

    Raises:
        ConfigError: A value that cannot be.
    """

    name: str
    state: ModelState = "hot"
    queue_s: float = 60.0
    load_s: float = 600.0
    tokens_per_minute: float = 100_000
    tokens_per_minute_per_user: float = 60_000
    latency: float = 0.0
    max_prompt_tokens: int | None = None
    denied: Literal["idp", "group"] | None = None

    def __post_init__(self) -> None:
        if self.state not in _STATES:
            raise ConfigError(f"FirstModel.state is one of {_STATES}, not {self.state!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstCluster:
    """A cluster behind the gateway.

    Attributes:
        name: Its name in the routes.
        models: What it serves, or could.
        framework: The second part of the routes.
        direct: True where the gateway asks a standing server (Metis, Minerva) instead of
            submitting to Globus Compute (Sophia): errors of the model's server keep their
            status, and cold models do not start by being asked.
        maintenance: Every request gets 503.
    """

    name: str
    models: tuple[FirstModel, ...]
    framework: str = "vllm"
    direct: bool = False
    maintenance: bool = False


@dataclass(frozen=True, slots=True)
class FirstToken:
    """An access token.

    Attributes:
        user: Whose it is; limits are kept for each user.
        state: `active`, `expired`, `lapsed` (30 days without a login) or `provider` (the login
            was with the wrong identity provider).

    Raises:
        ConfigError: The state is unknown.
    """

    user: str = "user"
    state: Literal["active", "expired", "lapsed", "provider"] = "active"

    def __post_init__(self) -> None:
        if self.state not in _TOKEN_STATES:
            raise ConfigError(f"FirstToken.state is one of {_TOKEN_STATES}, not {self.state!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstChange:
    """Something becomes different at a time.

    Attributes:
        at: Seconds after the gateway's first request.
        cluster: The cluster that changes.
        model: The model that changes; `None` for all of the cluster.
        state: The state from then on.
        maintenance: Whether the cluster is under maintenance from then on.
        token: The access token that changes.
        token_state: Its state from then on.
    """

    at: float
    cluster: str | None = None
    model: str | None = None
    state: ModelState | None = None
    maintenance: bool | None = None
    token: str | None = None
    token_state: Literal["active", "expired", "lapsed", "provider"] | None = None
