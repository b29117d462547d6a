"""What a simulated FIRST gateway knows and decides: users, limits, models that come and go.

A plain state machine: the clock is passed in.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from scaleinfer.testing import _first_refusals as refusals
from scaleinfer.testing._first_settings import FirstToken

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from scaleinfer.testing._first_settings import (
        FirstChange,
        FirstCluster,
        FirstModel,
        ModelState,
    )

__all__ = ["Gateway", "GatewayRules", "Place"]

_SECOND = 1.0
_FREE_NODES = 3
_ROUTES = {
    False: ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/batches"),
    True: ("/v1/chat/completions",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayRules:
    """Numbers of the gateway.

    Attributes:
        requests_per_second: Requests of one user in any second, over all routes.
        window_s: Length of the windows that tokens are counted in.
        request_timeout_s: Seconds after which a request that waits for a cold model gets 408.
        cache_s: Seconds that `/jobs` tells the same.
        body_bytes: Largest body.
    """

    requests_per_second: int = 10
    window_s: float = 60.0
    request_timeout_s: float = 302.0
    cache_s: float = 60.0
    body_bytes: int = 2_621_440


@dataclass(slots=True)
class Place:
    """A model on a cluster, as it stands.

    Attributes:
        cluster: The cluster.
        model: The model as it was set up.
        state: What holds now, see `FirstModel`.
        started_at: When a request began to start it, if one did.
        used: Tokens charged in the current window, by user; `None` for all users.
        window: Number of that window.
    """

    cluster: FirstCluster
    model: FirstModel
    state: ModelState
    started_at: float | None = None
    used: Counter[str | None] = field(default_factory=Counter)
    window: int = 0

    @property
    def endpoint(self) -> str:
        """The gateway's name for it."""
        return refusals.slug(self.cluster.name, self.cluster.framework, self.model.name)

    def hot_at(self, now: float) -> float:
        """Return when it runs; infinity if nothing starts it."""
        if self.state == "hot":
            return now
        if self.state == "offline" or self.started_at is None:
            return math.inf
        return self.started_at + self.model.queue_s + self.model.load_s

    def status(self, now: float) -> str:
        """Return the "Model Status" that `/jobs` tells; empty if it tells none."""
        if self.state == "offline":
            return ""
        if self.hot_at(now) <= now:
            return "running"
        if self.started_at is None:
            return ""
        return "queued" if now < self.started_at + self.model.queue_s else "starting"


class Gateway:
    """All that does not depend on HTTP.

    Args:
        clusters: What is behind it.
        tokens: The tokens it takes; `None` for any, all of one user.
        rules: Its numbers.
        changes: What becomes different, and when.
        phase_s: Seconds into a token window at which the first request comes.

    Attributes:
        maintenance: True while the whole service is down for maintenance.
        refused: How often each kind of refusal was sent, by its name.
    """

    def __init__(
        self,
        clusters: Iterable[FirstCluster],
        tokens: Mapping[str, FirstToken] | None,
        rules: GatewayRules,
        changes: Iterable[FirstChange] = (),
        *,
        phase_s: float = 0.0,
    ) -> None:
        self.clusters = {cluster.name: cluster for cluster in clusters}
        self.rules = rules
        self.maintenance = False
        self.tokens = None if tokens is None else dict(tokens)
        self.refused: Counter[str] = Counter()
        self._places = {
            (cluster.name, model.name): Place(cluster, model, model.state)
            for cluster in self.clusters.values()
            for model in cluster.models
        }
        self._changes = deque(sorted(changes, key=lambda change: change.at))
        self._phase_s = phase_s
        self._began: float | None = None
        self._recent: dict[str, deque[float]] = {}
        self._inactive_seen: dict[str, float] = {}
        self._told_jobs: dict[str, tuple[float, dict[str, Any]]] = {}

    def at(self, now: float) -> None:
        """Let everything happen that is due."""
        if self._began is None:
            self._began = now
        while self._changes and now - self._began >= self._changes[0].at:
            self.apply(self._changes.popleft())

    def apply(self, change: FirstChange) -> None:
        """Let a change happen now."""
        if change.token is not None and change.token_state is not None:
            self.set_token(change.token, change.token_state)
        if change.cluster is None:
            return
        if change.maintenance is not None:
            old = self.clusters[change.cluster]
            self.clusters[change.cluster] = replace(old, maintenance=change.maintenance)
        if change.state is not None:
            self.set_state(change.cluster, change.state, model=change.model)

    def set_token(self, token: str, state: Any) -> None:
        """Give a token, known or new, a state."""
        if self.tokens is None:
            self.tokens = {}
        old = self.tokens.get(token, FirstToken())
        self.tokens[token] = replace(old, state=state)

    def set_state(self, cluster: str, state: ModelState, *, model: str | None = None) -> None:
        """Give a cluster's model, or all of them, another state."""
        for (where, name), place in self._places.items():
            if where == cluster and model in (None, name):
                place.state, place.started_at = state, None

    # Who asks, and how often.

    def user(self, authorization: str | None, now: float) -> str:
        """Return who asks.

        Raises:
            FirstRefusal: The token is missing, has expired or may not be used (401), or its
                user asks too often (429).
        """
        if authorization is None or not authorization.startswith("Bearer "):
            raise self.refusal("no header", refusals.no_header())
        token = authorization.removeprefix("Bearer ")
        known = FirstToken() if self.tokens is None else self.tokens.get(token)
        if known is None or known.state == "expired":
            seen = self._inactive_seen.get(token)
            self._inactive_seen.setdefault(token, now)
            again = seen is not None and now - seen < self.rules.cache_s
            raise self.refusal("inactive token", refusals.inactive_token(again=again))
        if known.state == "lapsed":
            raise self.refusal("lapsed", refusals.lapsed())
        if known.state == "provider":
            raise self.refusal("wrong provider", refusals.wrong_provider())
        self._count(known.user, now)
        return known.user

    def _count(self, user: str, now: float) -> None:
        recent = self._recent.setdefault(user, deque())
        while recent and now - recent[0] >= _SECOND:
            recent.popleft()
        if len(recent) >= self.rules.requests_per_second:
            raise self.refusal("requests", refusals.too_many_requests())
        recent.append(now)

    def refusal(self, name: str, refusal: refusals.FirstRefusal) -> refusals.FirstRefusal:
        """Count a refusal, and return it."""
        self.refused[name] += 1
        return refusal

    # What is asked.

    def place(self, cluster: str, framework: str, path: str, model: str) -> Place:
        """Return the model that a request is for.

        Raises:
            FirstRefusal: There is none, or it may not be used.
        """
        known = self.cluster(cluster)
        if framework != known.framework:
            refused = refusals.unsupported_framework(framework, cluster)
            raise self.refusal("unsupported framework", refused)
        if path not in _ROUTES[known.direct]:
            refused = refusals.unsupported_endpoint(path, cluster)
            raise self.refusal("unsupported endpoint", refused)
        place = self._places.get((cluster, model))
        if place is None:
            refused = refusals.unknown_endpoint(cluster, framework, model)
            raise self.refusal("unknown model", refused)
        if place.model.denied is not None:
            raise self.refusal("denied", refusals.denied(place.model.denied))
        if self.clusters[cluster].maintenance:
            raise self.refusal("cluster maintenance", refusals.under_maintenance(cluster))
        return place

    def cluster(self, name: str) -> FirstCluster:
        """Return a cluster.

        Raises:
            FirstRefusal: There is none of this name (404).
        """
        if name not in self.clusters:
            raise self.refusal("unknown cluster", refusals.unknown_cluster(name))
        return self.clusters[name]

    # How much, and whether it is up.

    def check_tokens(self, place: Place, user: str, now: float) -> None:
        """See whether the window has tokens left.

        Raises:
            FirstRefusal: It has not (429).
        """
        self._roll(place, now)
        of_all, of_user = place.used[None], place.used[user]
        model = place.model
        if of_all >= model.tokens_per_minute or of_user >= model.tokens_per_minute_per_user:
            raise self.refusal("tokens", refusals.too_many_tokens(of_all, of_user))

    def charge(self, place: Place, user: str, tokens: int, now: float) -> None:
        """Count the tokens of an answer, in the window that it is sent in."""
        self._roll(place, now)
        place.used[None] += tokens
        place.used[user] += tokens

    def _roll(self, place: Place, now: float) -> None:
        began = now if self._began is None else self._began
        window = int((now - began + self._phase_s) // self.rules.window_s)
        if window != place.window:
            place.window = window
            place.used.clear()

    def admit(self, place: Place, now: float) -> float:
        """Return the seconds until the model can begin with a request.

        Raises:
            FirstRefusal: It cannot now (503).
        """
        ready = place.hot_at(now)
        if ready <= now:
            return 0.0
        name = place.cluster.name
        if place.cluster.direct:
            raise self.refusal("not live", refusals.not_live(place.model.name, name))
        if place.state == "offline":
            raise self.refusal("offline", refusals.offline(place.endpoint))
        if place.started_at is not None:
            raise self.refusal("not ready", refusals.not_ready(place.endpoint))
        place.started_at = now
        return place.hot_at(now) - now

    # What it tells.

    def endpoints(self) -> dict[str, Any]:
        """Return the body of `/list-endpoints`; models one may not use are not in it."""
        found = {}
        for cluster in self.clusters.values():
            models = [model.name for model in cluster.models if model.denied is None]
            routes = list(_ROUTES[cluster.direct])
            frameworks = {cluster.framework: {"models": models, "endpoints": routes}}
            base_url = f"/resource_server/{cluster.name}"
            found[cluster.name] = {"base_url": base_url, "frameworks": frameworks}
        return {"clusters": found}

    def models(self, cluster: str, model_id: str | None) -> list[dict[str, Any]]:
        """Return the body of `/{cluster}/models`."""
        known = self.cluster(cluster)
        return [
            {
                "id": model.name,
                "object": "model",
                "cluster": cluster,
                "framework": known.framework,
                "rate_limit_token_per_minute": round(model.tokens_per_minute),
                "rate_limit_token_per_minute_per_user": round(model.tokens_per_minute_per_user),
                "capabilities": ["chat"],
            }
            for model in known.models
            if model.denied is None and model_id in (None, model.name)
        ]

    def jobs(self, cluster: str, now: float) -> dict[str, Any]:
        """Return the body of `/{cluster}/jobs`, as old as the gateway's cache lets it be."""
        self.cluster(cluster)
        told = self._told_jobs.get(cluster)
        if told is None or now - told[0] >= self.rules.cache_s:
            told = self._told_jobs[cluster] = now, self._jobs(cluster, now)
        return told[1]

    def _jobs(self, cluster: str, now: float) -> dict[str, Any]:
        names = ("running", "queued", "stopped", "others")
        found: dict[str, Any] = {name: [] for name in names}
        found |= {"private_batch_running": [], "private_batch_queued": []}
        found["cluster_status"] = {"free_nodes": _FREE_NODES}
        for number, ((where, _), place) in enumerate(self._places.items()):
            if where != cluster:
                continue
            status = place.status(now)
            job = {
                "Models": place.model.name,
                "Framework": place.cluster.framework,
                "Cluster": cluster,
                "Model Status": status or "stopped",
            }
            if status in ("running", "starting"):
                job |= {
                    "Job ID": f"{1000 + number}.sim",
                    "Job State": "R",
                    "Host Name": f"{cluster}-gpu-{number:02}",
                    "Job Comments": "",
                    "Nodes Reserved": "1",
                    "Walltime": "10:00:00",
                }
                found["running"].append(job)
            elif status == "queued":
                assert place.started_at is not None
                left = place.started_at + place.model.queue_s - now
                start = datetime.now() + timedelta(seconds=left)
                job["Estimated Start Time"] = f"{start:%Y-%m-%d %H:%M:%S} (Chicago time)"
                found["queued"].append(job)
            else:
                found["stopped"].append(job)
        return found
