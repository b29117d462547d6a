"""The simulated FIRST gateway says what the real one says; clock and sockets left out."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.errors import ConfigError
from scaleinfer.testing import FirstChange, FirstCluster, FirstModel, FirstToken, Ledger
from scaleinfer.testing._first import SimulatedFirst
from scaleinfer.testing._first_gateway import Gateway, GatewayRules
from scaleinfer.testing._first_service import FirstService
from scaleinfer.testing._job import Head
from scaleinfer.testing._settings import Settings

ROOT = "/resource_server"
CHAT = f"{ROOT}/sophia/vllm/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "Is it?"}]}
GOOD = "Bearer good"


def service(
    *models: FirstModel,
    tokens: dict[str, FirstToken] | None = None,
    rules: GatewayRules | None = None,
    changes: tuple[FirstChange, ...] = (),
    direct: bool = False,
    phase_s: float = 0.0,
    **settings: Any,
) -> FirstService:
    clusters = (
        FirstCluster(name="sophia", models=models or (FirstModel(name="m"),), direct=direct),
        FirstCluster(name="metis", framework="api", direct=True, models=(FirstModel(name="x"),)),
    )
    gateway = Gateway(clusters, tokens, rules or GatewayRules(), changes, phase_s=phase_s)
    return FirstService(Settings(**settings), Ledger(), gateway, epoch=1e9)


class Asker:
    """One client of a service."""

    def __init__(self, of: FirstService) -> None:
        self.of = of

    def __call__(
        self,
        path: str = CHAT,
        body: Any = BODY,
        now: float = 0.0,
        *,
        method: str = "POST",
        authorization: str | None = GOOD,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> tuple[float, int, Any]:
        """Return when the answer was sent, its status and its body."""
        if authorization is not None:
            headers = (*headers, (b"authorization", authorization.encode()))
        path, _, query = path.partition("?")
        head = Head(method, path, headers)
        head.query = query
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        job = self.of.arrive(head, data, self, now)
        assert job.due is not None
        sent, _ = self.of.advance(job, job.due)
        said = sent.partition(b"\r\n\r\n")[2]
        parsed = orjson.loads(said) if b"application/json" in sent else said.decode()
        return job.due, job.delivery.status, parsed

    def get(self, path: str, now: float = 0.0) -> tuple[float, int, Any]:
        return self(f"{ROOT}{path}", b"", now, method="GET")


def message(body: Any) -> str:
    return str(body["error"]["message"])


def test_an_answer_is_a_plain_servers_with_sophias_keys() -> None:
    ask = Asker(service(latency=0.5))
    due, status, body = ask()
    assert (due, status) == (0.5, 200)
    assert body["choices"][0]["message"]["content"] == "echo: Is it?"
    assert body["response_time"] == 0.5
    assert "throughput_tokens_per_second" in body
    (record,) = ask.of.ledger.requests
    assert (record.client, record.model, record.ok) == ("sophia", "m", True)


def test_a_direct_cluster_adds_no_keys() -> None:
    assert "response_time" not in Asker(service(direct=True))()[2]


def test_the_list_of_endpoints() -> None:
    ask = Asker(service(FirstModel(name="m"), FirstModel(name="secret", denied="group")))
    clusters = ask.get("/list-endpoints")[2]["clusters"]
    assert clusters["sophia"]["base_url"] == "/resource_server/sophia"
    assert clusters["sophia"]["frameworks"]["vllm"]["models"] == ["m"]
    assert clusters["metis"]["frameworks"]["api"]["endpoints"] == ["/v1/chat/completions"]


def test_the_models_and_their_limits() -> None:
    ask = Asker(service(FirstModel(name="m", tokens_per_minute_per_user=5), FirstModel(name="n")))
    assert [entry["id"] for entry in ask.get("/sophia/models")[2]] == ["m", "n"]
    (entry,) = ask.get("/sophia/models?model_id=m")[2]
    assert entry["rate_limit_token_per_minute"] == 100_000
    assert entry["rate_limit_token_per_minute_per_user"] == 5


def test_health_status_and_whoami() -> None:
    ask = Asker(service(tokens={"good": FirstToken("ada")}))
    assert ask(f"{ROOT}/health", b"", method="GET", authorization=None)[2] == {"status": "ok"}
    assert ask.get("/status")[2] == {"sophia": True, "metis": True}
    assert ask.get("/whoami")[2] == {"username": "ada"}


def test_embeddings() -> None:
    ask = Asker(service())
    path = f"{ROOT}/sophia/vllm/v1/embeddings"
    body = ask(path, {"model": "m", "input": ["a", "b", "a"]})[2]
    vectors = [entry["embedding"] for entry in body["data"]]
    assert vectors[0] == vectors[2] != vectors[1]
    assert body["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", f"{ROOT}/v1/chat/completions", 404),
        ("POST", "/v1/chat/completions", 404),
        ("GET", f"{ROOT}/sophia/vllm/v1/models", 404),
        ("POST", f"{ROOT}/v1/batches", 405),
        ("GET", f"{ROOT}/metrics", 404),
    ],
)
def test_what_is_absent_is_a_web_page(method: str, path: str, status: int) -> None:
    _, got, body = Asker(service())(path, BODY, method=method)
    assert got == status
    assert body.startswith("<!doctype html>")


def test_no_authorization_header() -> None:
    _, status, body = Asker(service())(authorization=None)
    assert status == 401
    assert body == {
        "detail": "Error: Missing ('Authorization': 'Bearer <your-access-token>') "
        "in request headers."
    }


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("expired", "Token is either not active or invalid"),
        ("lapsed", "high-assurance timeout"),
        ("provider", "Must authenticate with"),
    ],
)
def test_tokens_that_are_refused(state: Any, said: str) -> None:
    ask = Asker(service(tokens={"good": FirstToken(state=state)}))
    _, status, body = ask()
    assert (status, body["error"]["code"]) == (401, "unauthorized")
    assert said in message(body)


def test_an_unknown_token_is_worded_otherwise_for_a_minute() -> None:
    ask = Asker(service(tokens={}))
    plain = "Token is either not active or invalid"
    said = [message(ask(now=now)[2]) for now in (0.0, 1.0, 59.0, 61.0)]
    assert said == [plain, f"Token introspection: {plain}", f"Token introspection: {plain}", plain]


@pytest.mark.parametrize(("by", "said"), [("idp", "IdP domain"), ("group", "Globus Group")])
def test_a_model_that_one_may_not_use(by: Any, said: str) -> None:
    _, status, body = Asker(service(FirstModel(name="m", denied=by)))()
    assert status == 401
    assert message(body) == f"Permission denied due to {said} restrictions."


@pytest.mark.parametrize(
    ("path", "model", "status", "code"),
    [
        (CHAT, "none", 404, "endpoint_not_found"),
        (CHAT.replace("sophia", "polaris"), "m", 404, "cluster_not_found"),
        (CHAT.replace("vllm", "api"), "m", 400, "unsupported_framework"),
        (f"{ROOT}/metis/api/v1/completions", "x", 400, "unsupported_endpoint"),
    ],
)
def test_what_is_not_there(path: str, model: str, status: int, code: str) -> None:
    body = BODY | {"model": model, "prompt": "?"}
    _, got, said = Asker(service())(path, body)
    assert (got, said["error"]["code"]) == (status, code)


def test_the_message_about_an_unknown_model_names_the_gateways_endpoint() -> None:
    said = message(Asker(service())(body=BODY | {"model": "no/pe.none"})[2])
    assert said == "The requested endpoint 'sophia-vllm-penone' does not exist."


@pytest.mark.parametrize(
    ("body", "field", "kind"),
    [
        ({"model": "m"}, "messages", "missing"),
        ({"messages": []}, "model", "missing"),
        (BODY | {"cache_salt": "x"}, "cache_salt", "extra_forbidden"),
        (BODY | {"api_port": 1}, "api_port", "extra_forbidden"),
    ],
)
def test_control_fields(body: Any, field: str, kind: str) -> None:
    _, status, said = Asker(service())(body=body)
    assert (status, said["error"]["code"]) == (422, "invalid_request")
    assert said["error"]["message"] == "Invalid FIRST control fields."
    (error,) = said["error"]["info"]["errors"]
    assert (error["field"], error["type"]) == (field, kind)


@pytest.mark.parametrize("session", [b"x" * 129, b"a b", "é".encode()])
def test_a_bad_session(session: bytes) -> None:
    assert Asker(service())(headers=((b"x-alcf-session-id", session),))[1] == 400


def test_ten_requests_in_any_second() -> None:
    ask = Asker(service())
    answers = [ask(now=0.001 * i)[1] for i in range(60)]
    assert answers == [200] * 10 + [429] * 50
    assert ask.get("/whoami", 0.999)[2] == {"detail": "Too many requests."}
    assert ask(now=1.0)[1] == 200, "the first has left the window"
    assert ask.of.gateway.refused == {"requests": 51}


@given(st.lists(st.floats(0, 0.3), max_size=80))
def test_no_second_has_more_than_ten(gaps: list[float]) -> None:
    ask = Asker(service())
    now, accepted = 0.0, list[float]()
    for gap in gaps:
        now += gap
        if ask(now=now)[1] == 200:
            accepted.append(now)
        else:
            assert len([at for at in accepted if now - at < 1.0]) == 10
    for at in accepted:
        assert len([other for other in accepted if at <= other < at + 1.0]) <= 10


def test_users_have_a_limit_each() -> None:
    ask = Asker(service(tokens={"a": FirstToken("ada"), "b": FirstToken("bob")}))
    assert {ask(authorization="Bearer a")[1] for _ in range(10)} == {200}
    assert ask(authorization="Bearer a")[1] == 429
    assert ask(authorization="Bearer b")[1] == 200


def test_tokens_are_charged_after_the_answer_in_fixed_windows() -> None:
    model = FirstModel(name="m", tokens_per_minute_per_user=5)
    ask = Asker(service(model, phase_s=30.0))
    assert ask(now=0.0)[1] == 200, "its 5 tokens are charged with its answer"
    _, status, body = ask(now=1.0)
    assert status == 429
    assert body["error"]["message"] == "Tokens/minute limit exceeded"
    assert body["error"]["info"] == {"global_model_usage": 5, "user_model_usage": 5}
    assert ask(now=29.0)[1] == 429
    assert ask(now=30.0)[1] == 200, "the next window"


def test_the_first_request_to_a_cold_model_waits_for_it() -> None:
    ask = Asker(service(FirstModel(name="m", state="cold", queue_s=60, load_s=120)))
    due, status, _ = ask(now=0.0)
    assert (due, status) == (180.0, 200)
    _, status, body = ask(now=100.0)
    assert (status, body["error"]["code"]) == (503, "internal_endpoint_error")
    assert "online but not ready to receive tasks" in message(body)
    assert ask(now=180.0)[:2] == (180.0, 200)


def test_the_first_request_to_a_slow_cold_model_times_out() -> None:
    ask = Asker(service(FirstModel(name="m", state="cold")))
    due, status, body = ask()
    assert (due, status, body["error"]["code"]) == (302.0, 408, "request_timeout")
    assert body["error"]["info"]["task_id"]


def test_jobs_tell_how_far_a_cold_model_is() -> None:
    model = FirstModel(name="m", state="cold", queue_s=60, load_s=60)
    ask = Asker(service(model, rules=GatewayRules(cache_s=5)))

    def where(now: float) -> tuple[str, str]:
        jobs = ask.get("/sophia/jobs", now)[2]
        (found,) = [(n, j) for n in ("running", "queued", "stopped") for j in jobs[n]]
        return found[0], found[1]["Model Status"]

    assert where(0.0) == ("stopped", "stopped")
    ask(now=1.0)
    assert where(2.0) == ("stopped", "stopped"), "cached"
    assert where(10.0) == ("queued", "queued")
    assert "Estimated Start Time" in ask.get("/sophia/jobs", 10.0)[2]["queued"][0]
    assert where(70.0) == ("running", "starting")
    assert where(121.0) == ("running", "running")


def test_an_offline_endpoint() -> None:
    _, status, body = Asker(service(FirstModel(name="m", state="offline")))()
    assert status == 503
    assert message(body) == "Endpoint 'sophia-vllm-m' is offline."


def test_a_direct_cluster_without_the_model() -> None:
    _, status, body = Asker(service(FirstModel(name="m", state="cold"), direct=True))()
    assert status == 503
    assert message(body) == "Error: 'm' is not currently live on Sophia."


def test_maintenance() -> None:
    of = service(changes=(FirstChange(at=5, cluster="sophia", maintenance=True),))
    ask = Asker(of)
    assert ask(now=0.0)[1] == 200
    _, status, body = ask(now=5.0)
    assert (status, body["error"]["code"]) == (503, "cluster_under_maintenance")
    of.gateway.maintenance = True
    assert ask(now=6.0)[1:] == (503, {"detail": "Service is temporarily down for maintenance."})


def test_what_sophias_server_refuses_is_wrapped_in_a_500() -> None:
    ask = Asker(service(FirstModel(name="m", max_prompt_tokens=1)))
    _, status, body = ask()
    assert (status, body["error"]["code"]) == (500, "internal_endpoint_error")
    assert "API request failed with status code: 400\n Response text: {" in message(body)


def test_what_a_direct_server_refuses_keeps_its_status() -> None:
    _, status, body = Asker(service(FirstModel(name="m", max_prompt_tokens=1), direct=True))()
    assert status == 400
    assert message(body).startswith("Upstream endpoint returned 400: b'{")


def test_a_large_body() -> None:
    _, status, body = Asker(service())(body=BODY | {"pad": "x" * 2_700_000})
    assert (status, body["error"]["code"]) == (500, "internal_error")
    assert "error_id" in body["error"]


def test_states_and_tokens_change_with_time() -> None:
    changes = (
        FirstChange(at=10, cluster="sophia", state="offline"),
        FirstChange(at=20, cluster="sophia", model="m", state="hot"),
        FirstChange(at=30, token="good", token_state="expired"),
    )
    ask = Asker(service(changes=changes, tokens={"good": FirstToken()}))
    assert [ask(now=float(now))[1] for now in (0, 10, 20, 30)] == [200, 503, 200, 401]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: FirstModel(name="m", state="warm"),  # type: ignore[arg-type] # on purpose
        lambda: FirstToken(state="old"),  # type: ignore[arg-type] # on purpose
        lambda: SimulatedFirst().in_process(),
    ],
)
def test_what_cannot_be(wrong: Any) -> None:
    with pytest.raises(ConfigError):
        wrong()
