"""Which identities a fresh journal may have met: a Bloom filter.

In a journal that was empty when the run began, an identity that was never claimed has no row.
Knowing that without asking the writer's thread saves most claims the way there and back.
"""

from __future__ import annotations

__all__ = ["Seen"]

_PROBES = (0, 4, 8)


class Seen:
    """Remembers identities in fixed memory; may take a new one for known, never the reverse.

    With the default 4 MiB one in 10,000 new identities is taken for known after a million, one
    in 5 after ten million; those are merely looked up.
    """

    def __init__(self, *, log2_bits: int = 25) -> None:
        self._bits = bytearray(1 << (log2_bits - 3))
        self._mask = (1 << log2_bits) - 1

    def add(self, identity: bytes) -> bool:
        """Remember 16 bytes of a hash; return True if they are certainly new."""
        bits, new = self._bits, False
        for start in _PROBES:
            place = int.from_bytes(identity[start : start + 4], "big") & self._mask
            byte, bit = place >> 3, 1 << (place & 7)
            if not bits[byte] & bit:
                bits[byte] |= bit
                new = True
        return new
