from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scaleinfer.errors import ConfigError
from scaleinfer.testing import Fault, Ledger
from scaleinfer.testing._delivery import End
from scaleinfer.testing._job import Head, Job
from scaleinfer.testing._service import Service
from scaleinfer.testing._settings import Settings


def service(**options: Any) -> Service:
    made = Settings(**options)
    return Service(made, Ledger(made.ledger), epoch=1000.0)


def chat(prompt: str = "p", key: str | None = None, **body: Any) -> tuple[Head, bytes]:
    body = {"model": "sim-model", "messages": [{"role": "user", "content": prompt}], **body}
    headers = [(b"accept", b"*/*"), (b"content-length", b"9")]
    if key is not None:
        headers.append((b"authorization", f"Bearer {key}".encode()))
    return Head("POST", "/v1/chat/completions", headers), orjson.dumps(body)


def get(path: str, key: str | None = None) -> tuple[Head, bytes]:
    headers = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
    return Head("GET", path, headers), b""


def arrive(service: Service, request: tuple[Head, bytes], now: float = 0.0) -> Job:
    return service.arrive(*request, None, now)


def ask(service: Service, request: tuple[Head, bytes], now: float = 0.0) -> tuple[int, Any]:
    """Ask for what is answered at once; return status and JSON."""
    job = arrive(service, request, now)
    assert job.due == now
    data, _ = service.advance(job, now)
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), orjson.loads(body)


def error(answer: tuple[int, Any]) -> tuple[int, str, str | int | None]:
    status, body = answer
    return status, body["error"]["type"], body["error"]["code"]


def test_latency_is_waited_for() -> None:
    server = service(latency=0.5)
    job = arrive(server, chat(), 1.0)
    assert server.due_jobs(1.49) == []
    assert server.due_jobs(1.51) == [job]
    assert server.advance(job, 1.51)[1] is End.KEEP
    (record,) = server.ledger.requests
    assert (record.arrived, record.finished) == (1001.0, 1001.51)


def test_latency_by_callable_and_by_jitter() -> None:
    job = arrive(service(latency=lambda v: len(v.prompt) / 10), chat("four"), 0.0)
    assert job.due == pytest.approx(0.4)
    server = service(latency=(1.0, 0.5), seed=3)
    dues = [arrive(server, chat(str(i)), 0.0).due for i in range(200)]
    assert all(due is not None and 0.5 <= due <= 1.5 for due in dues)
    assert len(set(dues)) == 200
    assert dues == [arrive(service(latency=(1.0, 0.5), seed=3), chat(str(i)), 0.0).due
                    for i in range(200)]  # fmt: skip


def test_tokens_take_their_time() -> None:
    server = service(latency=1.0, tokens_per_second=10, answer_tokens=20)
    assert arrive(server, chat(), 0.0).due == pytest.approx(3.0)
    stream = arrive(server, chat(stream=True), 0.0)
    assert stream.due == pytest.approx(1.1)
    times, now = [], 0.0
    while not stream.done:
        now = stream.due or now
        times.append(now)
        server.advance(stream, now)
    # A role, 20 tokens, the finish reason and [DONE], a tenth of a second apart.
    assert times == pytest.approx([1.1 + i / 10 for i in range(23)])


def test_slots_make_the_rest_wait_in_silence() -> None:
    server = service(latency=1.0, slots=2)
    jobs = [arrive(server, chat(str(i)), 0.0) for i in range(4)]
    assert [job.due for job in jobs] == [1.0, 1.0, None, None]
    for job in server.due_jobs(1.0):
        server.advance(job, 1.0)
    assert [job.due for job in jobs[2:]] == [2.0, 2.0]
    assert server.ledger.peak_in_flight == 4


def test_a_client_that_leaves_gives_its_slot_to_the_next() -> None:
    server = service(latency=1.0, slots=1)
    served, waiting, last = (arrive(server, chat(str(i)), 0.0) for i in range(3))
    server.leave(waiting, 0.25)
    server.leave(served, 0.5)
    assert last.due == 1.5
    assert server.due_jobs(1.2) == []
    assert server.due_jobs(1.5) == [last]
    server.advance(last, 1.5)
    assert [r.aborted for r in server.ledger.requests] == [True, True, False]
    assert server.ledger.in_flight == 0
    server.leave(last, 2.0)
    assert server.ledger.aborted == 2


def test_early_faults_take_no_slot() -> None:
    server = service(latency=1.0, slots=1, faults=[Fault.status(503, match="bad")])
    arrive(server, chat("good"), 0.0)
    status, _ = ask(server, chat("bad"))
    assert status == 503
    assert server.slots.taken == 1


def test_a_delay_comes_before_an_early_fault() -> None:
    server = service(faults=(Fault.delay(0.5), Fault.drop()))
    job = arrive(server, chat(), 0.0)
    assert job.due == 0.5
    assert server.advance(job, 0.5) == (b"", End.CLOSE)
    assert server.ledger.requests[0].fault == "delay+drop"
    assert server.ledger.requests[0].status is None


def test_a_stalled_request_stays_in_flight_until_the_client_leaves() -> None:
    server = service(faults=(Fault.stall(),))
    job = arrive(server, chat(), 0.0)
    assert server.advance(job, 0.0)[1] is End.HANG
    assert server.ledger.in_flight == 1
    server.leave(job, 5.0)
    assert server.ledger.requests[0].aborted


def test_keepalive_close_sets_a_trap_or_closes() -> None:
    server = service(faults=(Fault.keepalive_close(),))
    job = arrive(server, chat(), 0.0)
    assert server.advance(job, 0.0)[1] is End.KEEP
    assert job.trapped
    server = service(faults=(Fault.keepalive_close(on="response"),))
    job = arrive(server, chat(), 0.0)
    data, end = server.advance(job, 0.0)
    assert end is End.CLOSE
    assert b"connection: close" not in data
    assert not job.trapped
    assert server.ledger.answered == 1


def test_empty_choices() -> None:
    server = service(faults=(Fault.empty_choices(),))
    status, body = ask(server, chat())
    assert (status, body["choices"]) == (200, [])
    assert server.ledger.answered == 0
    job = arrive(server, chat(stream=True), 0.0)
    assert server.advance(job, 0.0)[0].endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert server.ledger.answered == 0


def test_times_of_outages_count_from_the_first_request() -> None:
    server = service(faults=(Fault.status(503, until=1.0),))
    assert ask(server, chat(), 100.0)[0] == 503
    assert ask(server, chat(), 101.0)[0] == 200


def test_refusals_in_both_dialects() -> None:
    options: dict[str, Any] = {"api_key": "k", "max_prompt_tokens": 2}
    openai, vllm = service(**options), service(dialect="vllm", **options)
    assert error(ask(openai, chat())) == (401, "invalid_request_error", None)
    assert error(ask(openai, chat(key="wrong"))) == (
        401,
        "invalid_request_error",
        "invalid_api_key",
    )
    assert ask(vllm, chat()) == (401, {"error": "Unauthorized"})
    unknown = chat(key="k", model="other")
    assert error(ask(openai, unknown)) == (404, "invalid_request_error", "model_not_found")
    assert error(ask(vllm, unknown)) == (404, "NotFoundError", 404)
    long = chat("123456789", key="k")
    assert error(ask(openai, long)) == (400, "invalid_request_error", "context_length_exceeded")
    assert error(ask(vllm, long)) == (400, "BadRequestError", 400)


def test_a_key_is_never_kept_or_repeated() -> None:
    server = service(api_key="right-secret", keep_bodies=True)
    _, body = ask(server, chat(key="wrong-secret"))
    ask(server, chat(key="right-secret"))
    everything = f"{body} {server.ledger.to_dict()} {server.settings}"
    assert "secret" not in everything
    assert [r.authorised for r in server.ledger.requests] == [True, True]


@pytest.mark.parametrize("body", [b"", b"no json", b"[1]", b"{}", b'"text"'])
def test_bodies_that_ask_nothing_are_refused(body: bytes) -> None:
    server = service()
    status, answer = ask(server, (Head("POST", "/v1/chat/completions"), body))
    assert status == 400
    assert answer["error"]["message"]
    assert server.ledger.in_flight == 0


def test_pages() -> None:
    server = service(models=("a", "b"))
    assert ask(server, get("/health")) == (200, {})
    status, models = ask(server, get("/v1/models"))
    assert (status, [m["id"] for m in models["data"]]) == (200, ["a", "b"])
    assert ask(server, get("/nothing"))[0] == 404
    assert ask(server, get("/v1/chat/completions"))[0] == 405
    assert ask(server, (Head("POST", "/health"), b""))[0] == 405
    ask(server, chat(model="a"))
    assert ask(server, get("/ledger/counts")) == (200, {"p": 1})
    assert ask(server, get("/ledger/statistics"))[1]["by_status"] == {"200": 1}
    copy = Ledger.from_dict(ask(server, get("/ledger"))[1])
    assert copy.requests == server.ledger.requests
    assert server.ledger.other_paths["/health"] == 2


def test_models_need_the_key_and_health_does_not() -> None:
    server = service(api_key="k")
    assert ask(server, get("/v1/models"))[0] == 401
    assert ask(server, get("/v1/models", "k"))[0] == 200
    assert ask(server, get("/health"))[0] == 200


def test_faults_everywhere_strike_health_too() -> None:
    server = service(faults=(Fault.status(503, everywhere=True, until=1),))
    assert ask(server, get("/health"), 0.0)[0] == 503
    assert ask(server, get("/health"), 2.0)[0] == 200


def test_unknown_fields_are_tolerated_and_recorded() -> None:
    server = service()
    assert ask(server, chat(top_k=3, min_p=0.1))[0] == 200
    assert server.ledger.unknown_fields == {"top_k": 1, "min_p": 1}


def test_a_request_without_a_model_gets_the_first() -> None:
    assert ask(service(models=("a", "b")), chat(model=None))[1]["model"] == "a"


def fail(*_: object) -> Any:
    raise ZeroDivisionError("my own bug")


@pytest.mark.parametrize(
    "options",
    [
        {"answer": fail},
        {"latency": fail},
        {"prompt_of": fail},
        {"faults": (Fault.drop(match=fail),)},
    ],
)
def test_a_script_that_raises_is_answered_500(
    options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    server = service(slots=1, **options)
    status, body = ask(server, chat())
    assert status == 500
    assert "ZeroDivisionError: my own bug" in body["error"]["message"]
    assert "ZeroDivisionError: my own bug" in capsys.readouterr().err
    assert server.ledger.in_flight == server.slots.taken == 0


def test_answers_may_depend_on_the_attempt_even_across_repairs() -> None:
    server = service(answer=lambda v: "bad" if v.attempt == 1 else "good")
    first = ask(server, chat("question"))[1]["choices"][0]["message"]["content"]
    messages = [
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "That is not JSON."},
    ]
    second = ask(server, chat(messages=messages))[1]["choices"][0]["message"]["content"]
    assert (first, second) == ("bad", "good")
    assert server.ledger.counts() == {"question": 2}


@pytest.mark.parametrize(
    "options",
    [
        {"latency": -1},
        {"latency": (0.1, 0.2)},
        {"models": ()},
        {"slots": 0},
        {"tokens_per_second": 0},
        {"json_schema": "maybe"},
        {"dialect": "klingon"},
        {"ledger": "counts", "keep_bodies": True},
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Settings(**options)


class Traffic(RuleBasedStateMachine):
    """Clients come, wait and leave in any order; every request has exactly one end."""

    def __init__(self) -> None:
        super().__init__()
        faults = (
            Fault.drop(rate=0.1), Fault.stall(rate=0.1), Fault.slow_drip(rate=0.2),
            Fault.status(503, rate=0.1), Fault.truncate(rate=0.1),
        )  # fmt: skip
        self.server = service(latency=(0.05, 0.05), slots=3, faults=faults)
        self.now = 0.0
        self.open: list[Job] = []
        self.arrived = 0

    @rule(prompt=st.sampled_from("abcdefgh"), stream=st.booleans())
    def arrive(self, prompt: str, stream: bool) -> None:
        job = arrive(self.server, chat(prompt, stream=stream), self.now)
        self.arrived += 1
        self.open.append(job)
        if job.due is not None and job.due <= self.now:
            self.server.advance(job, self.now)

    @rule(step=st.floats(0.0, 0.2))
    def wait(self, step: float) -> None:
        self.now += step
        for job in self.server.due_jobs(self.now):
            if not job.done:
                self.server.advance(job, self.now)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.open))
        self.server.leave(job, self.now)
        assert job.done

    @invariant()
    def books_balance(self) -> None:
        self.open = [job for job in self.open if not job.done]
        ledger = self.server.ledger
        assert ledger.arrived == self.arrived
        assert ledger.in_flight == len(self.open)
        serving = sum(job.served for job in self.open)
        assert self.server.slots.taken == serving <= 3
        waiting = sum(job.due is None for job in self.open)
        assert self.server.slots.waiting == waiting
        assert waiting == 0 or serving == 3

    def teardown(self) -> None:
        for job in self.open:
            self.server.leave(job, self.now)
        assert self.server.ledger.in_flight == 0
        assert self.server.slots.taken == 0


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
