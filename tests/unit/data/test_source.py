from __future__ import annotations

import asyncio
import itertools
import queue
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from scaleinfer.data import END, Source, source
from scaleinfer.data._source import ThreadSource
from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.anyio


def drained(items: Source) -> list[Any]:
    return list(iter(items.next_nowait, END))


@pytest.mark.parametrize("items", [[1, 2, 3], (1, 2, 3), range(1, 4), {1: 0, 2: 0, 3: 0}.keys()])
async def test_sized_input_tells_its_total(items: Any) -> None:
    read = source(items)
    assert read.total == 3
    assert drained(read) == [1, 2, 3]
    assert read.next_nowait() is END
    assert await read.next() is END


async def test_an_endless_generator_is_pulled_one_at_a_time_and_closed() -> None:
    pulled = []
    closed = []

    def endless() -> Iterator[int]:
        try:
            for number in itertools.count():
                pulled.append(number)
                yield number
        finally:
            closed.append(True)

    read = source(endless())
    assert (read.total, pulled) == (None, [])
    assert [read.next_nowait(), await read.next()] == [0, 1]
    assert pulled == [0, 1]
    await read.aclose()
    assert closed == [True]
    assert read.next_nowait() is END
    await read.aclose()


async def test_an_async_generator_serves_many_slots_each_item_once() -> None:
    async def endless() -> AsyncIterator[int]:
        for number in itertools.count():
            await asyncio.sleep(0)
            yield number

    read = source(endless())
    assert not read.nowait
    with pytest.raises(RuntimeError, match="asynchronous"):
        read.next_nowait()
    found = await asyncio.gather(*(read.next() for _ in range(50)))
    assert sorted(found) == list(range(50))
    await read.aclose()
    assert await read.next() is END


async def test_an_async_generator_is_closed() -> None:
    closed = []

    async def two() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    read = source(two())
    assert await read.next() == 1
    await read.aclose()
    assert closed == [True]


async def test_a_source_is_an_async_iterator_and_its_own_source() -> None:
    read = source(["a", "b"])
    assert source(read) is read
    assert [item async for item in read] == ["a", "b"]


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_an_error_of_the_input_reaches_the_caller_as_it_is(kind: str) -> None:
    error = ZeroDivisionError("mine")

    def sync() -> Iterator[int]:
        yield 1
        raise error

    async def asynchronous() -> AsyncIterator[int]:
        yield 1
        raise error

    read = source(sync() if kind == "sync" else asynchronous())
    assert await read.next() == 1
    with pytest.raises(ZeroDivisionError) as caught:
        await read.next()
    assert caught.value is error
    assert await read.next() is END


async def test_a_cancelled_pull_does_not_end_an_iterator_that_survives_it() -> None:
    class Arrivals:
        def __init__(self) -> None:
            self.queue: asyncio.Queue[int] = asyncio.Queue()

        def __aiter__(self) -> Arrivals:
            return self

        async def __anext__(self) -> int:
            return await self.queue.get()

    arrivals = Arrivals()
    read = source(arrivals)
    pull = asyncio.ensure_future(read.next())
    await asyncio.sleep(0)
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    arrivals.queue.put_nowait(7)
    assert await read.next() == 7


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ("one text", "Pass a list"),
        (b"bytes", "Pass a list"),
        ({"a": 1}, r"\.values\(\)"),
        (None, "not None"),
        (42, "not a int"),
        (drained, "not a function"),
    ],
)
async def test_what_holds_no_items_is_refused_with_advice(items: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        source(items)


async def test_likely_slips_are_named(tmp_path: Any) -> None:
    async def fetched() -> list[int]:
        return [1]

    async def agen() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(ConfigError, match="await it"):
        source(fetched())
    with pytest.raises(ConfigError, match="call it"):
        source(agen)
    with pytest.raises(ConfigError, match="read_items"):
        source(tmp_path)


async def test_pandas_rows_are_dicts_without_the_index() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"smiles": ["CCO", "C"], "logp": [-0.3, float("nan")]}, index=[7, 9])
    read = source(frame)
    assert read.total == 2
    first, second = drained(read)
    assert first == {"smiles": "CCO", "logp": -0.3}
    assert type(first["logp"]) is float
    assert second["logp"] != second["logp"]
    assert drained(source(frame["smiles"])) == ["CCO", "C"]
    with pytest.raises(ConfigError, match="more than one column named a"):
        source(pandas.DataFrame([[1, 2]], columns=["a", "a"]))


async def test_polars_frames_eager_and_lazy() -> None:
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"a": [1, 2], "b": ["x", None]})
    rows = [{"a": 1, "b": "x"}, {"a": 2, "b": None}]
    read, lazy = source(frame), source(frame.lazy())
    assert (read.total, lazy.total) == (2, None)
    assert drained(read) == drained(lazy) == rows


async def test_arrow_tables_batches_and_readers() -> None:
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({"a": list(range(3000))})
    rows = [{"a": number} for number in range(3000)]
    read, reader = source(table), source(table.to_reader())
    assert (read.total, reader.total) == (3000, None)
    assert drained(read) == drained(reader) == drained(source(table.to_batches()[0])) == rows


async def test_hugging_face_datasets() -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"a": [1, 2]})
    rows = [{"a": 1}, {"a": 2}]
    read, streamed = source(data), source(data.to_iterable_dataset())
    assert (read.total, streamed.total) == (2, None)
    assert drained(read) == drained(streamed) == rows
    with pytest.raises(ConfigError, match="one of its splits: train"):
        source(datasets.DatasetDict({"train": data}))


async def test_no_frame_library_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pandas", "polars", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    assert drained(source([1])) == [1]


async def test_a_blocking_iterator_does_not_hold_up_the_loop() -> None:
    feed: queue.Queue[int | None] = queue.Queue()
    read = ThreadSource(iter(feed.get, None))
    waiting = [asyncio.ensure_future(read.next()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(pull.done() for pull in waiting)
    for number in range(2):
        feed.put(number)
    feed.put(None)
    found = await asyncio.wait_for(asyncio.gather(*waiting), 5)
    assert sorted(found[:2] + found[2:], key=str) == [0, 1, END]
    assert await read.next() is END


async def test_a_thread_runs_a_bounded_number_ahead_and_stops() -> None:
    pulled = []

    def endless() -> Iterator[int]:
        for number in itertools.count():
            pulled.append(number)
            yield number

    read = ThreadSource(endless())
    assert [await read.next() for _ in range(2000)] == list(range(2000))
    assert len(pulled) <= 2000 + 256 + 2
    await read.aclose()
    for thread in threading.enumerate():
        if thread.name == "scaleinfer-input":
            thread.join(5)
            assert not thread.is_alive()
    assert await read.next() is END


async def test_an_error_in_the_thread_reaches_the_caller() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    read = ThreadSource(broken())
    assert await read.next() == 1
    with pytest.raises(OSError, match="gone"):
        await read.next()
    assert await read.next() is END
