"""Looking back at runs from their journals alone: replay, compare, and who saw what.

Nothing is asked and nothing is changed.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer._answers import Answer, joint_result, single_result
from scaleinfer._run import placed
from scaleinfer.errors import JournalError, error_from_dict
from scaleinfer.map_result import MapResult, RunStats
from scaleinfer.policy import Policy
from scaleinfer.results import Usage, total_cost

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scaleinfer.journal import RunInfo, StoredResult
    from scaleinfer.results import Result

__all__ = ["Change", "Diff", "Sight", "diff", "replay", "results_of", "who_saw"]

_EXAMPLES = 20
_CONTENT = ("text", "value", "vector", "choices", "tool_calls", "redacted")


def replay(path: str | os.PathLike[str], run: int | None = None) -> MapResult:
    """Rebuild what a run returned, offline: `digest` is equal to the run's own.

    `Result.item` is `None`, for items are in no journal; values are plain data where the run had
    a schema's objects; every result is `resumed`. Items that a stopped run left are counted but
    have no results.

    Args:
        path: The journal.
        run: Number of the run; default the newest.

    Raises:
        JournalError: There is no such run, a later run has replaced some of its failures, or it
            ran a program per item, of which the journal has the calls only.
    """
    info = _info(path, run)
    if info.data.get("kind") == "program":
        raise _not_rebuilt(
            path, info, "it ran a program for each item, and the journal has their calls only",
            "Call the map again: its calls are answered from the journal, and nothing is asked.",
        )  # fmt: skip
    results: list[Result] = []
    for _, rows in groupby(_stored(path, info.id), key=lambda row: (row.index, row.key)):
        found = list(rows)
        if not all(row.kept for row in found):
            raise _not_rebuilt(
                path, info, "a later run has asked items again that had failed",
                "`scaleinfer runs diff` shows which.",
            )  # fmt: skip
        results += results_of(found)
    results.sort(key=lambda result: result.index)
    return MapResult(results, _stats(os.fspath(path), info, results))


def results_of(rows: list[StoredResult]) -> Iterator[Result]:
    """Yield the result, or results, that one item's rows stand for."""
    first = rows[0]
    named: dict[str, Answer] = {}
    for row in rows:
        if row.rendered and row.question:
            named[row.question] = placed(Answer.from_data(row.payload), row.index, row.key)
        elif row.rendered:
            answer = placed(Answer.from_data(row.payload), row.index, row.key)
            yield single_result(row.index, row.key, None, answer)
        else:
            error = error_from_dict(row.payload["error"])
            answer = Answer(error=error, resumed=True)
            yield single_result(row.index, row.key, None, answer)
    if named:
        yield joint_result(first.index, first.key, None, named)


def _not_rebuilt(path: str | os.PathLike[str], info: RunInfo, why: str, hint: str) -> JournalError:
    return JournalError(
        f"Run {info.id} cannot be rebuilt from {os.fspath(path)}: {why}.",
        path=os.fspath(path),
        hint=hint,
    )


def _info(path: str | os.PathLike[str], run: int | None) -> RunInfo:
    from scaleinfer.journal import list_runs

    infos = {info.id: info for info in list_runs(path)}
    number = max(infos, default=0) if run is None else run
    if number not in infos:
        raise JournalError(
            f"The journal {os.fspath(path)} has no run {number}.",
            path=os.fspath(path),
            hint="`scaleinfer runs list` shows those it has.",
        )
    return infos[number]


def _stored(path: str | os.PathLike[str], run: int | None) -> Iterator[StoredResult]:
    from scaleinfer.journal import read_run

    return read_run(path, run)


def _stats(path: str, info: RunInfo, results: list[Result]) -> RunStats:
    ok = sum(result.ok for result in results)
    return RunStats(
        name=info.name,
        items=len(results),
        ok=ok,
        failed=len(results) - ok,
        not_asked=info.counts.get("not_asked", 0),
        resumed=info.counts.get("resumed", 0),
        cut=sum(result.finish_reason == "length" for result in results),
        calls=info.counts.get("attempts", 0),
        hedged=0,
        shared=0,
        retries=0,
        elapsed_s=0.0 if info.ended is None else info.ended - info.started,
        usage=Usage.total(result.usage for result in results),
        cost_usd=total_cost(result.cost_usd for result in results),
        endpoint=info.data.get("endpoint", ""),
        model=info.data.get("program", {}).get("model"),
        journal=path,
        stopped="" if info.state == "complete" else f"the run was {info.state}",
        peak_in_flight=0,
    )


@dataclass(frozen=True, slots=True)
class Change:
    """One item that differs between two runs.

    Attributes:
        key: The item's key.
        question: Name of the question if it asks several.
        what: `added`, `removed`, `answer`, `failed` (it had an answer before) or `mended`.
        before: Its answer, or its error's class and message; `None` if it was not there.
        after: The same in the second run.
    """

    key: str
    question: str
    what: str
    before: str | None
    after: str | None


@dataclass(slots=True)
class Diff:
    """What differs between two runs.

    Attributes:
        same: Questions with the same answer in both.
        added: Questions of the second run only.
        removed: Questions of the first only.
        answer: Questions answered otherwise.
        failed: Questions that had an answer and have none.
        mended: Questions that had none and have one.
        prompt_tokens: How many more the second run used; likewise the next two.
        completion_tokens: Of the answers.
        cost_usd: In dollars; `None` if either run has no prices.
        examples: The first changes, at most 20 of each kind.
    """

    same: int = 0
    added: int = 0
    removed: int = 0
    answer: int = 0
    failed: int = 0
    mended: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None
    examples: list[Change] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether both runs came to the same answers."""
        return not (self.added or self.removed or self.answer or self.failed or self.mended)


def diff(
    before: str | os.PathLike[str],
    after: str | os.PathLike[str] | None = None,
    *,
    run_before: int | None = None,
    run_after: int | None = None,
) -> Diff:
    """Compare what two runs came to, question by question.

    Questions are matched by their key, name and how often they occurred. With a `key=` of your own
    a changed prompt shows as another answer; without one the key is a hash of the request, so that
    it shows as one question removed and one added.

    Args:
        before: The first run's journal.
        after: The second run's; default the same journal.
        run_before: Number of the first run; default the newest, of the same journal the last but
            one.
        run_after: Number of the second; default the newest.

    Raises:
        JournalError: A journal cannot be read or has no such run.
    """
    if after is None:
        after = before
        if run_before is None:
            run_before = _info(before, run_after).id - 1
    first: dict[tuple[str, str, int], tuple[bool, bytes, str]] = {}
    found = Diff()
    old, new = _Totals(), _Totals()
    for row in _stored(before, _info(before, run_before).id):
        old.add(row)
        first[_match(row)] = (row.ok, _content(row), _shown(row))
    for row in _stored(after, _info(after, run_after).id):
        new.add(row)
        _compare(found, row, first.pop(_match(row), None))
    for (key, question, _), (_, _, shown) in first.items():
        _count(found, Change(key, question, "removed", shown, None))
    found.prompt_tokens = new.usage.prompt_tokens - old.usage.prompt_tokens
    found.completion_tokens = new.usage.completion_tokens - old.usage.completion_tokens
    if new.cost is not None and old.cost is not None:
        found.cost_usd = new.cost - old.cost
    return found


class _Totals:
    def __init__(self) -> None:
        self.usage = Usage()
        self.cost: float | None = None

    def add(self, row: StoredResult) -> None:
        self.usage = self.usage.plus(Usage(*row.payload.get("usage", ())))
        cost = row.payload.get("cost_usd")
        if cost is not None:
            self.cost = (self.cost or 0.0) + cost


def _match(row: StoredResult) -> tuple[str, str, int]:
    return row.key, row.question, row.occurrence


def _content(row: StoredResult) -> bytes:
    content = {name: row.payload[name] for name in _CONTENT if name in row.payload}
    text = orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(text, digest_size=16).digest()


def _shown(row: StoredResult) -> str:
    data = row.payload
    if not row.kept:
        return "(replaced by a later run)"
    if data.get("restricted"):
        return f"(restricted: {data.get('label')})"
    if "error" in data:
        return f"{data['error'].get('type')}: {data['error'].get('message', '')}"
    for name in ("text", "value", "redacted"):
        if data.get(name) is not None:
            return str(data[name])
    return ""


def _compare(found: Diff, row: StoredResult, old: tuple[bool, bytes, str] | None) -> None:
    if old is None:
        _count(found, Change(row.key, row.question, "added", None, _shown(row)))
        return
    ok, content, shown = old
    if ok != row.ok:
        what = "mended" if row.ok else "failed"
    elif ok and content != _content(row):
        what = "answer"
    else:
        found.same += 1
        return
    _count(found, Change(row.key, row.question, what, shown, _shown(row)))


def _count(found: Diff, change: Change) -> None:
    count = getattr(found, change.what) + 1
    setattr(found, change.what, count)
    if count <= _EXAMPLES:
        found.examples.append(change)


@dataclass(frozen=True, slots=True)
class Sight:
    """What one endpoint saw of one label.

    Attributes:
        label: The items' label; empty for those without.
        endpoint: The endpoint.
        items: Questions that were sent there.
        calls: Calls, failed and cut off ones included.
        answered: Calls that brought an answer.
        first: Unix time of the first.
        last: Unix time of the last.
        allowed: Whether the run's policy lets the endpoint see the label; `None` without one.
    """

    label: str
    endpoint: str
    items: int
    calls: int
    answered: int
    first: float
    last: float
    allowed: bool | None


def who_saw(path: str | os.PathLike[str], run: int | None = None) -> list[Sight]:
    """Return which endpoint was sent what, by label, from the calls that a journal holds.

    Calls that were in flight when a run was killed (not when it was stopped) are not among them.

    Args:
        path: The journal.
        run: Only this run's calls; all by default.

    Raises:
        JournalError: The journal cannot be read, or has no such run.
    """
    from scaleinfer.journal import list_runs, read_sights

    infos = {info.id: info for info in list_runs(path)}
    if run is not None:
        _info(path, run)
    policies = {number: _policy(info) for number, info in infos.items()}
    merged: dict[tuple[str, str], Sight] = {}
    for number, label, endpoint, *counts, first, last in read_sights(path, run=run):
        policy = policies.get(number)
        allowed = None
        if policy is not None:
            # A fleet's workers have endpoints of their own; the policy is about the fleet.
            places = [endpoint, *_fleets(infos[number])]
            allowed = any(map(policy.audience_of(label).admits, places))
        items, calls, answered = counts
        sight = Sight(label, endpoint, items, calls, answered, first, last, allowed)
        known = merged.get((label, endpoint))
        merged[label, endpoint] = sight if known is None else _both(known, sight)
    return [merged[where] for where in sorted(merged)]


def _fleets(info: RunInfo) -> list[str]:
    return [name for name in info.data.get("endpoints", ()) if name.startswith("fleet ")]


def _both(one: Sight, other: Sight) -> Sight:
    verdicts = {one.allowed, other.allowed} - {None}
    return Sight(
        one.label,
        one.endpoint,
        one.items + other.items,
        one.calls + other.calls,
        one.answered + other.answered,
        min(one.first, other.first),
        max(one.last, other.last),
        None if not verdicts else False not in verdicts,
    )


def _policy(info: RunInfo) -> Policy | None:
    """Return a run's policy as its manifest has it."""
    said = info.data.get("parameters", {}).get("policy")
    if not said or said.get("label") is None:
        return None
    return Policy(
        label=_nobody, allow=dict(said["allow"]), default=said["default"], tags=dict(said["tags"])
    )


def _nobody(_: Any) -> None:
    """Stand for a label function that is not called."""
