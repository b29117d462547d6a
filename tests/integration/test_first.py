"""The adapter to FIRST against a simulated gateway: limits, cold starts, clusters that go."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from scaleinfer import parallel_map
from scaleinfer.backends import FirstBackend, FirstLimits, OpenAIBackend, resolve_backend
from scaleinfer.engine import Retry
from scaleinfer.errors import (
    AuthError,
    ConfigError,
    EndpointError,
    Permanent,
    RateLimited,
    Starting,
    Transient,
)
from scaleinfer.requests import Request, Sampling
from scaleinfer.testing import (
    Fault,
    FirstChange,
    FirstCluster,
    FirstModel,
    FirstToken,
    SimulatedFirst,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

MODEL = "openai/gpt-oss-120b"
ASK = Request(messages=[{"role": "user", "content": "Is it?"}])
QUICK = FirstLimits(requests_per_second=50)


@pytest.fixture(autouse=True)
def plain_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Share limits with nobody else, and find no settings of the developer's."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("MODEL", "BASE_URL", "ACCESS_TOKEN", "CLIENT_ID", "CLIENT_SECRET"):
        monkeypatch.delenv(f"FIRST_{name}", raising=False)


def sophia(**model: Any) -> FirstCluster:
    return FirstCluster(name="sophia", models=(FirstModel(name=MODEL, **model),))


def direct(name: str, model: str = MODEL, **settings: Any) -> FirstCluster:
    models = (FirstModel(name=model, **settings),)
    return FirstCluster(name=name, framework="api", direct=True, models=models)


def gateway(*clusters: FirstCluster, **settings: Any) -> SimulatedFirst:
    settings = {"requests_per_second": 50, "cache_s": 0.1} | settings
    return SimulatedFirst(clusters or (sophia(),), **settings)


def backend(of: SimulatedFirst, where: str = "sophia/vllm", **settings: Any) -> FirstBackend:
    usual: dict[str, Any] = {"model": "gpt-oss-120b", "token": "any", "limits": QUICK}
    return FirstBackend(where, base_url=of.base_url, **usual | {"poll_s": 0.2} | settings)


async def refusal(of: SimulatedFirst, **settings: Any) -> EndpointError:
    """Return what comes of one call."""
    async with backend(of, **settings) as adapter:
        with pytest.raises(EndpointError) as caught:
            await adapter.complete(ASK)
    return caught.value


# One call.


async def test_an_answer_and_the_model_under_another_name() -> None:
    async with gateway() as first, backend(first) as adapter:
        answer = await adapter.complete(ASK)
        assert answer.text == "echo: Is it?"
        assert adapter.model == "gpt-oss-120b", "a journal's identities stay as the user named it"
        (record,) = first.ledger.requests
        assert (record.model, record.client) == (MODEL, "sophia")


async def test_the_only_model_is_found() -> None:
    async with gateway() as first, backend(first, model=None) as adapter:
        assert (await adapter.complete(ASK)).text == "echo: Is it?"


async def test_a_model_that_is_not_there_is_named_with_those_that_are() -> None:
    async with gateway() as first:
        with pytest.raises(Permanent, match=f"does not offer llama; it offers {MODEL}"):
            await backend(first, model="llama").open()


@pytest.mark.parametrize(
    ("where", "said"),
    [("polaris/vllm", "no cluster polaris; it has sophia"), ("sophia/api", "it has vllm")],
)
async def test_a_cluster_that_is_not_there(where: str, said: str) -> None:
    async with gateway() as first:
        with pytest.raises(Permanent, match=said):
            await backend(first, where).open()


async def test_a_large_body_is_refused_before_it_is_sent() -> None:
    request = Request(messages=[{"role": "user", "content": "x" * 2_600_000}])
    async with gateway() as first, backend(first) as adapter:
        with pytest.raises(Permanent, match=r"2\.5 MiB, and FIRST takes at most 2\.4 MiB"):
            await adapter.complete(request)
        assert first.ledger.arrived == 0


async def test_a_context_that_is_too_long_is_permanent() -> None:
    async with gateway(sophia(max_prompt_tokens=1)) as first:
        error = await refusal(first)
    assert type(error) is Permanent
    assert error.status == 400
    assert "Shorten the prompt" in error.hint


async def test_a_server_that_knows_no_schemas_is_found_out_through_the_wrapping() -> None:
    request = Request(messages=ASK.messages, schema={"type": "object", "properties": {}})
    async with gateway(json_schema="refuse") as first, backend(first) as adapter:
        assert (await adapter.complete(request)).text
        assert adapter.json_schema is False


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (
            Fault.status(429, body=orjson.dumps({"detail": "Too many requests."}).decode()),
            RateLimited,
            "Too many requests",
        ),
        (Fault.status(500, body="Internal Server Error"), Transient, "Internal Server Error"),
        (Fault.status(504, body='{"error": {"message": "late"}}'), Transient, "late"),
        (
            Fault.status(503, body="Error: Endpoint x online but not ready to receive tasks."),
            Starting,
            "not ready",
        ),
        (
            Fault.status(429, body='{"error": "Rate limit exceeded", "retry_after": "1 second"}'),
            RateLimited,
            "Rate limit exceeded",
        ),
    ],
)
async def test_refusals_of_the_gateway(fault: Fault, kind: type[EndpointError], said: str) -> None:
    async with gateway(faults=[fault]) as first:
        error = await refusal(first)
    assert type(error) is kind
    assert said in error.message


async def test_a_field_that_the_gateway_keeps_for_itself_is_named() -> None:
    request = Request(messages=ASK.messages, sampling=Sampling(extra={"cache_salt": "x"}))
    async with gateway() as first, backend(first) as adapter:
        with pytest.raises(Permanent, match="cache_salt: Extra inputs are not permitted") as caught:
            await adapter.complete(request)
    assert (caught.value.status, caught.value.fatal) == (422, False)


async def test_a_race_inside_the_gateway_costs_no_item() -> None:
    race = Fault.status(500, body="Internal Server Error", rate=0.3, first=1)
    async with gateway(faults=[race]) as first:
        results = await parallel_map(
            range(30), "Is {}?", backend=backend(first), retry=Retry(initial=0.05)
        )
        assert len(results.ok) == 30


@pytest.mark.parametrize("cluster", [sophia(), direct("metis")])
async def test_thoughts_that_used_up_the_answer_are_no_answer(cluster: FirstCluster) -> None:
    empty = {"content": "", "reasoning": "So...", "finish_reason": "length"}
    async with gateway(cluster, answer=lambda _: empty) as first:
        where = f"{cluster.name}/{cluster.framework}"
        async with backend(first, where) as adapter:
            with pytest.raises(Permanent, match="max_tokens"):
                await adapter.complete(ASK)


async def test_nothing_is_streamed_whoever_listens() -> None:
    heard = list[str]()
    async with gateway() as first, backend(first) as adapter:
        request = Request(messages=ASK.messages, on_text=heard.append)
        assert (await adapter.complete(request)).text == "echo: Is it?"
        assert not any(record.stream for record in first.ledger.requests)
    assert not heard


@pytest.mark.parametrize("denied", ["idp", "group"])
async def test_models_that_one_may_not_use_are_not_offered(denied: Any) -> None:
    async with gateway(sophia(denied=denied)) as first:
        with pytest.raises(Permanent, match="does not offer"):
            await backend(first).open()


async def test_a_request_that_is_twice_too_late_is_given_up() -> None:
    fault = Fault.status(408, body='{"error": {"code": "request_timeout", "message": "late"}}')
    async with gateway(faults=[fault]) as first, backend(first) as adapter:
        adapter._calls.state.answered(0.0)
        with pytest.raises(Transient):
            await adapter.complete(ASK)
        with pytest.raises(Permanent, match="try number 2"):
            await adapter.complete(ASK)


async def test_turns_of_a_conversation_name_their_session() -> None:
    def turns(first: str, *others: str) -> Request:
        roles = ["user", "assistant"] * 3
        said = [first, *others]
        messages = [
            {"role": role, "content": text} for role, text in zip(roles, said, strict=False)
        ]
        return Request([{"role": "system", "content": "Be brief."}, *messages])

    asked = [turns("a"), turns("a", "yes", "more"), turns("b")]
    async with gateway(sophia(), direct("minerva")) as first:
        async with backend(first, "minerva") as adapter:
            for request in asked:
                await adapter.complete(request)
        async with backend(first, "minerva", sessions=False) as adapter:
            await adapter.complete(asked[0])
        async with backend(first, "minerva", headers={"X-ALCF-Session-ID": "mine"}) as adapter:
            await adapter.complete(asked[0])
        async with backend(first) as adapter:
            await adapter.complete(asked[0])
        found = [dict(record.headers).get("x-alcf-session-id") for record in first.ledger.requests]
    one, again, other, *rest = found
    assert one == again != other
    assert one is not None
    assert len(one) <= 128
    assert rest == [None, "mine", None]


# Tokens of the user's.


async def test_no_token_says_what_to_run() -> None:
    async with gateway() as first:
        with pytest.raises(AuthError, match="scaleinfer login first"):
            await backend(first, token=None).open()
        assert not first.ledger.other_paths, "nothing was sent"


@pytest.mark.parametrize(
    ("state", "said"),
    [("lapsed", "every 30 days"), ("provider", "app.globus.org/logout"), ("expired", "login")],
)
async def test_a_human_is_needed(state: Any, said: str) -> None:
    async with gateway(tokens={"any": FirstToken(state=state)}) as first:
        with pytest.raises(AuthError, match=said) as caught:
            await backend(first).open()
        assert caught.value.fatal
        assert sum(first.refused.values()) == 1, "no refresh helps"


async def test_a_token_is_never_in_an_error() -> None:
    fault = Fault.status(400, body='{"detail": "you sent secret-token-123"}')
    async with gateway(faults=[fault]) as first:
        error = await refusal(first, token="secret-token-123")
    assert "secret-token-123" not in f"{error} {error.body}"


async def test_many_calls_with_an_old_token_renew_it_once() -> None:
    asked = list[str]()

    def token() -> str:
        asked.append("new" if asked else "old")
        return asked[-1]

    tokens = {"old": FirstToken(), "new": FirstToken()}
    async with gateway(tokens=tokens) as first, backend(first, token=token) as adapter:
        await adapter.complete(ASK)
        first.set_token("old", "expired")
        await asyncio.gather(*(adapter.complete(ASK) for _ in range(20)))
    assert asked == ["old", "new"]


# Limits.


async def test_a_map_is_never_told_to_slow_down() -> None:
    async with SimulatedFirst((sophia(),), requests_per_second=10) as first:
        adapter = backend(first, limits=FirstLimits())
        results = await parallel_map(range(40), "Is {} a prime?", backend=adapter)
        assert len(results.ok) == 40
        assert first.refused["tokens"] == 0
        # A process that stands still for a moment may bunch some requests.
        assert first.refused["requests"] <= 3
        assert results.stats.elapsed_s > 2


async def test_two_maps_in_two_threads_share_the_limit() -> None:
    async with SimulatedFirst((sophia(),), requests_per_second=10) as first:
        counts = list[int]()

        def work(number: int) -> None:
            adapter = backend(first, limits=FirstLimits())
            results = asyncio.run(
                parallel_map(range(15), f"{number} {{}}", backend=adapter, progress="none")
            )
            counts.append(len(results.ok))

        await asyncio.gather(*(asyncio.to_thread(work, number) for number in range(2)))
        assert counts == [15, 15]
        assert first.refused["requests"] <= 2


async def test_tokens_keep_to_the_window() -> None:
    # 8 tokens each: 100 a second, in windows of 3 s that begin when nobody knows.
    limited = sophia(tokens_per_minute_per_user=300)
    limits = FirstLimits(requests_per_second=50, window_s=3.0)
    async with gateway(limited, window_s=3.0, phase_s=1.0, latency=0.05) as first:
        adapter = backend(first, limits=limits)
        results = await parallel_map(range(100), "Is {} a prime?", backend=adapter)
        assert len(results.ok) == 100
        assert first.refused["tokens"] == 0
        used = results.usage.prompt_tokens + results.usage.completion_tokens
        assert results.stats.elapsed_s > 0.8 * (used / 100 - 1)


async def test_a_window_that_others_have_used_up_is_waited_for() -> None:
    limited = sophia(tokens_per_minute_per_user=300)
    limits = FirstLimits(requests_per_second=50, window_s=1.0, tokens_per_minute=1e9)
    async with gateway(limited, window_s=1.0) as first:
        adapter = backend(first, limits=limits)
        results = await parallel_map(range(60), "Is {} a prime?", backend=adapter)
        assert len(results.ok) == 60
        assert first.refused["tokens"] > 0
        assert not results.failed


# Cold starts.


async def test_a_cold_model_gets_one_request_and_then_all() -> None:
    cold = sophia(state="cold", queue_s=0.6, load_s=0.6)
    async with gateway(cold) as first:
        adapter = backend(first)
        results = await parallel_map(range(50), "Is {} a prime?", backend=adapter)
        assert len(results.ok) == 50
        assert first.refused == {}
        warm_up, *others = first.ledger.requests
        assert (warm_up.prompt, warm_up.status) == ("Hello", 200)
        assert warm_up.finished is not None
        assert all(other.arrived >= warm_up.finished - 0.01 for other in others)
        assert first.ledger.other_paths["/resource_server/sophia/jobs"] >= 3


async def test_the_phase_says_how_far_it_is() -> None:
    cold = sophia(state="cold", queue_s=1.0, load_s=0.6)
    phases = list[str]()
    async with gateway(cold) as first, backend(first) as adapter:
        while not adapter._calls.state.hot:
            phases.append(adapter.waits_for)
            assert adapter.places is not None
            assert adapter.places() == 0
            await asyncio.sleep(0.02)
        assert adapter.waits_for == ""
    found = list(dict.fromkeys(phases))
    assert any(phase.startswith("sophia: queued, estimated start ") for phase in found)
    assert found[-1] == "sophia: starting"


async def test_a_warm_up_that_times_out_is_no_end() -> None:
    cold = sophia(state="cold", queue_s=0.5, load_s=0.5)
    async with gateway(cold, request_timeout_s=0.3) as first:
        results = await parallel_map(range(20), "Is {} a prime?", backend=backend(first))
        assert len(results.ok) == 20
        assert first.refused["timeout"] == 1


async def test_a_model_that_does_not_come_in_time_stops_the_run() -> None:
    cold = sophia(state="cold", queue_s=1000)
    async with gateway(cold) as first:
        adapter = backend(first, deadline_s=1.0)
        results = await parallel_map(range(20), "Is {} a prime?", backend=adapter)
        assert "has not run for 1 s (sophia: queued, estimated start" in results.stats.stopped
        assert not results.ok
        assert first.ledger.arrived == 1, "the warm-up alone"


async def test_a_model_that_goes_away_and_comes_back_costs_no_item() -> None:
    timeline = [
        FirstChange(at=0.5, cluster="sophia", state="offline"),
        FirstChange(at=1.5, cluster="sophia", state="hot"),
    ]
    async with gateway(latency=0.05, timeline=timeline) as first:
        results = await parallel_map(range(60), "Is {} a prime?", backend=backend(first))
        assert len(results.ok) == 60
        # One burst as it goes, and a try now and then.
        assert 0 < first.refused["offline"] < 30


async def test_maintenance_is_waited_for() -> None:
    timeline = [
        FirstChange(at=0.3, cluster="sophia", maintenance=True),
        FirstChange(at=1.0, cluster="sophia", maintenance=False),
    ]
    async with gateway(timeline=timeline) as first:
        results = await parallel_map(range(60), "Is {} a prime?", backend=backend(first))
        assert len(results.ok) == 60


# Several clusters.


async def test_nothing_is_lost_while_clusters_come_and_go_and_the_token_expires() -> None:
    clusters = [
        sophia(state="cold", queue_s=1.0, load_s=0.5),
        direct("metis", "gpt-oss-120b", latency=0.1),
        direct("minerva", latency=0.05),
    ]
    timeline = [
        FirstChange(at=1.0, cluster="metis", state="offline"),
        FirstChange(at=2.0, token="one", token_state="expired"),
    ]
    tokens = iter(["one", "two"])
    known = {"one": FirstToken("ada"), "two": FirstToken("ada")}
    async with gateway(*clusters, latency=0.1, tokens=known, timeline=timeline) as first:
        backends = FirstBackend.federated(
            model="gpt-oss-120b",
            base_url=first.base_url,
            token=lambda: next(tokens),
            limits=QUICK,
            poll_s=0.2,
        )
        results = await parallel_map(
            range(200), "Is {} a prime?", backend=backends, retry=Retry(initial=0.1)
        )
        assert len(results) == len(results.ok) == 200
        answered = first.ledger.counts()
        assert answered.pop("Hello") == 1
        assert set(answered.values()) == {1}, "nothing was asked again that had an answer"
        assert len(answered) == 200
        assert first.refused["not live"] > 0
        assert first.refused["inactive token"] > 0
        shares = first.ledger.shares()
        assert all(shares[name] > 0.02 for name in ("sophia", "metis", "minerva"))


async def test_a_cluster_without_the_model_is_left_out() -> None:
    async with gateway(sophia(), direct("metis", "other")) as first:
        backends = FirstBackend.federated(
            model=MODEL, base_url=first.base_url, token="any", limits=QUICK
        )
        results = await parallel_map(range(20), "Is {} a prime?", backend=backends)
        assert len(results.ok) == 20


async def test_a_cold_cluster_holds_nobody_up() -> None:
    clusters = (sophia(state="cold", queue_s=1000), direct("metis", "gpt-oss-120b"))
    faults = [Fault.status(500, body="Internal Server Error", rate=0.3, first=1)]
    async with gateway(*clusters, faults=faults) as first:
        backends = FirstBackend.federated(
            model=MODEL,
            clusters=["sophia", "metis"],
            base_url=first.base_url,
            token="any",
            limits=QUICK,
        )
        results = await parallel_map(
            range(50), "Is {} a prime?", backend=backends, retry=Retry(initial=0.05)
        )
        assert len(results.ok) == 50
        assert {result.endpoint for result in results} == {backends[1].endpoint}


async def test_the_spec_for_all_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRST_ACCESS_TOKEN", "any")
    async with gateway(sophia(), direct("metis", "gpt-oss-120b")) as first:
        results = await parallel_map(
            range(5), "Is {}?", backend="first:", model="gpt-oss-120b", base_url=first.base_url
        )
        assert len(results.ok) == 5


async def test_clusters_are_found_out_from_the_gateway(caplog: pytest.LogCaptureFixture) -> None:
    clusters = (sophia(), direct("aurora", "gpt-oss-120b"), direct("minerva", "another"))
    async with gateway(*clusters, latency=0.05) as first:
        (every,) = FirstBackend.federated(
            model="gpt-oss-120b", base_url=first.base_url, token="any", limits=QUICK,
            weights={"aurora": 3, "atlantis": 1},
        )  # fmt: skip
        results = await parallel_map(range(40), "Is {} a prime?", backend=every)
        assert len(results.ok) == 40
        assert set(first.ledger.shares()) == {"sophia", "aurora"}
        assert first.ledger.other_paths["/resource_server/list-endpoints"] == 1
    assert "atlantis" in caplog.text


async def test_a_cluster_that_comes_while_a_map_runs() -> None:
    async with gateway(sophia(), direct("aurora"), latency=0.05) as first:
        known = first._gateway.clusters
        hidden = known.pop("aurora")
        every = FirstBackend.federated(
            model=MODEL, base_url=first.base_url, token="any", limits=QUICK, poll_s=0.2, every=0.3
        )
        asyncio.get_running_loop().call_later(0.3, known.setdefault, "aurora", hidden)
        results = await parallel_map(range(120), "Is {} a prime?", backend=every)
        assert len(results.ok) == 120
        assert first.ledger.shares()["aurora"] > 0.1


async def test_a_gateway_that_does_not_list_its_clusters(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FIRST_ACCESS_TOKEN", "any")
    refused = Fault.status(
        403, everywhere=True, match=lambda view: view.path.endswith("/list-endpoints")
    )
    async with gateway(sophia(), direct("metis", "gpt-oss-120b"), faults=[refused]) as first:
        results = await parallel_map(
            range(20), "Is {}?", backend="first:", model="gpt-oss-120b", base_url=first.base_url
        )
        assert len(results.ok) == 20
        assert {record.model for record in first.ledger.requests} <= {MODEL, "gpt-oss-120b"}
    assert "does not list its clusters (HTTP 403)" in caplog.text


async def test_a_model_that_no_cluster_has() -> None:
    async with gateway(sophia()) as first:
        every = FirstBackend.federated(
            model="llama", base_url=first.base_url, token="any", limits=QUICK
        )
        results = await parallel_map(range(3), "Is {}?", backend=every)
        assert f"no cluster of FIRST offers llama; they offer {MODEL}" in results.stats.stopped
        assert first.ledger.arrived == 0


async def test_all_clusters_as_one_adapter() -> None:
    clusters = (sophia(), direct("metis", "gpt-oss-120b", state="cold"))
    async with gateway(*clusters) as first:
        every = resolve_backend(
            "first:", model="gpt-oss-120b", base_url=first.base_url, api_key="any"
        ).backend
        status = await every.check()
        assert (status.ok, status.detail) == (True, "sophia/vllm: hot; metis/api: offline")
        async with every:
            await asyncio.sleep(0.3)
            assert every.waits_for == "", "sophia runs"
            assert (await every.complete(ASK)).text == "echo: Is it?"
            assert every.batches() is not None


async def test_what_all_clusters_wait_for_is_told() -> None:
    clusters = (sophia(state="cold", queue_s=1000), direct("metis", "gpt-oss-120b", state="cold"))
    async with gateway(*clusters) as first:
        (every,) = FirstBackend.federated(
            model=MODEL, base_url=first.base_url, token="any", limits=QUICK, poll_s=0.1
        )
        async with every:
            while "queued" not in every.waits_for:  # noqa: ASYNC110 - a state, not an event
                await asyncio.sleep(0.05)
            assert "metis: offline" in every.waits_for
            with pytest.raises(Starting, match="runs nowhere now"):
                await every.complete(ASK)


def test_weights_and_names() -> None:
    made = FirstBackend.federated(model="m", clusters=["sophia", "metis"], weights={"metis": 3})
    assert [one.weight for one in made] == [1.0, 3]
    assert [(one.cluster, one.framework) for one in made] == [("sophia", "vllm"), ("metis", "api")]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (FirstBackend.federated, "no model was named"),
        (lambda: FirstBackend.federated(model="m", clusters=[]), "names no cluster"),
        (
            lambda: FirstBackend.federated(model="m", clusters=["sophia"], weights={"x": 2}),
            "names x",
        ),
        (lambda: FirstBackend.federated(model="m", every=0), "every must be positive"),
        (lambda: FirstBackend.federated(model="m", poll_s=-1), "poll_s"),
        (lambda: FirstBackend("nowhere", model="m"), "names no cluster and framework"),
        (lambda: FirstBackend("a/b/c", model="m"), "names no cluster and framework"),
        (lambda: FirstBackend("sophia", model="m", poll_s=0), "poll_s"),
        (lambda: resolve_backend("first:"), "no model was named"),
    ],
)
def test_what_cannot_be(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


def test_the_spec_of_one_cluster() -> None:
    made = resolve_backend("first:sophia/vllm", model="m", base_url="http://127.0.0.1:9/r").backend
    assert isinstance(made, FirstBackend)
    assert isinstance(made, OpenAIBackend)
    assert made.endpoint == "http://127.0.0.1:9/r/sophia/vllm/v1"


async def test_a_check_tells_the_state() -> None:
    async with gateway(sophia(state="cold", queue_s=1000)) as first:
        status = await backend(first).check()
        assert (status.ok, status.detail, status.models) == (True, "not started yet", (MODEL,))
        assert first.ledger.arrived == 0, "a look starts no model"
        first.set_state("sophia", "hot")
        await asyncio.sleep(0.15)
        assert (await backend(first).check()).detail == "hot"


async def test_plain_completions() -> None:
    async with gateway() as first, backend(first) as adapter:
        answer = await adapter.complete(Request(prompt="one", sampling=Sampling(max_tokens=5)))
        assert answer.text == "echo: one"
        several = [Request(prompt=word) for word in ("two", "three")]
        outcomes = await adapter.complete_many(several)
        assert [getattr(one, "text", one) for one in outcomes] == ["echo: two", "echo: three"]
