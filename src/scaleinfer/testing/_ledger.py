"""The truth ledger: every request that arrived, and what became of it."""

from __future__ import annotations

import math
from array import array
from base64 import b64decode, b64encode
from collections import Counter
from struct import Struct
from typing import TYPE_CHECKING, Any, Literal

from scaleinfer.testing._names import Names
from scaleinfer.testing._record import Entry, RequestRecord
from scaleinfer.testing._seconds import PerSecond

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Ledger"]

_AUTHORISED, _ABORTED, _OK, _DONE, _STREAMED = 1, 2, 4, 8, 16
_REJECTIONS = frozenset({429, 503})
# prompt, attempt, arrived; started, finished, status, fault, prompt tokens, completion tokens,
# cached tokens; model, headers, client, flags
_ROW = Struct("=IIdddHHIIIHIHB")
_END = Struct("=ddHHIII")
_END_AT = Struct("=IId").size
_FLAGS_AT = _ROW.size - 1


class Ledger:
    """Every request for a completion that reached the server.

    Kept in packed rows: 57 bytes a request, and each different prompt and set of headers
    once; and in counts for each second. Reading is safe from another thread while the server
    runs.

    Windows are in seconds after the first request, as in `Fault` and `Change`. What fell into a
    second that a window cuts in two counts by the share of the second.

    Args:
        mode: `"full"` keeps each request; `"counts"` only what was asked and answered per
            prompt, the totals, and those of each second.
    """

    def __init__(self, mode: Literal["full", "counts"] = "full") -> None:
        self.mode = mode
        self.peak_in_flight = 0
        self.aborted = 0
        self.other_paths: Counter[str] = Counter()
        self.unknown_fields: Counter[str] = Counter()
        self._arrived = self._finished = self._answered = 0
        self._statuses: Counter[int] = Counter()
        self._faults: Counter[str] = Counter()
        self._last_finish = 0.0
        self._first_arrival = 0.0
        self._prompts = Names()
        self._asked = array("I")
        self._answers = array("I")
        self._rows = bytearray()
        self._fault_names = Names([""])
        self._models = Names()
        self._headers = Names()
        self._packed: dict[int, tuple[int, ...]] = {}
        self._bodies: dict[int, bytes] = {}
        self._clients = Names([""])
        self._seconds = PerSecond()
        self.prompt_tokens = self.completion_tokens = self.cached_tokens = 0

    # Writing: the server only.

    def knows(self, prompt: str) -> bool:
        """Return whether `prompt` was asked before."""
        return prompt in self._prompts.numbers

    def arrive(
        self,
        prompts: tuple[str, ...],
        time: float,
        *,
        model: str = "",
        authorised: bool = False,
        stream: bool = False,
        headers: tuple[tuple[str, str], ...] = (),
        body: bytes | None = None,
        client: str = "",
    ) -> Entry:
        """Write down a request; its attempt number is in the entry.

        Args:
            prompts: The prompts it asks, at least one.
            time: Unix time, in seconds.
            model: Model it asks for.
            authorised: It has an `Authorization` header.
            stream: It wants server-sent events.
            headers: Its headers without secrets, names in lower case.
            body: Its body, if that is to be kept.
            client: Who asks, by its `x-client` header.
        """
        one = len(prompts) == 1
        asked = (self._ask(prompts[0]),) if one else tuple(map(self._ask, prompts))
        entry = Entry(-1, asked, self._asked[asked[0]], client)
        if not self._arrived:
            self._first_arrival = time
        if self.mode == "full":
            entry.row = len(self._rows) // _ROW.size
            if not one:
                self._packed[entry.row] = asked
            if body is not None:
                self._bodies[entry.row] = body
            flags = (_AUTHORISED if authorised else 0) | (_STREAMED if stream else 0)
            names = (
                self._models.number(model),
                self._headers.number(headers),
                self._clients.number(client) if client else 0,
            )
            # One step, so that a reader in another thread never finds half a row.
            self._rows += _ROW.pack(
                asked[0], entry.attempt, time, 0.0, 0.0, 0, 0, 0, 0, 0, *names, flags
            )
        self._arrived += 1
        in_flight = self._arrived - self._finished
        if in_flight > self.peak_in_flight:  # noqa: PLR1730 - twice as fast as max()
            self.peak_in_flight = in_flight
        at = time - self._first_arrival
        self._seconds.arrive(at if at > 0 else 0.0, in_flight)
        return entry

    def finish(
        self, entry: Entry, time: float, *, status: int = 0, ok: bool = False, aborted: bool = False
    ) -> None:
        """Write down what became of a request. To be called once for each entry.

        Args:
            entry: What `arrive` returned, with the fault and the tokens filled in.
            time: Unix time, in seconds.
            status: HTTP status that was sent; 0 if none was.
            ok: A usable answer was written in full.
            aborted: The client went away before.
        """
        self._finished += 1
        self._last_finish = time
        at = time - self._first_arrival
        if at < 0:  # the clock was set back
            at = 0.0
        self._seconds.finish(at)
        if status:
            self._statuses[status] += 1
            if status in _REJECTIONS:
                self._seconds.reject(at)
        if entry.fault:
            self._faults[entry.fault] += 1
        self.aborted += aborted
        tokens = entry.completion_tokens
        if ok:
            self._answered += 1
            self.prompt_tokens += entry.prompt_tokens
            self.completion_tokens += tokens
            self.cached_tokens += entry.cached_tokens
            self._seconds.answer(at, tokens, entry.client)
            for prompt in entry.prompts:
                self._answers[prompt] += 1
        if entry.row >= 0:
            fault = self._fault_names.number(entry.fault) if entry.fault else 0
            start = entry.row * _ROW.size
            _END.pack_into(
                self._rows, start + _END_AT, entry.started, time, status, fault,
                entry.prompt_tokens, tokens, entry.cached_tokens,
            )  # fmt: skip
            flags = _DONE | (_OK if ok else 0) | (_ABORTED if aborted else 0)
            self._rows[start + _FLAGS_AT] |= flags

    def _ask(self, prompt: str) -> int:
        number = self._prompts.numbers.get(prompt)
        if number is None:
            # The counters first: who reads from another thread finds one for every prompt.
            self._asked.append(1)
            self._answers.append(0)
            return self._prompts.number(prompt)
        self._asked[number] += 1
        return number

    # Reading: anybody.

    @property
    def arrived(self) -> int:
        """Requests that arrived."""
        return self._arrived

    @property
    def answered(self) -> int:
        """Requests that got a usable answer, written in full."""
        return self._answered

    @property
    def in_flight(self) -> int:
        """Requests without an end yet: waiting, being answered or stalled."""
        return self._arrived - self._finished

    @property
    def requests(self) -> list[RequestRecord]:
        """All requests in order of arrival; empty with `mode="counts"`."""
        return list(self)

    @property
    def seconds(self) -> float:
        """Seconds from the first arrival to the last end of a request."""
        return max(0.0, self._last_finish - self._first_arrival)

    def goodput(
        self, start: float = 0.0, end: float | None = None, *, client: str | None = None
    ) -> float:
        """Return the completion tokens a second of usable answers that ended in a window.

        Args:
            start: Its begin.
            end: Its end; `None` for the last end of a request.
            client: Count the answers to this client alone, see `shares`.
        """
        start, end = self._window(start, end)
        seconds = self._seconds
        column = seconds.tokens if client is None else seconds.clients.get(client, [])
        return seconds.total(column, start, end) / (end - start) if end > start else 0.0

    def rejected_share(self, start: float = 0.0, end: float | None = None) -> float:
        """Return the share of requests that ended in a window which got 429 or 503."""
        start, end = self._window(start, end)
        finished = self._seconds.total(self._seconds.finished, start, end)
        return (
            self._seconds.total(self._seconds.rejected, start, end) / finished if finished else 0.0
        )

    def peak(self, start: float = 0.0, end: float | None = None) -> int:
        """Return the most requests in flight at any arrival in the seconds of a window."""
        start, end = self._window(start, end)
        return max(self._seconds.peak[int(start) : math.ceil(end)], default=0)

    def shares(self, start: float = 0.0, end: float | None = None) -> dict[str, float]:
        """Return each client's share of the completion tokens in a window, named by `x-client`."""
        start, end = self._window(start, end)
        found = {
            client: self._seconds.total(column, start, end)
            for client, column in self._seconds.clients.copy().items()
        }
        whole = sum(found.values())
        return {client: tokens / whole for client, tokens in found.items()} if whole else {}

    def per_second(self) -> dict[str, list[int]]:
        """Return the counts of each second since the first request, by column.

        Columns: `arrived`, `finished`, `answered`, `rejected` (429 and 503), `tokens` (of usable
        answers) and `peak` (requests in flight).
        """
        columns = self._seconds.to_dict()
        del columns["clients"]
        return {name: list(column) for name, column in columns.items()}

    def _window(self, start: float, end: float | None) -> tuple[float, float]:
        return max(start, 0.0), self.seconds if end is None else end

    def by_prompt(self) -> dict[str, list[RequestRecord]]:
        """Return the requests of each prompt, in order of arrival."""
        found: dict[str, list[RequestRecord]] = {}
        for record in self.requests:
            for prompt in dict.fromkeys(record.prompts):
                found.setdefault(prompt, []).append(record)
        return found

    def counts(self) -> dict[str, int]:
        """Return for every prompt that was asked how often it was answered well."""
        return {prompt: self._answers[i] for prompt, i in self._prompts.numbers.copy().items()}

    def asked(self) -> dict[str, int]:
        """Return for every prompt how often it was asked."""
        return {prompt: self._asked[i] for prompt, i in self._prompts.numbers.copy().items()}

    def statistics(self) -> dict[str, Any]:
        """Return totals, as plain data.

        `seconds` is the time from the first arrival to the last finish; `answered_again`
        counts the answers beyond the first to each prompt; `by_status` and `by_fault` count
        finished requests; tokens are those of usable answers.
        """
        return {
            "arrived": self._arrived,
            "answered": self._answered,
            "aborted": self.aborted,
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
            "prompts": len(self._prompts.values),
            "answered_again": sum(n - 1 for n in self._answers.tolist() if n > 1),
            "seconds": self.seconds,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cached_tokens": self.cached_tokens,
            "by_status": dict(self._statuses.copy()),
            "by_fault": dict(self._faults.copy()),
            "other_paths": dict(self.other_paths.copy()),
            "unknown_fields": dict(self.unknown_fields.copy()),
        }

    def _record(self, row: int) -> RequestRecord:
        (
            prompt, attempt, arrived, started, finished, status, fault, prompt_tokens,
            completion_tokens, cached_tokens, model, headers, client, flags,
        ) = _ROW.unpack_from(self._rows, row * _ROW.size)  # fmt: skip
        texts = self._prompts.values
        return RequestRecord(
            prompt=texts[prompt],
            prompts=tuple(texts[i] for i in self._packed.get(row, (prompt,))),
            attempt=attempt,
            arrived=arrived,
            started=started or None,
            finished=finished if flags & _DONE else None,
            model=self._models.values[model],
            status=status or None,
            fault=self._fault_names.values[fault],
            ok=bool(flags & _OK),
            aborted=bool(flags & _ABORTED),
            authorised=bool(flags & _AUTHORISED),
            stream=bool(flags & _STREAMED),
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            cached_tokens=cached_tokens,
            client=self._clients.values[client],
            headers=dict(self._headers.values[headers]),
            body=self._bodies.get(row),
        )

    def __iter__(self) -> Iterator[RequestRecord]:
        for row in range(len(self._rows) // _ROW.size):
            yield self._record(row)

    # Travelling between processes.

    def to_dict(self) -> dict[str, Any]:
        """Return the whole ledger as plain JSON data; bodies as text (UTF-8)."""
        return {
            "mode": self.mode,
            "totals": [self._arrived, self._finished, self._answered, self.aborted],
            "peak_in_flight": self.peak_in_flight,
            "tokens": [self.prompt_tokens, self.completion_tokens, self.cached_tokens],
            "clients": self._clients.values,
            "seconds": self._seconds.to_dict(),
            "times": [self._first_arrival, self._last_finish],
            "statuses": list(self._statuses.items()),
            "faults": dict(self._faults),
            "other_paths": dict(self.other_paths),
            "unknown_fields": dict(self.unknown_fields),
            "prompts": self._prompts.values,
            "asked": self._asked.tolist(),
            "answers": self._answers.tolist(),
            "rows": b64encode(self._rows).decode(),
            "fault_names": self._fault_names.values,
            "models": self._models.values,
            "headers": self._headers.values,
            "packed": list(self._packed.items()),
            "bodies": [[row, body.decode(errors="replace")] for row, body in self._bodies.items()],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Ledger:
        """Rebuild a ledger from `to_dict`."""
        ledger = cls(data["mode"])
        ledger._arrived, ledger._finished, ledger._answered, ledger.aborted = data["totals"]
        ledger.peak_in_flight = data["peak_in_flight"]
        ledger._first_arrival, ledger._last_finish = data["times"]
        ledger.prompt_tokens, ledger.completion_tokens, ledger.cached_tokens = data["tokens"]
        ledger._clients = Names(data["clients"])
        ledger._seconds = PerSecond.from_dict(data["seconds"])
        ledger._statuses = Counter(dict(data["statuses"]))
        ledger._faults = Counter(data["faults"])
        ledger.other_paths = Counter(data["other_paths"])
        ledger.unknown_fields = Counter(data["unknown_fields"])
        ledger._prompts = Names(data["prompts"])
        ledger._asked = array("I", data["asked"])
        ledger._answers = array("I", data["answers"])
        ledger._rows = bytearray(b64decode(data["rows"]))
        ledger._fault_names = Names(data["fault_names"])
        ledger._models = Names(data["models"])
        # JSON has no tuples, and lists cannot be looked up.
        ledger._headers = Names([tuple(map(tuple, headers)) for headers in data["headers"]])
        ledger._packed = {row: tuple(prompts) for row, prompts in data["packed"]}
        ledger._bodies = {row: body.encode() for row, body in data["bodies"]}
        return ledger
