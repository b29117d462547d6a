"""Restricted items go nowhere else: by the simulated servers' own ledgers."""

from __future__ import annotations

import asyncio
import io
from contextlib import AsyncExitStack, redirect_stderr
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaleinfer import ConfigError, PromptError, Retry, Sampling, parallel_map, stream_map
from scaleinfer.audit import replay, who_saw
from scaleinfer.embedding import parallel_embed
from scaleinfer.engine import Dispatch
from scaleinfer.journal import list_runs, read_attempts, read_results, verify
from scaleinfer.policy import Policy
from scaleinfer.testing import BatchApi, Fault, SimulatedServer

if TYPE_CHECKING:
    from pathlib import Path

    from scaleinfer import MapResult

pytestmark = pytest.mark.anyio

LABELS = ("public", "restricted", "secret", "")
QUICK = Retry(attempts=3, patience=0.2)


def label_of(item: Any) -> str | None:
    label: str = item[0]
    return label or None


def items_of(*labels: str, each: int = 6) -> list[tuple[str, str]]:
    return [(label, f"{label} {number}") for number in range(each) for label in labels]


def content(path: Path) -> bytes:
    return path.read_bytes()


async def mapped(
    servers: list[SimulatedServer], items: Any, policy: Policy, **more: Any
) -> MapResult:
    options: dict[str, Any] = {"progress": False, "retry": QUICK} | more
    backend = [server.base_url for server in servers]
    return await parallel_map(
        items, lambda item: item[1], backend=backend, policy=policy, **options
    )


def saw(server: SimulatedServer) -> set[str]:
    return {prompt.rpartition(" ")[0] for prompt in server.ledger.asked()}


@pytest.fixture
async def two() -> Any:
    async with SimulatedServer(seed=1) as one, SimulatedServer(seed=2) as other:
        yield one, other


FAULTS = [
    [Fault.status(503, rate=0.6)],
    [Fault.reset(rate=0.5)],
    [Fault.status(400, rate=0.3)],
    [Fault.status(429, retry_after=0.01, rate=0.5)],
    [Fault.delay(0.15, rate=0.3)],
    [],
    [],
]


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    allow=st.dictionaries(
        st.sampled_from(LABELS[:3]), st.sets(st.integers(0, 3)) | st.none(), min_size=1
    ),
    default=st.sets(st.integers(0, 3)) | st.none(),
    faults=st.lists(st.sampled_from(FAULTS), min_size=4, max_size=4),
    temperature=st.sampled_from([0.0, None]),
    journaled=st.booleans(),
)
def test_never_a_forbidden_pair(  # noqa: PLR0917 - all are drawn
    allow: dict[str, set[int] | None],
    default: set[int] | None,
    faults: list[list[Fault]],
    temperature: float | None,
    journaled: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Whatever fails, straggles or repeats: a server sees what the policy lets it see."""
    journal = tmp_path_factory.mktemp("policy") / "run.db" if journaled else None

    async def main() -> None:
        async with AsyncExitStack() as stack:
            servers = [
                await stack.enter_async_context(SimulatedServer(faults=some, seed=number))
                for number, some in enumerate(faults)
            ]
            names = [server.base_url for server in servers]

            def patterns(chosen: set[int] | None) -> list[str]:
                return ["*"] if chosen is None else [names[number] for number in chosen]

            policy = Policy(
                label=label_of,
                allow={label: patterns(chosen) for label, chosen in allow.items()},
                default=patterns(default),
            )
            results = await mapped(
                servers,
                # Twice, so that there are identical requests in flight.
                items_of(*LABELS) * 2,
                policy,
                journal=journal,
                dispatch=Dispatch(hedging=True, hedging_share=1.0),
                sampling=Sampling(temperature=temperature),
            )
            everywhere = set(range(4))
            for number, server in enumerate(servers):
                for label in saw(server):
                    allowed = allow.get(label, default) if label else default
                    assert number in (everywhere if allowed is None else allowed)
            nowhere = [r for r in results if isinstance(r.error, ConfigError)]
            for result in results:
                label = result.item[0]
                allowed = allow.get(label, default) if label else default
                assert (result in nowhere) == (allowed == set())
                assert result.label == label
                assert result.restricted == (allowed is not None)
            if journal is not None:
                assert verify(journal).problems == []
                sights = who_saw(journal)
                assert all(sight.allowed for sight in sights)
                # A call may be sent once more over a new connection, to the same server.
                truth = {(label, s.base_url) for s in servers for label in saw(s)}
                assert {(sight.label, sight.endpoint) for sight in sights} == truth

    asyncio.run(main())


async def test_an_item_that_may_go_nowhere_fails_alone(two: Any) -> None:
    one, other = two
    policy = Policy(label=label_of, allow={"public": "*", "restricted": "http://elsewhere/v1"})
    results = await mapped([one, other], items_of("public", "restricted", "unheard of"), policy)
    assert {result.item[0] for result in results.ok} == {"public"}
    assert len(results.failed) == 12
    error = results.failed[0].error
    assert isinstance(error, ConfigError)
    assert "labelled 'restricted'; nothing was sent" in error.message
    assert "http://elsewhere/v1" in error.hint
    assert saw(one) | saw(other) == {"public"}


async def test_with_one_endpoint_too(server: SimulatedServer) -> None:
    policy = Policy(label=label_of, allow={"public": "*", "restricted": "http://elsewhere/v1"})
    results = await mapped([server], items_of("public", "restricted"), policy)
    assert len(results.ok) == len(results.failed) == 6
    assert saw(server) == {"public"}


async def test_the_same_words_under_two_labels_are_two_questions(two: Any) -> None:
    one, other = two
    policy = Policy(label=label_of, allow={"public": one.base_url, "restricted": other.base_url})
    items = [("public", "the same"), ("restricted", "the same")] * 4
    results = await mapped([one, other], items, policy, sampling={"temperature": 0})
    assert len(results.ok) == 8
    assert one.ledger.arrived >= 1
    assert other.ledger.arrived >= 1
    asked = {(result.label, result.endpoint) for result in results if result.attempts}
    assert asked == {("public", one.base_url), ("restricted", other.base_url)}


async def test_embeddings_of_two_labels_never_share_a_call(two: Any) -> None:
    one, other = two
    policy = Policy(
        label=lambda text: text.partition(" ")[0],
        allow={"public": one.base_url, "restricted": other.base_url},
    )
    texts = [text for _, text in items_of("public", "restricted", each=20)]
    results = await parallel_embed(
        texts, backend=[one.base_url, other.base_url], policy=policy, progress=False
    )
    assert len(results.ok) == 40
    assert saw(one) == {"public"}
    assert saw(other) == {"restricted"}


async def test_programs_and_the_endpoints_they_name(two: Any) -> None:
    one, other = two
    policy = Policy(label=label_of, allow={"public": "*", "restricted": one.base_url})

    async def program(item: tuple[str, str], llm: Any) -> str:
        first = await llm(item[1])
        second = await llm(f"{item[1]} again", backend=other.base_url)
        return f"{first.text} {second.text}"

    results = await parallel_map(
        items_of("public", "restricted"), program, base_url=one.base_url, policy=policy,
        progress=False,
    )  # fmt: skip
    assert {result.item[0] for result in results.ok} == {"public"}
    assert all(isinstance(result.error, ConfigError) for result in results.failed)
    assert not any("restricted" in prompt for prompt in other.ledger.asked())
    assert any("restricted" in prompt for prompt in one.ledger.asked())


async def test_in_batches_only_what_their_endpoint_may_see(journal: Path) -> None:
    async with SimulatedServer(batches=BatchApi(seconds=0.2)) as one, SimulatedServer() as other:
        policy = Policy(label=label_of, allow={"public": "*", "restricted": other.base_url})
        results = await mapped(
            [one, other], items_of("public", "restricted"), policy, mode="batch", journal=journal
        )
        assert [result.ok for result in results] == [True] * 12
        for result in results:
            assert (result.batch is None) == (result.label == "restricted")
            if result.label == "restricted":
                assert result.endpoint == other.base_url
        assert saw(one) <= {"public"}
    assert all(sight.allowed for sight in who_saw(journal))
    assert verify(journal).problems == []


async def test_a_label_that_cannot_be_told_is_not_asked(server: SimulatedServer) -> None:
    def label(item: tuple[str, str]) -> Any:
        if item[1] == "public 3":
            raise KeyError("patient 4711")
        return 7 if item[1] == "public 4" else item[0]

    output = io.StringIO()
    with redirect_stderr(output):
        results = await mapped(
            [server], items_of("public"), Policy(label=label, default="*"), progress="log"
        )
    assert [result.ok for result in results] == [True, True, True, False, False, True]
    assert isinstance(results[3].error, PromptError)
    assert "4711" not in str(results[3].error) + output.getvalue()
    assert "a int, not a string" in str(results[4].error)
    assert server.ledger.arrived == 4


async def test_reports_and_logs_leave_restricted_text_out(tmp_path: Path) -> None:
    fault = Fault.status(400, body="CANARY-ECHO of the prompt", match="0")
    output = io.StringIO()
    async with SimulatedServer(faults=[fault], answer=lambda view: f"CANARY {view.prompt}") as one:
        policy = Policy(label=label_of, allow={"restricted": one.base_url})
        with redirect_stderr(output):
            results = await mapped([one], items_of("restricted"), policy, progress="log")
    assert results[1].text == "CANARY restricted 1"
    assert "CANARY" in str(results[0].error)
    page = tmp_path / "run.html"
    results.report(page)
    shown = [output.getvalue(), page.read_text(), repr(results), results._repr_html_()]
    for text in shown:
        assert text
        assert "CANARY" not in text
        assert "restricted 1" not in text


async def test_what_is_redacted_is_not_in_the_journal(journal: Path) -> None:
    fault = Fault.status(400, body="CANARY-ECHO", match="5")
    async with SimulatedServer(faults=[fault], answer=lambda view: f"CANARY {view.prompt}") as one:
        template = "CANARY-TEMPLATE {1}"
        results = await parallel_map(
            items_of("public"), template, base_url=one.base_url, journal=journal,
            policy=Policy(redact="answers"), progress=False,
        )  # fmt: skip
        assert len(results.ok) == 5
        assert b"CANARY" not in content(journal)
        stored = list(read_results(journal))
        assert all(len(one.payload["redacted"]) == 32 for one in stored if one.ok)
        assert all(one.payload["usage"] for one in stored if one.ok)
        failed = next(one for one in stored if not one.ok)
        assert failed.payload["error"]["type"] == "Permanent"
        assert failed.payload["error"]["status"] == 400
        assert {one.attempt.error for one in read_attempts(journal)} == {
            "", "what it said is withheld by the policy.",
        }  # fmt: skip
        assert "CANARY" not in str(list_runs(journal)[0].data)
        assert replay(journal).texts == [None] * 6

        arrived = one.ledger.arrived
        again = await parallel_map(
            items_of("public"), template, base_url=one.base_url, journal=journal,
            policy=Policy(redact="answers"), progress=False,
        )  # fmt: skip
        # The journal cannot give back what it does not have.
        assert one.ledger.arrived == arrived + 6
        assert again.stats.resumed == 0
        assert again.texts == results.texts
    assert verify(journal).problems == []
    assert b"CANARY" not in content(journal)


async def test_prompts_alone_may_be_kept_out(server: SimulatedServer, journal: Path) -> None:
    async def once() -> MapResult:
        return await parallel_map(
            items_of("public"), "CANARY-TEMPLATE {1}", base_url=server.base_url,
            journal=journal, policy=Policy(redact=["prompts"]), progress=False,
        )  # fmt: skip

    first = await once()
    assert "CANARY" not in str(list_runs(journal)[0].data)
    again = await once()
    assert again.stats.resumed == 6
    assert again.texts == first.texts


async def test_the_audit_says_who_saw_what_and_what_should_not_have(
    two: Any, journal: Path
) -> None:
    one, other = two
    strict = Policy(
        label=label_of,
        allow={"public": "*", "restricted": "tag:site"},
        tags={"site": [one.base_url]},
    )
    await mapped([one, other], items_of("public", "restricted"), strict, journal=journal)
    seen = {(sight.label, sight.endpoint): sight for sight in who_saw(journal)}
    assert seen["restricted", one.base_url].items == 6
    assert ("restricted", other.base_url) not in seen
    assert {label for label, _ in seen} == {"public", "restricted"}
    assert sum(sight.calls for sight in seen.values()) == 12
    described = list_runs(journal)[0].data["parameters"]["policy"]
    assert described["allow"] == [["public", ["*"]], ["restricted", ["tag:site"]]]


async def test_restricted_items_do_not_hold_up_the_others() -> None:
    """A slow endpoint for few labels is no reason for the others to stand idle."""
    async with SimulatedServer(latency=0.4) as slow, SimulatedServer() as quick:
        allow = {"restricted": slow.base_url, "public": quick.base_url}
        policy = Policy(label=label_of, allow=allow)
        items = [*items_of("restricted", each=8), *items_of("public", each=40)]
        stream = stream_map(
            items, lambda item: item[1], backend=[slow.base_url, quick.base_url], policy=policy,
            concurrency=1, progress=False,
        )  # fmt: skip
        done = [result.item[0] async for result in stream]
        assert done[-1] == "restricted"
        assert len(done) == 48
