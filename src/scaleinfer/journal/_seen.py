"""Which identities a fresh journal may have met: a Bloom filter.

In a journal that was empty when the run began, an identity that was never claimed has no row.
Knowing that without asking the writer's thread saves most claims the way there and back.
"""

from __future__ import annotations

__all__ = ["Seen"]


class Seen:
    """Remembers identities in fixed memory; may take a new one for known, never the reverse.

    With the default 4 MiB one in 10,000 new identities is taken for known after a million, one
    in 5 after ten million; those are merely looked up.
    """

    __slots__ = ("_bits", "_mask")

    def __init__(self, *, log2_bits: int = 25) -> None:
        self._bits = bytearray(1 << (log2_bits - 3))
        self._mask = (1 << log2_bits) - 1

    def add(self, identity: bytes) -> bool:
        """Remember 16 bytes of a hash; return True if they are certainly new."""
        # Written out, three probes of 32 bits each: this runs for every item.
        bits, mask, number = self._bits, self._mask, int.from_bytes(identity[:12], "big")
        a, b, c = number & mask, number >> 32 & mask, number >> 64 & mask
        at_a, at_b, at_c = a >> 3, b >> 3, c >> 3
        bit_a, bit_b, bit_c = 1 << (a & 7), 1 << (b & 7), 1 << (c & 7)
        if bits[at_a] & bit_a and bits[at_b] & bit_b and bits[at_c] & bit_c:
            return False
        bits[at_a] |= bit_a
        bits[at_b] |= bit_b
        bits[at_c] |= bit_c
        return True
