"""The service with a batch, limits and changes, by a clock of its own."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scaleinfer.errors import ConfigError
from scaleinfer.testing import Batching, Change, Fault, Ledger
from scaleinfer.testing._delivery import End
from scaleinfer.testing._job import Head, Job
from scaleinfer.testing._service import Service
from scaleinfer.testing._settings import Settings


def service(**options: Any) -> Service:
    made = Settings(**options)
    return Service(made, Ledger(made.ledger), epoch=1000.0)


def chat(
    prompt: str = "p", *, head: tuple[str, str] = ("x", "y"), **body: Any
) -> tuple[Head, bytes]:
    body = {"model": "sim-model", "messages": [{"role": "user", "content": prompt}], **body}
    headers = [(head[0].encode(), head[1].encode())]
    return Head("POST", "/v1/chat/completions", headers), orjson.dumps(body)


class Client:
    """Drives a service as the shell does; collects what comes, with times."""

    def __init__(self, server: Service) -> None:
        self.server = server
        self.now = 0.0
        self.data: dict[int, list[tuple[float, bytes]]] = {}
        self.ends: dict[int, tuple[float, End]] = {}
        self.jobs: list[Job] = []

    def ask(self, head: Head, body: bytes) -> int:
        number = len(self.jobs)
        self.data[number] = []
        job = self.server.arrive(head, body, number, self.now)
        self.jobs.append(job)
        if job.due is not None and job.due <= self.now:
            self.advance(job)
        return number

    def advance(self, job: Job) -> None:
        data, end = self.server.advance(job, self.now)
        if data:
            self.data[job.client].append((self.now, data))
        if end is not None:
            self.ends[job.client] = self.now, end

    def run(self, until: float) -> None:
        while (due := self.server.timers.next_due) is not None and due <= until:
            self.now = max(self.now, due + 1e-9)  # as a loop's clock does, it has moved on
            for job in self.server.due_jobs(self.now):
                if not job.done:
                    self.advance(job)
        self.now = until

    def answer(self, number: int) -> tuple[int, dict[str, str], Any]:
        raw = b"".join(data for _, data in self.data[number])
        head, _, body = raw.decode().partition("\r\n\r\n")
        first, *lines = head.split("\r\n")
        return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body


def test_the_batch_says_when_answers_come() -> None:
    client = Client(service(batching=Batching(slots=2, step_s=0.1), answer_tokens=10))
    numbers = [client.ask(*chat(str(i))) for i in range(5)]
    assert client.server.load.running == 2
    assert client.server.load.waiting == 3
    client.run(10.0)
    assert [client.ends[n][0] for n in numbers] == pytest.approx([1, 1, 2, 2, 3], abs=0.002)
    ledger = client.server.ledger
    assert ledger.completion_tokens == 50
    assert [r.completion_tokens for r in ledger.requests] == [10] * 5
    starts = [r.started - 1000 for r in ledger.requests if r.started]
    assert starts == pytest.approx([0, 0, 1, 1, 2], abs=0.002)


def test_latency_and_delays_come_on_top() -> None:
    options: dict[str, Any] = {"latency": 0.5, "faults": [Fault.delay(0.25, match="slow")]}
    client = Client(service(batching=Batching(step_s=0.1), answer_tokens=10, **options))
    client.ask(*chat("fast"))
    client.ask(*chat("slow"))
    client.run(10.0)
    assert client.ends[0][0] == pytest.approx(1.5, abs=0.002)
    assert client.ends[1][0] == pytest.approx(1.75, abs=0.002)


def test_streams_come_token_by_token() -> None:
    client = Client(service(batching=Batching(slots=1, step_s=0.1), answer_tokens=5))
    client.ask(*chat("first"))
    stream = client.ask(*chat("second", stream=True))
    client.run(0.45)
    assert client.data[stream] == []
    client.run(10.0)
    times = [round(at, 1) for at, _ in client.data[stream]]
    assert times == [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0][: len(times)]
    assert len(times) >= 6
    assert client.data[stream][-1][1].endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert client.ends[stream][0] == pytest.approx(1.0, abs=0.003)
    assert client.server.ledger.answered == 2


def test_a_stream_of_one_token_and_one_with_a_fault() -> None:
    faults = [Fault.truncate(match="cut")]
    client = Client(service(batching=Batching(step_s=0.001), answer_tokens=1, faults=faults))
    client.ask(*chat("whole", stream=True))
    client.ask(*chat("cut", stream=True))
    client.run(1.0)
    assert client.ends[0][1] is End.KEEP
    assert client.ends[1][1] is End.CLOSE
    assert client.server.ledger.answered == 1


def test_several_choices_and_prompts_are_sequences_of_their_own() -> None:
    server = service(batching=Batching(slots=4, step_s=0.1), answer_tokens=10)
    client = Client(server)
    several = client.ask(*chat("p", n=3))
    assert server.load.running == 3
    body = orjson.dumps({"prompt": ["a", "b"], "n": 2})
    packed = client.ask(Head("POST", "/v1/completions"), body)
    assert (server.load.running, server.load.waiting) == (4, 3)
    client.run(10.0)
    assert client.ends[several][0] == pytest.approx(1.0, abs=0.002)
    assert client.ends[packed][0] == pytest.approx(2.0, abs=0.002)
    assert len(orjson.loads(client.answer(packed)[2])["choices"]) == 4


def test_who_leaves_makes_room() -> None:
    server = service(batching=Batching(slots=1, step_s=0.1), answer_tokens=10)
    client = Client(server)
    for i in range(3):
        client.ask(*chat(str(i)))
    server.leave(client.jobs[1], 0.0)
    client.run(0.5)
    server.leave(client.jobs[0], 0.5)
    client.run(9.0)
    assert list(client.ends) == [2]
    assert client.ends[2][0] == pytest.approx(1.5, abs=0.002)
    assert server.load[:2] == (0, 0)


def test_priority_and_prefix_cache() -> None:
    batching = Batching(slots=1, step_s=0.1, prefix_cache_tokens=1000)
    client = Client(service(batching=batching, answer_tokens=1))
    paper = "x" * 200
    numbers = [
        client.ask(*chat(paper + "one")),
        client.ask(*chat(paper + "two")),
        client.ask(*chat(paper + "urgent", priority=-1)),
    ]
    client.run(5.0)
    assert sorted(numbers, key=lambda n: client.ends[n][0]) == [0, 2, 1]
    usage = orjson.loads(client.answer(1)[2])["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 48}
    assert [r.cached_tokens for r in client.server.ledger.requests] == [0, 48, 48]
    assert client.server.load.prefix_hits == 96
    client.ask(Head("GET", "/metrics"), b"")
    assert (
        'vllm:prefix_cache_hits_total{engine="0",model_name="sim-model"} 96.0'
        in (client.answer(3)[2])
    )


def test_a_script_that_fails_late_is_answered_500(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: object) -> float:
        raise ZeroDivisionError

    client = Client(service(batching=Batching(), latency=fail))
    client.ask(*chat())
    client.run(5.0)
    assert client.answer(0)[0] == 500
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_load_reports_go_to_those_who_ask() -> None:
    options: dict[str, Any] = {"answer_tokens": 4}
    batching = Batching(slots=1, step_s=0.1, kv_tokens=100)
    asked = ("endpoint-load-metrics-format", "JSON")
    client = Client(service(batching=batching, **options))
    for i in range(3):
        client.ask(*chat(str(i), head=asked))
    client.ask(*chat("quiet"))
    client.ask(*chat("stream", head=asked, stream=True))
    client.run(5.0)
    report = client.answer(0)[1]["endpoint-load-metrics"]
    assert '"num_requests_waiting": 3.0' in report
    assert "endpoint-load-metrics" not in client.answer(3)[1]
    assert "endpoint-load-metrics" not in client.answer(4)[1]
    silent = Client(service(batching=batching, load_report=False, **options))
    silent.ask(*chat("p", head=asked))
    silent.run(5.0)
    assert "endpoint-load-metrics" not in silent.answer(0)[1]
    slots = Client(service(slots=4, latency=1.0, load_report=True))
    slots.ask(*chat("p", head=asked))
    slots.run(5.0)
    assert '"kv_cache_usage_perc": 0.25' in slots.answer(0)[1]["endpoint-load-metrics"]


def test_requests_above_the_rate_get_429() -> None:
    client = Client(service(requests_per_second=2, retry_after="ms", rate_limit_headers=True))
    for _ in range(3):
        client.ask(*chat())
    assert [client.answer(n)[0] for n in range(3)] == [200, 200, 429]
    _status, headers, body = client.answer(2)
    assert headers["retry-after-ms"] == "500"
    assert orjson.loads(body)["error"]["code"] == "rate_limit_exceeded"
    client.run(0.5)
    assert client.answer(client.ask(*chat()))[0] == 200
    assert client.server.ledger.rejected_share() == 0.25


def test_tokens_above_the_rate_get_429_and_are_settled() -> None:
    client = Client(
        service(tokens_per_minute=600, rate_limit_headers=True, latency=1.0, answer_tokens=50)
    )
    client.ask(*chat("x" * 400, max_tokens=450))
    client.ask(*chat("x" * 400))
    assert client.answer(1)[1]["x-ratelimit-remaining-tokens"] == "50"
    assert client.answer(1)[0] == 429
    client.run(1.0)
    client.ask(*chat("x" * 400))
    client.run(3.0)
    assert client.answer(2)[0] == 200


def test_a_full_queue_is_503() -> None:
    for options in ({"slots": 1, "latency": 1.0}, {"batching": Batching(slots=1)}):
        client = Client(service(max_waiting=1, **options))
        for _ in range(3):
            client.ask(*chat())
        assert client.answer(2)[0] == 503
        assert client.data[0] == client.data[1] == []
        client.run(10.0)
        assert client.server.ledger.answered == 2


def test_slots_change_in_time_and_back() -> None:
    for options in (
        {"slots": 1, "latency": 1.0},
        {"batching": Batching(slots=1, step_s=0.1), "answer_tokens": 10},
    ):
        change = Change(at=1.5, until=2.4, slots=3)
        client = Client(service(changes=(change,), **options))
        for i in range(7):
            client.ask(*chat(str(i)))
        client.run(20.0)
        ends = [client.ends[n][0] for n in range(7)]
        assert ends == pytest.approx([1, 2, 2.5, 2.5, 3, 4, 5], abs=0.01)


def test_a_slowdown_lasts_until_its_end() -> None:
    change = Change(at=1.0, until=3.0, slowdown=4)
    plain = Client(service(latency=0.5, changes=(change,)))
    batch = Client(service(batching=Batching(step_s=0.1), answer_tokens=5, changes=(change,)))
    for client in (plain, batch):
        client.ask(*chat("a"))
        client.run(1.2)
        client.ask(*chat("b"))
        client.run(4.0)
        client.ask(*chat("c"))
        client.run(9.0)
    assert [plain.ends[n][0] for n in range(3)] == pytest.approx([0.5, 3.2, 4.5], abs=0.005)
    # 1.8 s at a quarter of the pace bring 4.5 tokens.
    assert [batch.ends[n][0] for n in range(3)] == pytest.approx([0.5, 3.05, 4.5], abs=0.005)


@pytest.mark.parametrize("batching", [None, Batching(slots=4, step_s=0.1)])
def test_a_hang_answers_nobody_until_it_ends(batching: Batching | None) -> None:
    latency = 0.0 if batching else 1.0
    change = Change(at=0.5, until=5.0, down="hang")
    client = Client(
        service(latency=latency, batching=batching, answer_tokens=10, changes=(change,))
    )
    client.ask(*chat("before"))
    client.run(2.0)
    client.ask(*chat("during"))
    client.ask(Head("GET", "/health"), b"")
    client.ask(Head("GET", "/ledger/counts"), b"")
    client.run(4.9)
    assert list(client.ends) == [3]
    client.run(9.0)
    expected = [5.5, 6.0, 5.0] if batching else [5.0, 5.0, 5.0]
    assert [client.ends[n][0] for n in range(3)] == pytest.approx(expected, abs=0.01)
    assert client.server.ledger.answered == 2


def test_an_outage_answers_503_or_nothing() -> None:
    server = service(faults=[Fault.html()], api_key="k")
    client = Client(server)
    server.change({"down": "503"}, 0.0)
    client.ask(*chat())
    client.ask(Head("GET", "/v1/models"), b"")
    server.change({"down": True}, 0.0)
    client.ask(*chat())
    assert [client.answer(n)[0] for n in range(2)] == [503, 503]
    assert (client.data[2], client.ends[2][1]) == ([], End.CLOSE)
    server.change({"down": False}, 0.0)
    assert client.answer(client.ask(*chat()))[0] == 200


def test_control_by_request() -> None:
    client = Client(service(slots=1, latency=1.0))
    assert client.answer(client.ask(Head("GET", "/control"), b""))[0] == 405
    assert client.answer(client.ask(Head("POST", "/control"), b'{"slots": 0}'))[0] == 400
    assert client.server.slots.capacity == 1
    assert client.answer(client.ask(Head("POST", "/control"), b'{"slots": null}'))[0] == 200
    assert client.server.slots.capacity is None
    assert client.server.ledger.other_paths == {}


def test_changes_give_back_what_was() -> None:
    server = service(slots=3, requests_per_second=5)
    what: Any = {"slots": math.inf, "requests_per_second": 9, "max_waiting": 4, "down": True,
                 "load_report": True, "slowdown": 2}  # fmt: skip
    before = server.change(what, 0.0)
    assert before == {"slots": 3, "requests_per_second": 5, "max_waiting": math.inf,
                      "down": False, "load_report": False, "slowdown": 1}  # fmt: skip
    assert server.change(before, 1.0) == {**what, "down": "refuse"}


@pytest.mark.parametrize(
    "options",
    [
        {"batching": Batching(), "slots": 3},
        {"batching": Batching(), "tokens_per_second": 3},
        {"requests_per_second": 0},
        {"burst_s": 0},
        {"retry_after": "soon"},
        {"max_waiting": -1},
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Settings(**options)


class Traffic(RuleBasedStateMachine):
    """With a batch, faults, limits and changes, every request still has exactly one end."""

    def __init__(self) -> None:
        super().__init__()
        faults = (
            Fault.drop(rate=0.1), Fault.stall(rate=0.05), Fault.slow_drip(rate=0.1),
            Fault.status(503, rate=0.1), Fault.truncate(rate=0.1), Fault.delay(0.1, rate=0.2),
        )  # fmt: skip
        self.client = Client(
            service(
                batching=Batching(slots=3, step_s=0.02, prefill_tokens_per_s=100, kv_tokens=60),
                faults=faults, requests_per_second=20, max_waiting=5,
                changes=[Change(at=1, until=2, down="hang"), Change(at=1.5, until=3, slots=1)],
            )
        )  # fmt: skip
        self.open: list[Job] = []

    @rule(prompt=st.sampled_from("abcdefgh"), stream=st.booleans(), n=st.integers(1, 2))
    def arrive(self, prompt: str, stream: bool, n: int) -> None:
        number = self.client.ask(*chat(prompt, stream=stream, n=n))
        self.open.append(self.client.jobs[number])

    @rule(step=st.floats(0.0, 0.5))
    def wait(self, step: float) -> None:
        self.client.run(self.client.now + step)

    @rule(slots=st.integers(1, 4), slowdown=st.sampled_from([0.5, 1, 3]), down=st.booleans())
    def change(self, slots: int, slowdown: float, down: bool) -> None:
        what: Any = {"slots": slots, "slowdown": slowdown, "down": "hang" if down else False}
        self.client.server.change(what, self.client.now)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.open))
        self.client.server.leave(job, self.client.now)
        assert job.done

    @invariant()
    def books_balance(self) -> None:
        self.open = [job for job in self.open if not job.done]
        ledger, load = self.client.server.ledger, self.client.server.load
        assert ledger.arrived == len(self.client.jobs)
        assert ledger.in_flight == len(self.open)
        assert load.running + load.waiting <= 2 * len(self.open)
        assert load.running <= 4
        assert 0 <= load.kv_cache <= 1

    def teardown(self) -> None:
        server = self.client.server
        self.client.run(self.client.now + 4)
        server.change({"down": False, "slowdown": 1}, self.client.now)
        self.client.run(self.client.now + 60)
        for job in self.open:
            # All that is left are the stalls.
            assert job.done or job.verdict.fault is not None
            server.leave(job, self.client.now)
        assert server.ledger.in_flight == 0
        assert server.load[:2] == (0, 0)


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
