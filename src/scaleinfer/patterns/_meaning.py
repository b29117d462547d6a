"""Answers that mean the same, put together, and the entropy of what is left."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Clusters", "cosine", "entropy_of", "near"]


class Clusters:
    """Puts answers together one after the other.

    Each answer is compared with the first one of every cluster there is, and joins the first
    cluster that means the same, or begins one of its own: the greedy clustering of L. Kuhn, Y. Gal
    and S. Farquhar, Semantic uncertainty, ICLR 2023, and of S. Farquhar et al., Detecting
    hallucinations in large language models using semantic entropy, Nature 630, 625-630, 2024.
    """

    def __init__(self) -> None:
        self._clusters: list[list[int]] = []

    @property
    def representatives(self) -> list[int]:
        """The first answer of each cluster: what the next is to be compared with."""
        return [cluster[0] for cluster in self._clusters]

    def place(self, answer: int, same: Sequence[bool]) -> None:
        """Put an answer where it belongs.

        Args:
            answer: Which answer it is.
            same: For each of `representatives`, whether it means the same.
        """
        for cluster, fits in zip(self._clusters, same, strict=True):
            if fits:
                cluster.append(answer)
                return
        self._clusters.append([answer])

    def join(self, answer: int, other: int) -> None:
        """Put an answer into the cluster of another, which has the very same words."""
        next(cluster for cluster in self._clusters if other in cluster).append(answer)

    def sorted(self) -> tuple[tuple[int, ...], ...]:
        """Return the clusters, the largest first, of equal ones the one that began first."""
        whole = [tuple(sorted(cluster)) for cluster in self._clusters]
        return tuple(sorted(whole, key=lambda cluster: (-len(cluster), cluster[0])))


def entropy_of(clusters: Sequence[Sequence[int]], weights: Sequence[float]) -> float:
    """Return the entropy of clusters in nats: 0 if there is one, `ln n` if all `n` differ.

    `-sum p ln p`, with `p` a cluster's share of all weights. With equal weights that is the
    discrete semantic entropy of Farquhar et al. (2024); with the answers' probabilities it is
    their Rao-Blackwellised estimate.

    Args:
        clusters: Clusters of answers.
        weights: Each answer's weight.
    """
    sums = [math.fsum(weights[answer] for answer in cluster) for cluster in clusters]
    total = math.fsum(sums)
    shares = [part / total for part in sums if part > 0]
    # Not -0.0 for a single cluster.
    return max(0.0, -math.fsum(share * math.log(share) for share in shares))


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the cosine of the angle between two vectors; 0 if one of them is zero."""
    length = math.sqrt(_dot(one, one) * _dot(other, other))
    return _dot(one, other) / length if length else 0.0


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))


def near(vectors: Sequence[Sequence[float]], threshold: float) -> Clusters:
    """Return clusters of vectors whose cosine with a cluster's first one reaches `threshold`."""
    clusters = Clusters()
    for number, vector in enumerate(vectors):
        clusters.place(
            number,
            [cosine(vector, vectors[first]) >= threshold for first in clusters.representatives],
        )
    return clusters
