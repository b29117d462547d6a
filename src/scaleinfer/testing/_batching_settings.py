"""How a server batches: every choice, checked once."""

from __future__ import annotations

from dataclasses import dataclass

from scaleinfer.errors import ConfigError

__all__ = ["Batching"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """A server that batches continuously, as vLLM does: how many at once, and how fast.

    Every running sequence gains one token a step. A step takes
    `step_s + step_per_sequence_s * (sequences that decode)` seconds, so that goodput rises
    with the number of sequences up to the slots (the knee) and stays flat from there on.
    Requests beyond the slots or the KV cache wait in silence.

    Attributes:
        slots: Sequences that run at once (vLLM: `--max-num-seqs`).
        step_s: Seconds of a step.
        step_per_sequence_s: Seconds that each sequence adds to a step; above 0 the knee is round.
        prefill_tokens_per_s: Prompt tokens computed in a second, one prompt after the other,
            beside the decoding; `None`: at once.
        kv_tokens: Tokens that the KV cache holds; a request takes room for prompt and answer.
            `None`: as many as wanted. A request that is larger than all of it runs alone.
        kv_thrash: 0: requests wait until the KV cache has room. Above 0 they start without,
            and each step takes `1 + kv_thrash * (tokens / kv_tokens - 1)` times as long once
            their tokens exceed it, as preempted sequences are computed anew. Above 1, goodput
            falls beyond the knee.
        prefix_cache_tokens: Prompt tokens that are kept for later prompts with the same
            beginning, which need no prefill for them; `None` for no prefix cache.
        prefix_block_tokens: Tokens in a block of the prefix cache; only whole blocks are kept.

    Raises:
        ConfigError: A value that cannot be.
    """

    slots: int = 256
    step_s: float = 0.02
    step_per_sequence_s: float = 0.0
    prefill_tokens_per_s: float | None = None
    kv_tokens: int | None = None
    kv_thrash: float = 0.0
    prefix_cache_tokens: int | None = None
    prefix_block_tokens: int = 16

    def __post_init__(self) -> None:
        for name in ("slots", "prefix_block_tokens"):
            self._require(getattr(self, name) >= 1, f"{name} must be at least 1")
        for name in ("step_s", "step_per_sequence_s", "kv_thrash"):
            self._require(getattr(self, name) >= 0, f"{name} must not be negative")
        for name in ("prefill_tokens_per_s", "kv_tokens", "prefix_cache_tokens"):
            value = getattr(self, name)
            self._require(value is None or value > 0, f"{name} must be greater than 0")
        step = self.step_s + self.step_per_sequence_s
        self._require(step > 0, "a step must take some time: step_s or step_per_sequence_s")
        self._require(
            self.kv_thrash == 0 or self.kv_tokens is not None, "kv_thrash needs kv_tokens"
        )

    def _require(self, holds: bool, rule: str) -> None:
        if not holds:
            raise ConfigError(f"Batching: {rule}.")
