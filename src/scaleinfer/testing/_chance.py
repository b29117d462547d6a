"""Chance that is the same in every run: drawn from what is asked, not from when it arrives."""

from __future__ import annotations

from hashlib import blake2b

__all__ = ["draw"]


def draw(seed: int, purpose: str, prompt: str, attempt: int) -> float:
    """Return a number in [0, 1) that depends on the arguments alone.

    A generator shared by all requests would give each run its own luck, because requests
    arrive in another order every time; a hash (BLAKE2b, 64 bits) of the request does not.
    """
    data = f"{seed}\0{purpose}\0{attempt}\0{prompt}".encode("utf-8", "surrogatepass")
    # 53 bits are what a float holds; all 64 could round up to 1.0.
    return (int.from_bytes(blake2b(data, digest_size=8).digest()) >> 11) / 2**53
