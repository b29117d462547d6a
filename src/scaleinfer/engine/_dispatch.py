"""`Dispatch`: in which order calls go out, and how often."""

from __future__ import annotations

from dataclasses import dataclass

from scaleinfer.errors import ConfigError

__all__ = ["Dispatch"]


@dataclass(frozen=True, slots=True)
class Dispatch:
    """In which order a run's calls go out, and which of them go out at all.

    Attributes:
        prefix_window: Items among which those that share the start of their prompt are asked
            one after the other, so that the endpoint's prefix cache answers it. 0 keeps the
            input's order. Only for inputs of known length, and only where it pays.
        hedging: True to ask again, elsewhere if there is an elsewhere, what takes far longer
            than the rest in the last percent of a run; the first answer counts, the other
            call is ended. Off by default, because it may pay for an answer twice.
        hedging_share: Most calls that hedging may add, as a share of the run's calls.
        deduplicate: True to make one call for identical requests that are in flight at the
            same time and whose answers do not depend on chance (temperature 0, or a seed).
    """

    prefix_window: int = 10_000
    hedging: bool = False
    hedging_share: float = 0.03
    deduplicate: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.prefix_window, int) or self.prefix_window < 0:
            raise ConfigError(
                f"Dispatch.prefix_window is a number of items, not {self.prefix_window!r}."
            )
        if not 0 < self.hedging_share <= 1:
            raise ConfigError(f"Dispatch.hedging_share is 0 to 1, not {self.hedging_share}.")
