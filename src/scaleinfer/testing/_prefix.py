"""A prefix cache by blocks: which part of a prompt a server has computed before."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from scaleinfer.testing._view import CHARACTERS_PER_TOKEN

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

__all__ = ["PrefixCache", "prefix_blocks"]


def prefix_blocks(text: str, block_tokens: int = 16) -> tuple[int, ...]:
    """Return the hashes of a prompt's whole blocks, each chained to the one before.

    Two prompts share a block if they are equal up to its end. A rest that fills no block has
    none. The hashes hold within one process only.

    Args:
        text: The whole prompt.
        block_tokens: Tokens in a block, of four characters each.
    """
    size = block_tokens * CHARACTERS_PER_TOKEN
    blocks = []
    parent = 0
    for end in range(size, len(text) + 1, size):
        parent = hash((parent, text[end - size : end]))
        blocks.append(parent)
    return tuple(blocks)


class PrefixCache:
    """The least recently used blocks give way, of one prompt the last ones first.

    Args:
        capacity: How many blocks it holds.
    """

    __slots__ = ("_blocks", "_capacity")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._blocks: OrderedDict[Hashable, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def use(self, blocks: Sequence[Hashable]) -> int:
        """Return how many of a prompt's first blocks are here; hold all of them from now on."""
        held = self._blocks
        hits = 0
        for block in blocks:
            if block not in held:
                break
            hits += 1
        # From the last to the first: a block is of no use without those before it, so they
        # must be the youngest.
        for block in reversed(blocks[: self._capacity]):
            held[block] = None
            held.move_to_end(block)
        while len(held) > self._capacity:
            held.popitem(last=False)
        return hits
