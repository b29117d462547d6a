"""What can go wrong, by script: which fault strikes which request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypedDict, Unpack

from scaleinfer.errors import ConfigError
from scaleinfer.testing._chance import draw

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scaleinfer.testing._view import RequestView

__all__ = ["NOTHING", "Fault", "FaultScript", "Verdict", "When"]

# An added wait and a trap on the connection go together with any other fault.
_MODIFIERS = frozenset({"delay", "keepalive_close"})
_EARLY = frozenset({"status", "drop", "reset", "stall", "html"})


class When(TypedDict, total=False):
    """Which requests a fault strikes; all conditions that are given must hold.

    Keys:
        rate: Share of requests, 0 to 1. The choice depends on the server's seed, the prompt
            and the attempt alone, so it is the same in every run.
        first: Only the first so many attempts of each prompt.
        times: At most so many requests in all.
        match: Only prompts that hold this text, or for which the callable returns true.
        after: From so many seconds after the server's first request on.
        until: Up to so many seconds after the server's first request.
        everywhere: Strike `/v1/models` and `/health` too, not completions alone.
    """

    rate: float
    first: int | None
    times: int | None
    match: str | Callable[[RequestView], bool] | None
    after: float
    until: float | None
    everywhere: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One rule of a fault script. Make one with the class methods.

    The rules are tried in order and the first that strikes decides; `delay` and
    `keepalive_close` only add to what follows. All class methods take the keywords of
    `When`: `rate`, `first`, `times`, `match`, `after`, `until`, `everywhere`.

    `status`, `drop`, `reset`, `html` and `stall` strike at once, before the request takes a
    slot, as a gateway in front of the server would; the others spoil the answer when it is
    due. An answer with `slow_drip`, `keepalive_close`, `delay` or `wrong_content_type` still
    counts as a usable answer in the ledger; all others do not.

    ```python
    outage = Fault.status(503, after=10, until=70)
    flaky = Fault.drop(rate=0.1)
    strict = Fault.status(429, retry_after=0.5, first=2)
    SimulatedServer(faults=[outage, flaky, strict])
    ```
    """

    kind: str
    code: int = 0
    seconds: float = 0.0
    at: float | None = None
    size: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None
    retry_after: float | None = None
    retry_after_form: Literal["seconds", "date", "ms"] = "seconds"
    on: Literal["next_request", "response"] = "next_request"
    rate: float = 1.0
    first: int | None = None
    times: int | None = None
    match: str | Callable[[RequestView], bool] | None = None
    after: float = 0.0
    until: float | None = None
    everywhere: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ConfigError(f"A fault's rate is a share from 0 to 1, not {self.rate}.")
        if self.at is not None and not 0 <= self.at <= 1:
            raise ConfigError(f"at= is a share of the answer from 0 to 1, not {self.at}.")
        if self.until is not None and self.until < self.after:
            raise ConfigError(f"until={self.until} lies before after={self.after}.")
        if self.kind == "status" and not 200 <= self.code <= 599:  # noqa: PLR2004 - HTTP's range
            raise ConfigError(
                f"Fault.status takes an HTTP status from 200 to 599, not {self.code}."
            )

    @classmethod
    def status(
        cls,
        code: int,
        *,
        retry_after: float | None = None,
        retry_after_form: Literal["seconds", "date", "ms"] = "seconds",
        headers: Mapping[str, str] | None = None,
        body: str | None = None,
        **when: Unpack[When],
    ) -> Self:
        """Answer with an HTTP status and an error in the server's dialect.

        Args:
            code: The status.
            retry_after: Seconds to put into a Retry-After header.
            retry_after_form: `seconds` (`Retry-After: 2`), `date` (an HTTP date, which is
                cut to whole seconds, rounded up) or `ms` (`retry-after-ms: 2000`).
            headers: Further headers of the answer.
            body: Body instead of the error object.
            **when: See `When`.
        """
        return cls(
            kind="status",
            code=code,
            retry_after=retry_after,
            retry_after_form=retry_after_form,
            headers=dict(headers or {}),
            body=body,
            **when,
        )

    @classmethod
    def delay(cls, seconds: float, **when: Unpack[When]) -> Self:
        """Wait `seconds` more; what follows in the script still strikes."""
        return cls(kind="delay", seconds=seconds, **when)

    @classmethod
    def drop(cls, **when: Unpack[When]) -> Self:
        """Close the connection without a byte of answer."""
        return cls(kind="drop", **when)

    @classmethod
    def reset(cls, **when: Unpack[When]) -> Self:
        """Reset the connection (TCP RST) without a byte of answer."""
        return cls(kind="reset", **when)

    @classmethod
    def stall(cls, *, at: float | None = None, **when: Unpack[When]) -> Self:
        """Never answer, and keep the connection open.

        Args:
            at: Send this share of the answer first (0: only its head); `None` for no byte.
            **when: See `When`.
        """
        return cls(kind="stall", at=at, **when)

    @classmethod
    def truncate(cls, *, at: float = 0.5, **when: Unpack[When]) -> Self:
        """Announce the whole answer, send a share `at` of it, close the connection."""
        return cls(kind="truncate", at=at, **when)

    @classmethod
    def malformed(cls, *, at: float = 0.5, **when: Unpack[When]) -> Self:
        """Answer in proper HTTP with JSON cut off at the share `at`."""
        return cls(kind="malformed", at=at, **when)

    @classmethod
    def html(cls, body: str | None = None, **when: Unpack[When]) -> Self:
        """Answer 200 with an HTML page, as a login page or a captive portal does."""
        return cls(kind="html", body=body, **when)

    @classmethod
    def wrong_content_type(cls, value: str = "text/plain", **when: Unpack[When]) -> Self:
        """Send the right answer under another Content-Type."""
        return cls(kind="wrong_content_type", body=value, **when)

    @classmethod
    def slow_drip(cls, *, size: int = 16, seconds: float = 0.05, **when: Unpack[When]) -> Self:
        """Send the answer in pieces of `size` bytes, one every `seconds`."""
        if size < 1:
            raise ConfigError(f"Fault.slow_drip sends at least 1 byte at a time, not {size}.")
        return cls(kind="slow_drip", size=size, seconds=seconds, **when)

    @classmethod
    def empty_choices(cls, **when: Unpack[When]) -> Self:
        """Answer with an empty list of choices."""
        return cls(kind="empty_choices", **when)

    @classmethod
    def keepalive_close(
        cls, *, on: Literal["next_request", "response"] = "next_request", **when: Unpack[When]
    ) -> Self:
        """Answer well, announce keep-alive, then close the connection all the same.

        Args:
            on: `next_request` closes when the next request begins to arrive, so that it is
                sure to be lost without a byte of answer; `response` closes right after the
                answer, so that the client may or may not notice in time.
            **when: See `When`.
        """
        return cls(kind="keepalive_close", on=on, **when)

    @property
    def name(self) -> str:
        """Its name in the ledger: the kind, with the status if there is one."""
        return f"{self.kind} {self.code}" if self.code else self.kind

    @property
    def early(self) -> bool:
        """True if it strikes before the request takes a slot."""
        return self.kind in _EARLY and not (self.kind == "stall" and self.at is not None)


class Verdict(NamedTuple):
    """What a fault script does to one request.

    Attributes:
        fault: What is done to the answer, if anything.
        delay: Seconds to wait more.
        trap: The `keepalive_close` that strikes the connection afterwards.
        name: All that struck, for the ledger.
    """

    fault: Fault | None = None
    delay: float = 0.0
    trap: Fault | None = None
    name: str = ""


NOTHING = Verdict()


class FaultScript:
    """Decides which faults strike a request. No clock and no luck of its own.

    Args:
        faults: The rules, in the order they are tried.
        seed: Another seed, another choice of requests.
    """

    def __init__(self, faults: Sequence[Fault], seed: int = 0) -> None:
        self._faults = tuple(faults)
        self._seed = seed
        self._struck = [0] * len(self._faults)

    def decide(self, view: RequestView, *, completion: bool = True) -> Verdict:
        """Return what strikes the request `view` at `view.elapsed`."""
        if not self._faults:
            return NOTHING
        struck: list[Fault] = []
        for number, fault in enumerate(self._faults):
            if not self._strikes(number, fault, view, completion):
                continue
            self._struck[number] += 1
            struck.append(fault)
            if fault.kind not in _MODIFIERS:
                break
        if not struck:
            return NOTHING
        last = struck[-1]
        return Verdict(
            fault=None if last.kind in _MODIFIERS else last,
            delay=sum(fault.seconds for fault in struck if fault.kind == "delay"),
            trap=next((fault for fault in struck if fault.kind == "keepalive_close"), None),
            name="+".join(fault.name for fault in struck),
        )

    def _strikes(self, number: int, fault: Fault, view: RequestView, completion: bool) -> bool:
        return (
            (completion or fault.everywhere)
            and view.elapsed >= fault.after
            and (fault.until is None or view.elapsed < fault.until)
            and (fault.first is None or view.attempt <= fault.first)
            and (fault.times is None or self._struck[number] < fault.times)
            and _matches(fault.match, view)
            and self._drawn(number, fault, view)
        )

    def _drawn(self, number: int, fault: Fault, view: RequestView) -> bool:
        if fault.rate >= 1:
            return True
        return draw(self._seed, f"fault {number}", view.prompt, view.attempt) < fault.rate


def _matches(match: Any, view: RequestView) -> bool:
    if match is None:
        return True
    if isinstance(match, str):
        return match in view.prompt
    return bool(match(view))
