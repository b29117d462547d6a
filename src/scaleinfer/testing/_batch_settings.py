"""How the simulated server's batch API behaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from scaleinfer.testing._faults import Fault

__all__ = ["BatchApi"]

_SECONDS = ("seconds", "validating_s", "finalizing_s", "cancelling_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchApi:
    """`/v1/files` and `/v1/batches` of a simulated server.

    A batch goes through `validating`, `in_progress`, `finalizing` and `completed`; its rows are
    answered one after the other, evenly over `seconds`, as the server would answer them one by
    one, and are in the ledger like these. What a cancelled or expired batch had answered by then
    is in its output file.

    Attributes:
        seconds: Seconds that the rows of a batch take; 0 answers them at once.
        validating_s: Seconds before that.
        finalizing_s: Seconds after that.
        cancelling_s: Seconds from a cancellation to its end.
        expires_s: Seconds after which an unfinished batch expires; `None` for 24 hours.
        max_rows: Rows of one batch; with more it fails.
        max_bytes: Bytes of one file; a larger one is answered 413.
        max_open: Batches that may be unfinished at once; the next is answered 429.
        max_enqueued_tokens: Prompt tokens of unfinished batches; a batch beyond that fails with
            `token_limit_exceeded`.
        faults: What goes wrong with single rows; `Fault.drop` leaves a row out, `Fault.status`
            puts it into the error file, any fault that spoils an answer writes a broken line.
        in_order: True to write the output in the order of the input, not in a drawn one.

    Raises:
        ConfigError: A value that cannot be.
    """

    seconds: float = 0.0
    validating_s: float = 0.0
    finalizing_s: float = 0.0
    cancelling_s: float = 0.0
    expires_s: float | None = None
    max_rows: int = 50_000
    max_bytes: int = 200 << 20
    max_open: int | None = None
    max_enqueued_tokens: int | None = None
    faults: tuple[Fault, ...] = ()
    in_order: bool = False

    def __post_init__(self) -> None:
        for name in _SECONDS:
            if getattr(self, name) < 0:
                raise ConfigError(f"BatchApi: {name} must not be negative.")
        for name in ("expires_s", "max_rows", "max_bytes", "max_open", "max_enqueued_tokens"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"BatchApi: {name} must be greater than 0.")
