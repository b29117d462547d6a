"""One batch of the simulated server: which state it is in at a time. No clock of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from scaleinfer.testing._batch_settings import BatchApi

__all__ = ["ENDED", "BatchLife", "BatchRow"]

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
_DAY_S = 86_400.0


class BatchRow(NamedTuple):
    """One line of an input file."""

    custom_id: str
    url: str
    body: dict[str, Any]


class BatchLife:
    """A batch from its creation to its end.

    Args:
        number: Its number, from 1.
        request: What `POST /v1/batches` said.
        rows: The input's rows; empty if it could not be read.
        errors: What is wrong with the input; with any the batch fails.
        created: When it was created.
        settings: How the API behaves.
        client: Who created it, for the ledger.

    Attributes:
        done: Rows that were worked on.
        output, failures: Lines of the output file and the error file so far.
        tokens: Prompt tokens of the rows, for the quota.
    """

    def __init__(
        self,
        number: int,
        request: dict[str, Any],
        rows: list[BatchRow],
        errors: list[dict[str, Any]],
        *,
        created: float,
        settings: BatchApi,
        client: str = "",
    ) -> None:
        self.id = f"batch_sim{number}"
        self.request = request
        self.rows = rows
        self.errors = errors
        self.created = created
        self.client = client
        self.cancelled: float | None = None
        self.done = 0
        self.tokens = 0
        self.output: list[bytes] = []
        self.failures: list[bytes] = []
        self.output_file: str | None = None
        self.error_file: str | None = None
        self._settings = settings
        window = settings.expires_s
        self.expires = created + (_DAY_S if window is None else window)
        self.began = created + settings.validating_s
        self.finalizing = self.began + settings.seconds
        self.completed = self.finalizing + settings.finalizing_s

    def status(self, now: float) -> str:
        """Return its state in the API's words."""
        if self.errors and now >= self.began:
            return "failed"
        if self.cancelled is not None:
            over = now >= self.cancelled + self._settings.cancelling_s
            return "cancelled" if over else "cancelling"
        if self.completed > self.expires and now >= self.expires:
            return "expired"
        if now >= self.completed:
            return "completed"
        if now >= self.finalizing:
            return "finalizing"
        return "in_progress" if now >= self.began else "validating"

    def ended(self, now: float) -> bool:
        """Return whether it has its end."""
        return self.status(now) in ENDED

    def due_rows(self, now: float) -> int:
        """Return how many rows are to be done by now."""
        if self.errors:
            return 0
        stop = min(now, self.expires)
        if self.cancelled is not None:
            stop = min(stop, self.cancelled)
        if stop < self.began:
            return 0
        if not self._settings.seconds or stop >= self.finalizing:
            return len(self.rows)
        return int(len(self.rows) * (stop - self.began) / self._settings.seconds)

    def cancel(self, now: float) -> None:
        """Cancel it, if it has no end yet."""
        if self.cancelled is None and not self.ended(now):
            self.cancelled = now

    def to_dict(self, now: float, epoch: float) -> dict[str, Any]:
        """Return it as the API shows it.

        Args:
            now: The time.
            epoch: Unix time at the clock's zero.
        """
        status = self.status(now)

        def at(when: float | None, *, reached: bool = True) -> int | None:
            return int(epoch + when) if when is not None and reached and when <= now else None

        through = self.cancelled is None and not self.errors and status != "expired"
        errors = {"object": "list", "data": self.errors} if status == "failed" else None
        failed = len(self.failures)
        shown = status not in {"validating", "failed"}
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.request.get("endpoint"),
            "errors": errors,
            "input_file_id": self.request.get("input_file_id"),
            "completion_window": self.request.get("completion_window"),
            "status": status,
            "output_file_id": self.output_file,
            "error_file_id": self.error_file,
            "created_at": int(epoch + self.created),
            "in_progress_at": at(self.began, reached=not self.errors),
            "expires_at": int(epoch + self.expires),
            "finalizing_at": at(self.finalizing, reached=through),
            "completed_at": at(self.completed, reached=through),
            "failed_at": at(self.began, reached=bool(self.errors)),
            "expired_at": at(self.expires, reached=status == "expired"),
            "cancelling_at": at(self.cancelled),
            "cancelled_at": at(self.cancelled, reached=status == "cancelled"),
            "request_counts": {
                "total": len(self.rows) if shown else 0,
                "completed": len(self.output),
                "failed": failed,
            },
            "metadata": self.request.get("metadata"),
        }
