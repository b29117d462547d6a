"""Blackboards: agents that read a shared state and write to it, until it stops changing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from scaleinfer.errors import (
    ConfigError,
    EndpointError,
    PromptError,
    ScaleInferError,
    SchemaError,
    WorkerLost,
)
from scaleinfer.mapping import MapOptions, parallel_map
from scaleinfer.patterns._result import Outcome, PatternResult
from scaleinfer.patterns._roles import Role, all_of, function_of, prompt_function, words_of
from scaleinfer.results import Result

if TYPE_CHECKING:
    from pydantic import BaseModel

    from scaleinfer.map_result import RunStats
    from scaleinfer.patterns._roles import PromptOf
    from scaleinfer.patterns._tables import Table
    from scaleinfer.program import LLM
    from scaleinfer.requests import Sampling

__all__ = ["Agent", "BlackboardResult", "Turn", "blackboard"]


@dataclass(frozen=True, slots=True)
class Agent:
    """Who reads the blackboard, and how the answer changes it.

    Attributes:
        prompt_fn: A template that names the state's fields, or a function of the state that
            returns a prompt, or `None` to say nothing in this round.
        update: `update(state, value)` changes the state and returns nothing, or returns a new
            one. Default: the answer goes into the state, a dict, under the agent's name.
        schema: Pydantic model of the answer; `None` for the map's.
        system: System message; `None` for the map's.
        sampling: Sampling parameters; `None` for the map's.
        model: Model to ask; `None` for the map's.
        backend: Where to ask, as for `parallel_map`; `None` for where the map asks.
    """

    prompt_fn: PromptOf
    update: Callable[[Any, Any], Any] | None = None
    schema: type[BaseModel] | None = None
    system: str | None = None
    sampling: Sampling | Mapping[str, Any] | None = None
    model: str | None = None
    backend: Any = None


@dataclass(frozen=True, slots=True)
class Turn(Outcome):
    """What one agent said in one round; `item` is the agent's name.

    Attributes:
        round: The round, from 1.
    """

    round: int = 0

    columns: ClassVar[tuple[str, ...]] = ("agent", "round")

    @property
    def agent(self) -> str:
        """The agent's name."""
        return str(self.item)


class BlackboardResult(PatternResult[Turn]):
    """The turns in the order in which they were taken, and what they led to.

    Attributes:
        state: The state after the last complete round.
        rounds: Rounds that were completed.
        converged: True if the last round changed nothing, or `until` was satisfied.
        error: Why it ended early; `None` if it did not.
    """

    def __init__(
        self,
        turns: list[Turn],
        stats: RunStats,
        *,
        state: Any,
        rounds: int,
        converged: bool,
        error: ScaleInferError | None,
    ) -> None:
        super().__init__(turns, stats)
        self.state = state
        self.rounds = rounds
        self.converged = converged
        self.error = error

    def tables(self) -> list[Table]:
        """Return a row for each agent."""
        from scaleinfer.patterns._tables import Table

        turns: dict[str, list[Turn]] = {}
        for turn in self:
            turns.setdefault(turn.agent, []).append(turn)
        how = "converged" if self.converged else str(self.error or "did not converge")
        rows = [
            (name, len(own), sum(not one.ok for one in own), sum(one.attempts for one in own))
            for name, own in turns.items()
        ]
        title = f"{self.rounds} rounds, {how}"
        return [Table(title, ("agent", "turns", "failed", "calls"), rows)]


async def blackboard(
    agents: Mapping[str, Agent | PromptOf],
    state: Any,
    *,
    rounds: int = 10,
    until: Callable[[Any], Any] | None = None,
    **options: Unpack[MapOptions],
) -> BlackboardResult:
    """Have agents read and change a shared state, round by round, until it stops changing.

    In a round all agents see the same state and are asked at the same time; their answers change
    it in the order of `agents`, so that the outcome does not depend on who was faster. An agent
    whose prompt is what it was the round before has nothing to add and is not asked.

    Args:
        agents: Name -> `Agent`, or what it is asked: a template or a function of the state.
        state: The state to begin with, usually a dict; it is copied, and compared with `==`.
        rounds: Rounds at most.
        until: Ends it when this function of the state returns something true.
        **options: As for `parallel_map`. `key` has no meaning here.

    Returns:
        A `BlackboardResult`: the state, whether it converged, and every turn. An agent whose
        call failed is left out of its round; a round in which all fail, or an `update` that
        raises, ends it.

    Raises:
        ConfigError: An argument is wrong; nothing was sent.
        JournalError: As for `parallel_map`.
    """
    if not isinstance(agents, Mapping) or not agents:
        raise ConfigError("A blackboard needs agents: a dict of name to Agent or prompt_fn.")
    if rounds < 1:
        raise ConfigError(f"rounds must be at least 1, not {rounds}.")
    readers = [
        _Reader(name, one if isinstance(one, Agent) else Agent(one)) for name, one in agents.items()
    ]
    enough = None if until is None else function_of(until, 1, what="until")
    board = _Board(readers, deepcopy(state), rounds, enough)
    options["key"] = lambda _: "blackboard"
    results = await parallel_map([None], board.run, **options)
    return BlackboardResult(
        board.turns,
        results.stats,
        state=board.state,
        rounds=board.rounds,
        converged=board.converged,
        error=results[0].error,
    )


class _Reader:
    """An agent while the rounds go on.

    Args:
        name: Its name.
        agent: How it is asked, and how it writes.

    Attributes:
        prompt: What it is asked in this round; `None` if nothing.
    """

    def __init__(self, name: str, agent: Agent) -> None:
        self.name = name
        self.schema = agent.schema
        self.prompt: Any = None
        self._role = Role(name, agent.system, agent.model, agent.backend, agent.sampling)
        self._prompt_of = prompt_function(agent.prompt_fn, (), what=f"prompt_fn of {name!r}")
        update = partial(_written, name) if agent.update is None else agent.update
        self._update = function_of(update, 2, what=f"update of {name!r}")
        self._last = ""

    async def read(self, state: Any) -> bool:
        """Look at the state; return whether there is something new to ask."""
        self.prompt = await self._prompt_of(state)
        if self.prompt is None:
            return False
        said = words_of(self.prompt)
        new = said != self._last
        self._last = said
        return new

    def forget(self) -> None:
        """Ask again, whatever the state."""
        self._last = ""

    async def ask(self, llm: LLM) -> Result | ScaleInferError:
        """Return the answer, or why there is none."""
        try:
            return await self._role.ask(llm, self.prompt, schema=self.schema)
        except (EndpointError, SchemaError, WorkerLost) as error:
            return error

    async def write(self, state: Any, value: Any) -> Any:
        """Return the state with what was answered."""
        changed = await self._update(state, value)
        return state if changed is None else changed


def _written(name: str, state: Any, value: Any) -> None:
    if not isinstance(state, MutableMapping):
        raise PromptError(
            f"the state is a {type(state).__name__}, into which no answer can be written by name.",
            hint="Give the agent an update: Agent(prompt_fn, update=lambda state, value: ...).",
        )
    state[name] = value


class _Board:
    """The program of a blackboard.

    Attributes:
        state: The state after the last complete round.
        turns: What was said.
        rounds: Rounds that were completed.
        converged: True if it has come to an end by itself.
    """

    def __init__(
        self, readers: list[_Reader], state: Any, most: int, enough: Callable[..., Any] | None
    ) -> None:
        self.state = state
        self.turns: list[Turn] = []
        self.rounds = 0
        self.converged = False
        self._readers = readers
        self._most = most
        self._enough = enough

    async def run(self, _: Any, llm: LLM) -> Any:
        """Go on until nothing changes; return the state."""
        while self.rounds < self._most and not self.converged:
            await self._round(llm)
        return self.state

    async def _round(self, llm: LLM) -> None:
        asked = [one for one in self._readers if await one.read(deepcopy(self.state))]
        answers = await all_of([one.ask(llm) for one in asked])
        state, failures = deepcopy(self.state), []
        for reader, answer in zip(asked, answers, strict=True):
            self._note(reader.name, answer, llm)
            if isinstance(answer, ScaleInferError):
                failures.append(answer)
                reader.forget()
            else:
                state = await reader.write(state, answer.value)
        if failures and len(failures) == len(asked):
            raise failures[0]
        changed, self.state = state != self.state, state
        self.rounds += 1
        done = self._enough is not None and await self._enough(deepcopy(state))
        # One that could not be heard might have changed something.
        self.converged = bool(done) or (not changed and not failures)

    def _note(self, agent: str, answer: Result | ScaleInferError, llm: LLM) -> None:
        number = len(self.turns)
        if isinstance(answer, ScaleInferError):
            result = Result(llm.key, number, agent, error=answer)
            self.turns.append(Turn(result, round=self.rounds + 1))
        else:
            result = replace(answer, index=number, item=agent)
            self.turns.append(Turn(result, answer.value, self.rounds + 1))
