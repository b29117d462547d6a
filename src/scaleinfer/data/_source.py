"""`source`: whatever holds items, as one kind of stream that is pulled an item at a time."""

from __future__ import annotations

import asyncio
import inspect
import queue
import sys
import threading
from collections.abc import AsyncGenerator, Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Self

from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

__all__ = ["END", "Source", "ThreadSource", "source"]

_FRAME_ROWS = 1024
_AHEAD = 256


class _End:
    """The type of `END`."""

    def __repr__(self) -> str:
        return "END"


END: Final = _End()
"""What `Source.next_nowait` and `Source.next` return once there is nothing more."""


class Source:
    """A stream of items, pulled one at a time and never listed.

    Many slots may pull from one source; each item goes to exactly one of them. An exception of
    the input's own iterator reaches the one who pulled, as it is, and ends the source: later
    pulls return `END`.

    Attributes:
        total: How many items there are; `None` if that is not known beforehand.
        nowait: True if `next_nowait` works; False for an asynchronous input.
    """

    total: int | None
    nowait: bool = True

    def __init__(self, items: Iterator[Any], total: int | None = None) -> None:
        self._items = items
        self._given = items
        self.total = total

    def next_nowait(self) -> Any:
        """Return the next item, or `END`, without giving up control of the event loop.

        Raises:
            RuntimeError: The input is asynchronous (`nowait` is False).
        """
        try:
            return next(self._items, END)
        except BaseException:
            self._items = iter(())
            raise

    async def next(self) -> Any:
        """Return the next item, or `END`; works for every source."""
        return self.next_nowait()

    async def aclose(self) -> None:
        """End the input: a generator is closed, so its `finally` blocks and files are done with.

        To be called when nobody pulls any more; closing twice is harmless.
        """
        self._items = iter(())
        if isinstance(self._given, Generator):
            self._given.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        item = await self.next()
        if item is END:
            raise StopAsyncIteration
        return item


class _AsyncSource(Source):
    """Items of an async iterator; one `__anext__` at a time, as async generators demand."""

    nowait = False

    def __init__(self, items: AsyncIterator[Any], total: int | None = None) -> None:
        super().__init__(iter(()), total)
        self._async_items: AsyncIterator[Any] | None = items
        self._async_given = items
        self._turn = asyncio.Lock()

    def next_nowait(self) -> Any:
        raise RuntimeError("this source is asynchronous: use `await source.next()`")

    async def next(self) -> Any:
        async with self._turn:
            if self._async_items is None:
                return END
            try:
                return await anext(self._async_items, END)
            except asyncio.CancelledError:
                raise  # the pull was cancelled, not the input
            except BaseException:
                self._async_items = None
                raise

    async def aclose(self) -> None:
        async with self._turn:
            self._async_items = None
            if isinstance(self._async_given, AsyncGenerator):
                await self._async_given.aclose()


class ThreadSource(Source):
    """Items of an iterator that blocks (a pipe, a terminal), pulled by a daemon thread.

    The thread runs at most a bounded number of items ahead. A daemon, because a read that
    never returns must not keep the process from ending.
    """

    nowait = False

    def __init__(self, items: Iterator[Any], total: int | None = None) -> None:
        super().__init__(iter(()), total)
        self._blocking = items
        self._ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(_AHEAD)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived = asyncio.Event()
        self._awaited = False
        self._stopped = False
        self._done = False

    def next_nowait(self) -> Any:
        raise RuntimeError("this source is asynchronous: use `await source.next()`")

    async def next(self) -> Any:
        if self._loop is None and not self._done:
            self._loop = asyncio.get_running_loop()
            threading.Thread(target=self._pull, name="scaleinfer-input", daemon=True).start()
        while not self._done:
            taken = self._take() or self._armed_take()
            if taken is None:
                await self._arrived.wait()
                continue
            self._awaited = False
            item, error = taken
            if item is END:
                self._done = True
                self._arrived.set()
            if error is not None:
                raise error
            return item
        return END

    def _take(self) -> tuple[Any, BaseException | None] | None:
        try:
            return self._ready.get_nowait()
        except queue.Empty:
            return None

    def _armed_take(self) -> tuple[Any, BaseException | None] | None:
        # The flag is set before the queue is looked at once more, and the thread puts before
        # it reads the flag: an arrival is never missed.
        self._arrived.clear()
        self._awaited = True
        return self._take()

    async def aclose(self) -> None:
        self._stopped = self._done = True
        self._arrived.set()
        while self._take() is not None:  # frees a thread that waits for room
            pass

    def _pull(self) -> None:
        try:
            for item in self._blocking:
                self._hand_over(item, None)
                if self._stopped:
                    break
            else:
                self._hand_over(END, None)
        except BaseException as error:  # travels to the one who pulls
            self._hand_over(END, error)
        finally:
            if isinstance(self._blocking, Generator):
                self._blocking.close()

    def _hand_over(self, item: Any, error: BaseException | None) -> None:
        self._ready.put((item, error))
        if self._awaited and self._loop is not None and not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(self._arrived.set)
            except RuntimeError:  # the loop was closed in between: nobody waits any more
                self._stopped = True


def source(items: Any) -> Source:
    """Return `items` as a `Source`; nothing is pulled yet.

    Accepted: lists and any other iterable, generators, async iterables and generators (endless
    ones too), pandas and polars frames (a row is a dict of column to value; pandas' index is
    not part of it; missing values stay as the frame has them), a polars `LazyFrame` (collected
    when the first item is pulled), pyarrow tables, batches and readers, Hugging Face datasets
    (a row is a dict), and a `Source` itself.

    A synchronous iterable is pulled on the event loop, so one that waits (for a network, say)
    holds up everything else; give such input as an async generator.

    Raises:
        ConfigError: `items` is no such thing, or is a string or a mapping, which would be
            iterated by character or by key and is nearly always a mistake.
    """
    if isinstance(items, Source):
        return items
    _refuse(items)
    framed = _frame(items)
    if framed is not None:
        return framed
    total = _length(items)
    if hasattr(items, "__aiter__"):
        return _AsyncSource(aiter(items), total)
    try:
        return Source(iter(items), total)
    except TypeError as error:
        raise ConfigError(
            f"items must be something to iterate over, not {_named(items)}.", hint=_advice(items)
        ) from error


def _named(items: Any) -> str:
    return "None" if items is None else f"a {type(items).__name__}"


def _advice(items: Any) -> str:
    if inspect.iscoroutine(items):
        items.close()
        return "It is a coroutine: await it first and pass what it returns."
    if inspect.isgeneratorfunction(items) or inspect.isasyncgenfunction(items):
        return "It is a generator function: call it and pass what it returns."
    if hasattr(items, "__fspath__"):
        return "To read a file, pass scaleinfer.data.read_items(path)."
    return "Pass a list, a generator, an async generator, a frame or a dataset."


def _refuse(items: Any) -> None:
    if isinstance(items, str | bytes | bytearray):
        raise ConfigError(
            "items is a single string; its characters would be the items.",
            hint="Pass a list: [text]. To read a file, pass scaleinfer.data.read_items(path).",
        )
    if isinstance(items, Mapping):
        splits = type(items).__name__ in ("DatasetDict", "IterableDatasetDict")
        raise ConfigError(
            f"items is a {type(items).__name__}; only its keys would be the items.",
            hint=f"Pass one of its splits: {', '.join(map(str, items))}."
            if splits
            else "Pass its .values(), its .items(), or a list of it.",
        )


def _length(items: Any) -> int | None:
    try:
        return len(items)
    except TypeError:  # no length, or one that is not known (numpy's zero-dimensional arrays)
        return None


def _is(items: Any, module: str, *names: str) -> bool:
    # A frame can only exist if its library was imported, so nothing needs importing here.
    loaded = sys.modules.get(module)
    kinds = tuple(kind for name in names if isinstance(kind := getattr(loaded, name, None), type))
    return isinstance(items, kinds)


def _frame(items: Any) -> Source | None:
    if _is(items, "pandas", "DataFrame"):
        return _named_rows(items)
    if _is(items, "polars", "DataFrame"):
        return Source(items.iter_rows(named=True), items.height)
    if _is(items, "polars", "LazyFrame"):
        return Source(_collected(items))
    if _is(items, "pyarrow", "Table", "RecordBatch"):
        return Source(_batch_rows(_batches(items)), items.num_rows)
    if _is(items, "pyarrow", "RecordBatchReader"):
        return Source(_batch_rows(items))
    return None


def _named_rows(frame: Any) -> Source:
    names = list(frame.columns)
    twice = sorted({str(name) for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"the frame has more than one column named {', '.join(twice)}.",
            hint="A row becomes a dict, so rename the columns first.",
        )
    rows = frame.itertuples(index=False, name=None)
    return Source((dict(zip(names, row, strict=True)) for row in rows), len(frame))


def _batches(table: Any) -> Iterable[Any]:
    return table.to_batches() if hasattr(table, "to_batches") else [table]


def _collected(lazy: Any) -> Iterator[Any]:
    yield from lazy.collect().iter_rows(named=True)


def _batch_rows(batches: Iterable[Any]) -> Iterator[Any]:
    for batch in batches:
        for start in range(0, batch.num_rows, _FRAME_ROWS):
            yield from batch.slice(start, _FRAME_ROWS).to_pylist()
