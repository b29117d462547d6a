"""The truth ledger: every request that arrived, and what became of it."""

from __future__ import annotations

from array import array
from base64 import b64decode, b64encode
from collections import Counter
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Entry", "Ledger", "RequestRecord"]

_AUTHORISED, _ABORTED, _OK, _DONE, _STREAMED = 1, 2, 4, 8, 16
# prompt, attempt, arrived, finished, status, fault, model, headers, flags
_ROW = Struct("=IIddHHHIB")
_END = Struct("=dHH")
_END_AT = Struct("=IId").size
_FLAGS_AT = _ROW.size - 1


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request, as the server saw it.

    Attributes:
        prompt: The prompt; the first of several.
        prompts: All prompts, if a plain completion asked several at once.
        attempt: 1 for the first request with this prompt.
        arrived: Unix time at which the request was complete, in seconds.
        finished: Unix time of the answer's last byte, or of the connection's end; `None`
            while the request is in flight.
        model: Model that was asked for.
        status: HTTP status that was sent; `None` if none was.
        fault: Fault that was applied, such as `status 503` or `delay+drop`; empty if none.
        ok: True if a usable answer was written in full.
        aborted: True if the client went away before its answer; not if the server was closed.
        authorised: True if an `Authorization` header came along. Its value is not kept.
        stream: True if the answer was asked for as server-sent events.
        headers: The headers without secrets, names in lower case.
        body: The request's body, if the server was told to keep bodies.
    """

    prompt: str
    prompts: tuple[str, ...]
    attempt: int
    arrived: float
    finished: float | None
    model: str
    status: int | None
    fault: str
    ok: bool
    aborted: bool
    authorised: bool
    stream: bool
    headers: Mapping[str, str]
    body: bytes | None


class Entry:
    """A request in flight: where the ledger will write what becomes of it."""

    __slots__ = ("attempt", "fault", "prompts", "row")

    def __init__(self, row: int, prompts: tuple[int, ...], attempt: int) -> None:
        self.row = row
        self.prompts = prompts
        self.attempt = attempt
        self.fault = ""


class _Names:
    """Numbers for values that repeat: each is kept once."""

    __slots__ = ("numbers", "values")

    def __init__(self, values: list[Any] | None = None) -> None:
        self.values: list[Any] = values if values is not None else []
        self.numbers: dict[Any, int] = {value: i for i, value in enumerate(self.values)}

    def number(self, value: Any) -> int:
        number = self.numbers.get(value)
        if number is None:
            number = len(self.values)
            self.values.append(value)
            self.numbers[value] = number
        return number


class Ledger:
    """Every request for a completion that reached the server.

    Kept in packed rows: 37 bytes a request, and each different prompt and set of headers
    once. Reading is safe from another thread while the server runs.

    Args:
        mode: `"full"` keeps each request; `"counts"` only what was asked and answered per
            prompt, and the totals.
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
        self._prompts = _Names()
        self._asked = array("I")
        self._answers = array("I")
        self._rows = bytearray()
        self._fault_names = _Names([""])
        self._models = _Names()
        self._headers = _Names()
        self._packed: dict[int, tuple[int, ...]] = {}
        self._bodies: dict[int, bytes] = {}

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
        """
        one = len(prompts) == 1
        asked = (self._ask(prompts[0]),) if one else tuple(map(self._ask, prompts))
        entry = Entry(-1, asked, self._asked[asked[0]])
        if not self._arrived:
            self._first_arrival = time
        if self.mode == "full":
            entry.row = len(self._rows) // _ROW.size
            if not one:
                self._packed[entry.row] = asked
            if body is not None:
                self._bodies[entry.row] = body
            flags = (_AUTHORISED if authorised else 0) | (_STREAMED if stream else 0)
            names = self._models.number(model), self._headers.number(headers)
            # One step, so that a reader in another thread never finds half a row.
            self._rows += _ROW.pack(asked[0], entry.attempt, time, 0.0, 0, 0, *names, flags)
        self._arrived += 1
        in_flight = self._arrived - self._finished
        if in_flight > self.peak_in_flight:  # noqa: PLR1730 - twice as fast as max()
            self.peak_in_flight = in_flight
        return entry

    def finish(
        self, entry: Entry, time: float, *, status: int = 0, ok: bool = False, aborted: bool = False
    ) -> None:
        """Write down what became of a request. To be called once for each entry.

        Args:
            entry: What `arrive` returned, with `fault` filled in.
            time: Unix time, in seconds.
            status: HTTP status that was sent; 0 if none was.
            ok: A usable answer was written in full.
            aborted: The client went away before.
        """
        self._finished += 1
        self._last_finish = time
        if status:
            self._statuses[status] += 1
        if entry.fault:
            self._faults[entry.fault] += 1
        self.aborted += aborted
        if ok:
            self._answered += 1
            for prompt in entry.prompts:
                self._answers[prompt] += 1
        if entry.row >= 0:
            fault = self._fault_names.number(entry.fault) if entry.fault else 0
            start = entry.row * _ROW.size
            _END.pack_into(self._rows, start + _END_AT, time, status, fault)
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
        finished requests.
        """
        return {
            "arrived": self._arrived,
            "answered": self._answered,
            "aborted": self.aborted,
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
            "prompts": len(self._prompts.values),
            "answered_again": sum(n - 1 for n in self._answers.tolist() if n > 1),
            "seconds": max(0.0, self._last_finish - self._first_arrival),
            "by_status": dict(self._statuses.copy()),
            "by_fault": dict(self._faults.copy()),
            "other_paths": dict(self.other_paths.copy()),
            "unknown_fields": dict(self.unknown_fields.copy()),
        }

    def _record(self, row: int) -> RequestRecord:
        prompt, attempt, arrived, finished, status, fault, model, headers, flags = _ROW.unpack_from(
            self._rows, row * _ROW.size
        )
        texts = self._prompts.values
        return RequestRecord(
            prompt=texts[prompt],
            prompts=tuple(texts[i] for i in self._packed.get(row, (prompt,))),
            attempt=attempt,
            arrived=arrived,
            finished=finished if flags & _DONE else None,
            model=self._models.values[model],
            status=status or None,
            fault=self._fault_names.values[fault],
            ok=bool(flags & _OK),
            aborted=bool(flags & _ABORTED),
            authorised=bool(flags & _AUTHORISED),
            stream=bool(flags & _STREAMED),
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
        ledger._statuses = Counter(dict(data["statuses"]))
        ledger._faults = Counter(data["faults"])
        ledger.other_paths = Counter(data["other_paths"])
        ledger.unknown_fields = Counter(data["unknown_fields"])
        ledger._prompts = _Names(data["prompts"])
        ledger._asked = array("I", data["asked"])
        ledger._answers = array("I", data["answers"])
        ledger._rows = bytearray(b64decode(data["rows"]))
        ledger._fault_names = _Names(data["fault_names"])
        ledger._models = _Names(data["models"])
        # JSON has no tuples, and lists cannot be looked up.
        ledger._headers = _Names([tuple(map(tuple, headers)) for headers in data["headers"]])
        ledger._packed = {row: tuple(prompts) for row, prompts in data["packed"]}
        ledger._bodies = {row: body.encode() for row, body in data["bodies"]}
        return ledger
