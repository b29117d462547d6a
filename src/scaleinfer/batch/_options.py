"""`Batch`: how batch mode works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable

    from scaleinfer.backends import BatchBackend

__all__ = ["Batch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """How `mode="batch"` works; pass one as `mode=Batch(...)`.

    Attributes:
        max_rows: Rows of one batch; default what the endpoint allows.
        max_bytes: Bytes of one input file; default what the endpoint allows.
        max_open: Unfinished batches at once; default what the endpoint allows.
        leftovers: Where rows go that a batch did not answer well: `"batch"` into another batch,
            `"online"` into calls of their own, `"auto"` into one more batch if the deadline leaves
            time for it, then online. Rows that no batch can hold always go online.
        poll_s: Seconds between two looks at a batch, right after it was submitted and at most;
            default the adapter's.
        via: The batch API to use, such as a `FirstBatches`; default the backend's own.
        folder: Of FIRST: folder on the cluster's file system for input and output; default the
            variable `FIRST_BATCH_FOLDER`.
        stage: Of FIRST, where the client does not see that folder: `stage(data, path)` writes
            bytes to a path on the cluster; may be async. `GlobusTransfer` has one.
        fetch: `fetch(path)` returns the bytes of a file there; goes with `stage`.
        settle_s: Seconds for which a batch whose submission was cut short is looked for at the
            server before its rows are submitted again.

    Raises:
        ConfigError: A value cannot be used.
    """

    max_rows: int | None = None
    max_bytes: int | None = None
    max_open: int | None = None
    leftovers: Literal["auto", "batch", "online"] = "auto"
    poll_s: tuple[float, float] | None = None
    settle_s: float = 10.0
    via: BatchBackend | None = None
    folder: str | os.PathLike[str] | None = None
    stage: Callable[[bytes, str], Awaitable[None] | None] | None = None
    fetch: Callable[[str], Awaitable[bytes] | bytes] | None = None

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_bytes", "max_open"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"Batch.{name} must be at least 1, not {value}.")
        if self.leftovers not in {"auto", "batch", "online"}:
            raise ConfigError(
                f"Batch.leftovers must be 'auto', 'batch' or 'online', not {self.leftovers!r}."
            )
        if self.poll_s is not None and not 0 < self.poll_s[0] <= self.poll_s[1]:
            raise ConfigError(f"Batch.poll_s=(first, most) needs 0 < first <= most: {self.poll_s}.")
        if (self.stage is None) != (self.fetch is None):
            raise ConfigError("Batch needs both stage= and fetch=, or neither.")
        if not self.settle_s >= 0:
            raise ConfigError(f"Batch.settle_s must not be negative, not {self.settle_s}.")
