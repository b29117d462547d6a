"""`BatchClient` against a server that fails, forgets and mixes up; killed at any time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from scaleinfer.backends import BatchAnswer, BatchBackend, BatchLimits, BatchProblem, BatchState
from scaleinfer.batch import Batch, BatchClient, Landed, Row
from scaleinfer.errors import (
    EndpointError,
    Overloaded,
    Permanent,
    RateLimited,
    Transient,
)
from scaleinfer.journal import BatchEvent, OpenBatch
from scaleinfer.journal._batches import unpack_members
from scaleinfer.requests import Request
from scaleinfer.results import Completion

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio

FAST = Batch(poll_s=(0.0002, 0.001), settle_s=0.003)


class Server(BatchBackend):
    """A batch API in memory; what it does is drawn."""

    endpoint = "http://fake/v1"

    def __init__(self, chance: random.Random, *, trouble: float, quota: int | None = None) -> None:
        self.limits = BatchLimits(rows=7, bytes=10_000, open=None)
        self.chance, self.trouble, self.quota = chance, trouble, quota
        self.files: dict[str, list[str]] = {}
        self.tokens: dict[str, str] = {}
        self.batches: dict[str, list[str]] = {}
        self.looks: Counter[str] = Counter()
        self.fate: dict[str, str] = {}
        self.paid: Counter[str] = Counter()
        self.answers: dict[str, list[str]] = {}

    async def hiccup(self, *, accepted: bool = True) -> None:
        await asyncio.sleep(0)
        if self.chance.random() < self.trouble:
            kind = self.chance.choice([Transient, Overloaded] if accepted else [Transient])
            raise kind("hiccup", endpoint=self.endpoint)

    def group(self, request: Request) -> str:
        return "all"

    def line(self, custom_id: str, request: Request) -> bytes:
        return custom_id.encode() + b"\n"

    async def available(self) -> bool:
        return True

    async def upload(self, token: str, lines: list[bytes]) -> str:
        await self.hiccup()
        name = f"f{len(self.files)}"
        self.files[name] = [line.decode().strip() for line in lines]
        return name

    async def create(self, token: str, group: str, upload: str) -> str:
        await self.hiccup()
        running = [name for name in self.batches if name not in self.answers]
        if self.quota is not None and len(running) >= self.quota:
            raise RateLimited("no room")
        assert token not in self.tokens, "submitted twice"
        name = f"b{len(self.batches)}"
        self.tokens[token] = name
        self.batches[name] = self.files[upload]
        assert len(self.batches[name]) == len(set(self.batches[name])) <= self.limits.rows
        self.fate[name] = self.chance.choices(
            ["completed", "expired", "cancelled", "gone", "failed"], [8, 1, 1, 0, 1]
        )[0]
        await self.hiccup(accepted=False)  # the answer may be lost
        return name

    async def find(self, token: str) -> str | None:
        await self.hiccup()
        return self.tokens.get(token)

    async def poll(self, batch: str) -> BatchState:
        await self.hiccup()
        self.looks[batch] += 1
        fate = self.fate[batch]
        if self.looks[batch] < 3:
            return BatchState("in_progress", 1, len(self.batches[batch]))
        if batch not in self.answers:
            self.answers[batch] = []
            if fate != "failed":
                rows = self.batches[batch][:]
                self.chance.shuffle(rows)
                share = 1.0 if fate == "completed" else 0.5
                for row in rows:
                    if self.chance.random() < share * 0.9:
                        self.paid[row.rsplit("-", 1)[0]] += 1
                        self.answers[batch].append(row)
        if fate == "failed":
            return BatchState("failed", problems=(BatchProblem("token_limit_exceeded", "full"),))
        return BatchState(fate)  # type: ignore[arg-type]  # one of its phases

    async def fetch(self, batch: str, state: BatchState) -> AsyncGenerator[list[BatchAnswer], None]:
        rows = self.answers.get(batch, [])
        for start in range(0, len(rows), 3):
            await self.hiccup()
            some = [BatchAnswer(row, Completion(row)) for row in rows[start : start + 3]]
            yield [*some, BatchAnswer("", Transient("unreadable"))]

    async def cancel(self, batch: str) -> None:
        await self.hiccup()
        self.fate[batch] = "cancelled"
        self.looks[batch] = 9


class Notes:
    """A journal as far as batches go; what is noted survives a kill."""

    def __init__(self) -> None:
        self.known: dict[str, OpenBatch] = {}
        self.open_batches: tuple[OpenBatch, ...] = ()

    def reopen(self) -> None:
        self.open_batches = tuple(self.known.values())

    async def note_batch(self, event: BatchEvent) -> None:
        await asyncio.sleep(0)
        known = self.known.get(event.token)
        if event.event == "closed":
            self.known.pop(event.token, None)
        elif known is None:
            members = unpack_members(event.members)
            self.known[event.token] = OpenBatch(
                event.token, "", event.endpoint, event.noted, members
            )
        else:
            self.known[event.token] = OpenBatch(
                event.token, event.batch, event.endpoint, event.noted, known.members
            )
        await asyncio.sleep(0)


class Run:
    """A process that maps: everything but `disk` dies with it."""

    def __init__(self, server: Server, notes: Notes, disk: dict[int, str], rows: int) -> None:
        self.disk = disk
        self.asked_online: list[int] = []
        self.left: set[int] = set()
        self.client = BatchClient(
            server,
            options=FAST,
            journal=notes,  # type: ignore[arg-type]  # all of one that it needs
            taker=self,
            patience=60.0,
        )
        self.rows = rows

    async def landed(self, rows: list[Landed]) -> None:
        await asyncio.sleep(0)
        for one in rows:
            number = one.member.index
            if isinstance(one.outcome, Completion):
                if one.row is None and number in self.disk:
                    continue  # it was on disk before an earlier process was killed
                assert number not in self.disk, "paid for twice"
                self.disk[number] = one.outcome.text
                self.left.discard(number)
                continue
            assert one.row is not None
            assert number in self.left
            if not self.client.add(one.row):
                self.asked_online.append(number)
        await asyncio.sleep(0)

    async def feed(self) -> None:
        for number in range(self.rows):
            await self.client.room()
            if number not in self.disk:
                request = Request([{"role": "user", "content": f"{number}"}])
                self.left.add(number)
                row = Row(number.to_bytes(16, "big"), 0, f"{number}", "", number, request)
                assert self.client.add(row)
            await asyncio.sleep(0)
        self.client.end_input()

    async def work(self) -> None:
        await asyncio.gather(self.client.run(), self.feed())
        assert not self.left


@pytest.mark.parametrize("seed", range(20))
async def test_no_row_is_lost_and_none_is_paid_for_twice(seed: int) -> None:
    chance = random.Random(seed)
    quota = chance.choice([None, 1, 2])
    server = Server(chance, trouble=chance.choice([0.0, 0.1, 0.3]), quota=quota)
    notes, disk, rows = Notes(), dict[int, str](), 60
    for _ in range(chance.randrange(6)):
        run = asyncio.create_task(Run(server, notes, disk, rows).work())
        for _ in range(chance.randrange(300)):
            await asyncio.sleep(0)
        run.cancel()
        await asyncio.wait([run])
        assert run.cancelled() or run.exception() is None, run.exception()
        notes.reopen()
    await Run(server, notes, disk, rows).work()
    assert sorted(disk) == list(range(rows))
    assert all(int(text[:32], 16) == number for number, text in disk.items())
    assert set(server.paid.values()) == {1}
    assert len(server.paid) == rows
    assert not notes.known


@pytest.mark.parametrize("turns", range(5))
async def test_a_cancelled_client_ends_though_it_was_just_woken(turns: int) -> None:
    client = Run(Server(random.Random(0), trouble=0.0), Notes(), {}, 0).client
    running = asyncio.create_task(client.run())
    for _ in range(10):
        await asyncio.sleep(0)
    client.flush()
    for _ in range(turns):
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running], timeout=1)
    cancelled = running.cancelled()
    client.end_input()
    await asyncio.wait([running])
    assert cancelled


async def test_what_cannot_pass_ends_the_run() -> None:
    class Refusing(Server):
        async def upload(self, token: str, lines: list[bytes]) -> str:
            raise Permanent("no", status=400)

    run = Run(Refusing(random.Random(0), trouble=0.0), Notes(), {}, 5)
    with pytest.raises(EndpointError, match="no"):
        await run.work()


async def test_trouble_that_does_not_end_is_given_up() -> None:
    class Down(Server):
        async def upload(self, token: str, lines: list[bytes]) -> str:
            raise Transient("down")

    server: Any = Down(random.Random(0), trouble=0.0)
    run = Run(server, Notes(), {}, 5)
    run.client = BatchClient(server, options=FAST, taker=run, patience=0.01)
    with pytest.raises(Transient, match="down"):
        await run.work()


async def test_a_batch_that_the_server_forgot_is_asked_again() -> None:
    server = Server(random.Random(0), trouble=0.0)
    run = Run(server, Notes(), {}, 5)
    first = asyncio.create_task(run.work())
    while not server.batches:  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0)
    server.fate["b0"] = "gone"
    server.answers["b0"] = []
    await first
    assert sorted(run.disk) == list(range(5))


async def test_what_comes_of_a_batch_that_fails_as_a_whole() -> None:
    server = Server(random.Random(0), trouble=0.0)
    run = Run(server, Notes(), {}, 5)

    async def poll(batch: str) -> BatchState:
        return BatchState("failed", problems=(BatchProblem("model_not_found", "no such model"),))

    server.poll = poll  # type: ignore[method-assign]
    with pytest.raises(Permanent, match="no such model") as caught:
        await run.work()
    assert caught.value.fatal


async def test_rows_that_the_server_blames_fail_and_the_others_go_on() -> None:
    server = Server(random.Random(1), trouble=0.0)
    real = server.poll
    refused: list[int] = []

    async def poll(batch: str) -> BatchState:
        if batch == "b0":
            problem = BatchProblem("invalid_row", "too odd", 2)
            return BatchState("failed", problems=(problem,))
        return await real(batch)

    class Tolerant(Run):
        async def landed(self, rows: list[Landed]) -> None:
            for one in rows:
                if isinstance(one.outcome, Permanent):
                    refused.append(one.member.index)
                    self.left.discard(one.member.index)
            await super().landed([one for one in rows if not isinstance(one.outcome, Permanent)])

    server.poll = poll  # type: ignore[method-assign]
    run = Tolerant(server, Notes(), {}, 5)
    await run.work()
    assert refused == [1]
    assert sorted(run.disk) == [0, 2, 3, 4]
