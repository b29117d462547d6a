"""`SimulatedFirst`: a stand-in for ALCF's FIRST gateway and the clusters behind it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from scaleinfer.errors import ConfigError
from scaleinfer.testing._first_gateway import Gateway, GatewayRules
from scaleinfer.testing._first_service import ROOT, FirstService
from scaleinfer.testing._first_settings import FirstChange, FirstCluster, FirstModel, FirstToken
from scaleinfer.testing._server import SimulatedServer

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Mapping, Sequence

    from scaleinfer.testing._first_settings import ModelState
    from scaleinfer.testing._process import ServerProcess

__all__ = ["SimulatedFirst"]

_DEFAULT = (
    FirstCluster(name="sophia", models=(FirstModel(name="openai/gpt-oss-120b"),)),
    FirstCluster(
        name="metis", framework="api", direct=True, models=(FirstModel(name="gpt-oss-120b"),)
    ),
)


class SimulatedFirst(SimulatedServer):
    """FIRST, the inference gateway of Argonne's computing facility, without the facility.

    It listens on 127.0.0.1 and serves the gateway's routes under `/resource_server`:
    `/list-endpoints`, `/whoami`, `/{cluster}/jobs`, `/{cluster}/models`, `/v1/batches`, and
    `/{cluster}/{framework}/v1/` with `chat/completions`, `completions`, `embeddings` and, but
    on direct clusters, `batches`. It has the gateway's limits (requests a second of a user over
    all routes, tokens a minute in fixed windows that are charged after the answer), its cold
    starts and its error bodies.

    Batches (`batches=`, see `BatchApi`; one active one for each user by default) read their input
    from this machine's files and write their output there. One that expires has failed.

    ```python
    import asyncio

    from scaleinfer import parallel_map
    from scaleinfer.backends import FirstBackend
    from scaleinfer.testing import SimulatedFirst


    async def main() -> None:
        async with SimulatedFirst(latency=0.1) as gateway:
            backend = FirstBackend(
                "sophia/vllm",
                model="openai/gpt-oss-120b",
                base_url=gateway.base_url,
                token="any",
            )
            results = await parallel_map(range(5), "Is {} a prime number?", backend=backend)
        assert len(results.ok) == 5
        assert gateway.refused == {}


    asyncio.run(main())
    ```

    The ledger's `client` of a request is its cluster, so `ledger.shares()` tells the clusters'
    shares of the tokens.

    Args:
        clusters: What is behind the gateway.
        tokens: The access tokens it takes; `None` for any, all of them one user's.
        requests_per_second: Requests of one user in any second.
        window_s: Seconds of a token window.
        phase_s: Seconds into such a window at which the first request comes.
        request_timeout_s: Seconds until a request that waits for a cold model gets 408.
        cache_s: Seconds that `/jobs` tells the same.
        timeline: What becomes different, and when.
        others: Further arguments of `SimulatedServer`: `latency`, `faults`, `answer`, ...

    Raises:
        ConfigError: A value that cannot be.
    """

    def __init__(
        self,
        clusters: Sequence[FirstCluster] = _DEFAULT,
        *,
        tokens: Mapping[str, FirstToken] | None = None,
        requests_per_second: int = 10,
        window_s: float = 60.0,
        phase_s: float = 0.0,
        request_timeout_s: float = 302.0,
        cache_s: float = 60.0,
        timeline: Sequence[FirstChange] = (),
        **others: Any,
    ) -> None:
        names = {model.name: None for cluster in clusters for model in cluster.models}
        super().__init__(models=tuple(names), **others)
        rules = GatewayRules(
            requests_per_second=requests_per_second,
            window_s=window_s,
            request_timeout_s=request_timeout_s,
            cache_s=cache_s,
        )
        self._gateway = Gateway(clusters, tokens, rules, timeline, phase_s=phase_s)

    @property
    def base_url(self) -> str:
        """The gateway's URL: `http://127.0.0.1:PORT/resource_server`."""
        return f"http://127.0.0.1:{self.port}{ROOT}"

    @property
    def refused(self) -> Counter[str]:
        """How often it refused, by the reason.

        Reasons: `requests`, `tokens`, `inactive token`, `lapsed`, `wrong provider`, `no header`,
        `denied`, `unknown model`, `unknown cluster`, `unsupported framework`,
        `unsupported endpoint`, `bad field`, `bad session`, `too large`, `offline`, `not ready`,
        `not live`, `timeout`, `cluster maintenance`, `maintenance`, `batches` (the quota),
        `batch ongoing`, `batch early`, `batch failed`, `unknown batch`, `no folder`.
        """
        return self._gateway.refused

    def set_state(self, cluster: str, state: ModelState, *, model: str | None = None) -> None:
        """Give a cluster's model another state, or all of its models."""
        self._gateway.set_state(cluster, state, model=model)

    def set_token(
        self, token: str, state: Literal["active", "expired", "lapsed", "provider"]
    ) -> None:
        """Give a token, known or new, a state."""
        self._gateway.set_token(token, state)

    def set_maintenance(self, on: bool, *, cluster: str | None = None) -> None:
        """Begin or end the maintenance of a cluster, or of the whole service."""
        if cluster is None:
            self._gateway.maintenance = on
            return
        known = self._gateway.clusters
        known[cluster] = replace(known[cluster], maintenance=on)

    def _service(self) -> FirstService:
        epoch = time.time() - time.monotonic()
        return FirstService(self.settings, self.ledger, self._gateway, epoch=epoch)

    def in_process(self) -> ServerProcess:
        """It has no process of its own.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            "SimulatedFirst does not run in a process of its own.",
            hint="Use `async with` or in_thread().",
        )
