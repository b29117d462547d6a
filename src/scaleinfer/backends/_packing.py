"""Which requests may share a call. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaleinfer.requests import Request, Sampling

__all__ = ["packs"]


def packs(requests: Sequence[Request], most: int) -> list[list[int]]:
    """Return the positions of the requests, those that may share a call together.

    Plain completions without a schema share one if they ask the same model with equal
    sampling; every other request is alone.

    Args:
        requests: What is to be asked.
        most: Prompts that one call may carry.
    """
    found: list[list[int]] = []
    unfilled: list[tuple[Sampling, str | None, list[int]]] = []
    for position, request in enumerate(requests):
        if most < 2 or request.prompt is None or request.schema is not None:  # noqa: PLR2004
            found.append([position])
            continue
        sampling, model = request.sampling, request.model
        for number, (other, others_model, pack) in enumerate(unfilled):
            if model == others_model and (sampling is other or sampling == other):
                pack.append(position)
                if len(pack) == most:
                    del unfilled[number]
                break
        else:
            pack = [position]
            found.append(pack)
            unfilled.append((sampling, model, pack))
    return found
