"""Patterns that science runs, each one call: maps made of maps, and what to make of results.

Every pattern is a coroutine that takes what `parallel_map` takes, so journal, fleet, limits and
progress work as in a map. One that fails for an item fails for that item alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaleinfer._lazy import lazy_exports

if TYPE_CHECKING:
    from scaleinfer.patterns._aggregate import (
        Conflict,
        FailureKind,
        FailureReport,
        Merged,
        Statistics,
        failure_report,
        group_by,
        majority_vote,
        merge,
        statistics,
        top_k,
    )
    from scaleinfer.patterns._agreement import (
        Agreement,
        agreement_of,
        cohen_kappa,
        fleiss_kappa,
        krippendorff_alpha,
    )
    from scaleinfer.patterns._blackboard import Agent, BlackboardResult, Turn, blackboard
    from scaleinfer.patterns._broadcast import BroadcastOutcome, BroadcastResult, broadcast
    from scaleinfer.patterns._ensemble import EnsembleOutcome, EnsembleResult, Vote, ensemble
    from scaleinfer.patterns._entropy import EntropyOutcome, EntropyResult, semantic_entropy
    from scaleinfer.patterns._judge import (
        Criterion,
        JudgeOutcome,
        JudgeResult,
        Rubric,
        Verdict,
        judge,
    )
    from scaleinfer.patterns._members import Member
    from scaleinfer.patterns._pipeline import (
        PipelineOutcome,
        PipelineResult,
        Stage,
        StageStats,
        pipeline,
    )
    from scaleinfer.patterns._result import Outcome, PatternResult
    from scaleinfer.patterns._roles import Role
    from scaleinfer.patterns._sweep import (
        SweepAnswer,
        SweepCell,
        SweepOutcome,
        SweepResult,
        Variant,
        sweep,
    )
    from scaleinfer.patterns._tree import TreeOutcome, TreeResult, tree_reduce
    from scaleinfer.patterns._tribunal import (
        Critique,
        Opinion,
        Round,
        TribunalOutcome,
        TribunalResult,
        tribunal,
    )
    from scaleinfer.patterns._voting import Tally

_HOMES = {
    "_aggregate": (
        "Conflict", "FailureKind", "FailureReport", "Merged", "Statistics", "failure_report",
        "group_by", "majority_vote", "merge", "statistics", "top_k",
    ),
    "_agreement": (
        "Agreement", "agreement_of", "cohen_kappa", "fleiss_kappa", "krippendorff_alpha",
    ),
    "_blackboard": ("Agent", "BlackboardResult", "Turn", "blackboard"),
    "_broadcast": ("BroadcastOutcome", "BroadcastResult", "broadcast"),
    "_ensemble": ("EnsembleOutcome", "EnsembleResult", "Vote", "ensemble"),
    "_entropy": ("EntropyOutcome", "EntropyResult", "semantic_entropy"),
    "_judge": ("Criterion", "JudgeOutcome", "JudgeResult", "Rubric", "Verdict", "judge"),
    "_members": ("Member",),
    "_pipeline": ("PipelineOutcome", "PipelineResult", "Stage", "StageStats", "pipeline"),
    "_result": ("Outcome", "PatternResult"),
    "_roles": ("Role",),
    "_sweep": (
        "SweepAnswer", "SweepCell", "SweepOutcome", "SweepResult", "Variant", "sweep",
    ),
    "_tree": ("TreeOutcome", "TreeResult", "tree_reduce"),
    "_tribunal": ("Critique", "Opinion", "Round", "TribunalOutcome", "TribunalResult", "tribunal"),
    "_voting": ("Tally",),
}  # fmt: skip

__all__ = [
    "Agent",
    "Agreement",
    "BlackboardResult",
    "BroadcastOutcome",
    "BroadcastResult",
    "Conflict",
    "Criterion",
    "Critique",
    "EnsembleOutcome",
    "EnsembleResult",
    "EntropyOutcome",
    "EntropyResult",
    "FailureKind",
    "FailureReport",
    "JudgeOutcome",
    "JudgeResult",
    "Member",
    "Merged",
    "Opinion",
    "Outcome",
    "PatternResult",
    "PipelineOutcome",
    "PipelineResult",
    "Role",
    "Round",
    "Rubric",
    "Stage",
    "StageStats",
    "Statistics",
    "SweepAnswer",
    "SweepCell",
    "SweepOutcome",
    "SweepResult",
    "Tally",
    "TreeOutcome",
    "TreeResult",
    "TribunalOutcome",
    "TribunalResult",
    "Turn",
    "Variant",
    "Verdict",
    "Vote",
    "agreement_of",
    "blackboard",
    "broadcast",
    "cohen_kappa",
    "ensemble",
    "failure_report",
    "fleiss_kappa",
    "group_by",
    "judge",
    "krippendorff_alpha",
    "majority_vote",
    "merge",
    "pipeline",
    "semantic_entropy",
    "statistics",
    "sweep",
    "top_k",
    "tree_reduce",
    "tribunal",
]

__getattr__, __dir__ = lazy_exports(
    __name__, {name: home for home, names in _HOMES.items() for name in names}
)
