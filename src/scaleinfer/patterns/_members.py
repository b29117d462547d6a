"""Whom a pattern asks: models and endpoints side by side, and how their samples differ."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from scaleinfer.errors import ConfigError
from scaleinfer.prompts import Prompt
from scaleinfer.requests import Sampling

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from scaleinfer.mapping import MapOptions
    from scaleinfer.program import LLM
    from scaleinfer.results import Result

__all__ = ["Member", "ask", "check_chance", "for_map", "members_of", "varied"]


@dataclass(frozen=True, slots=True)
class Member:
    """One of several models that a pattern asks side by side.

    Attributes:
        model: Model to ask; `None` for the map's, or the backend's own.
        backend: Where to ask; `None` for where the map asks.
        sampling: Sampling parameters, in place of the prompt's and the map's.
        weight: What its vote weighs in `ensemble(vote="weighted")`.
        name: Its name in results; default made of model and backend.
    """

    model: str | None = None
    backend: Any = None
    sampling: Sampling | Mapping[str, Any] | None = None
    weight: float = 1.0
    name: str = ""


def members_of(models: Iterable[Any] | None, *, what: str = "models") -> tuple[Member, ...]:
    """Return whom to ask, each under a name of its own; the map's own model if nobody is named.

    Args:
        models: Names of models, addresses (`http://...`), backends, or `Member`s.
        what: What the argument is called in messages.

    Raises:
        ConfigError: None is named, one is named twice, or a weight is not positive.
    """
    if models is None:
        return (Member(name="default"),)
    if isinstance(models, str | Member):
        models = [models]
    members = tuple(_member(one) for one in models)
    if not members:
        raise ConfigError(f"{what} names nobody to ask.", hint=f"Leave {what} out, or name one.")
    seen: set[str] = set()
    for member in members:
        if member.name in seen:
            raise ConfigError(
                f"{what} names {member.name!r} twice.",
                hint="To ask it in two ways, give each a name: Member(model=..., name=...).",
            )
        if not member.weight > 0:
            raise ConfigError(f"{what}: the weight of {member.name!r} must be greater than 0.")
        Sampling.of(member.sampling)
        seen.add(member.name)
    return members


def _member(one: Any) -> Member:
    if isinstance(one, str):
        one = Member(backend=one) if "://" in one else Member(model=one)
    elif not isinstance(one, Member):
        one = Member(backend=one)
    named: Member = one if one.name else replace(one, name=_name(one))
    return named


def _name(member: Member) -> str:
    backend = member.backend
    if backend is not None and not isinstance(backend, str):
        own = getattr(backend, "model", None)
        if member.model is None and isinstance(own, str):
            return own
        backend = getattr(backend, "endpoint", None) or type(backend).__name__
    return " at ".join(part for part in (member.model, backend) if part) or "default"


def for_map(
    options: MapOptions, members: tuple[Member, ...], name: str
) -> tuple[MapOptions, tuple[Member, ...]]:
    """Return the options of the map that asks the members, and the members as it sees them.

    If all of them have a backend and the map has none, the first one's is the map's, so that
    nothing is opened that nobody asks. What the map itself reaches needs no engine of its own.

    Args:
        options: The caller's.
        members: Whom to ask.
        name: Name of the map, if the caller gave none.
    """
    options = {**options, "name": options.get("name") or name}
    if options.get("fleet") is not None:
        # Its workers know where to ask, and each request says which model.
        return options, members
    given = options.get("backend") is not None or options.get("base_url") is not None
    if not given and all(member.backend is not None for member in members):
        options["backend"] = members[0].backend
    own = options.get("backend")
    if own is not None and not isinstance(own, list | tuple):
        members = tuple(
            replace(member, backend=None) if _same(member.backend, own) else member
            for member in members
        )
    if options.get("model") is None:
        models = [member.model for member in members if member.backend is None and member.model]
        if models:
            options["model"] = models[0]
    return options, members


def _same(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, str) and one == other)


async def ask(llm: LLM, prompt: Any, member: Member, **changes: Any) -> Result:
    """Ask a member.

    Args:
        llm: The item's.
        prompt: A string, chat messages, or a `Prompt`.
        member: Whom to ask.
        changes: Sampling parameters that differ from the member's, the prompt's or the map's.

    Raises:
        ScaleInferError: There is no usable answer.
    """
    return await llm(
        prompt,
        sampling=replace(_sampling(llm, prompt, member), **changes),
        model=member.model,
        backend=member.backend,
    )


def varied(llm: LLM, prompt: Any, member: Member, number: int, seed: int | None) -> dict[str, Any]:
    """Return what sets a member's sample apart from its others.

    Args:
        llm: The item's.
        prompt: What is asked.
        member: Who is asked.
        number: Which of the member's samples, from 0.
        seed: The first sample's seed if the sampling names none; `None` to send no seed.

    Raises:
        ConfigError: Greedy decoding, which gives the same answer again.
    """
    sampling = _sampling(llm, prompt, member)
    check_chance(sampling, number + 1)
    first = seed if sampling.seed is None else sampling.seed
    return {} if first is None else {"seed": first + number}


def check_chance(sampling: Sampling, samples: int) -> None:
    """Complain about several samples of what has no chance in it.

    Raises:
        ConfigError: Greedy decoding, which gives the same answer again.
    """
    if samples > 1 and sampling.temperature == 0:
        raise ConfigError(
            "temperature=0 gives the same answer every time: asking again says nothing new.",
            hint="Use a temperature such as 0.7, or one model per answer: models=[...].",
        )


def _sampling(llm: LLM, prompt: Any, member: Member) -> Sampling:
    if member.sampling is not None:
        return Sampling.of(member.sampling)
    if isinstance(prompt, Prompt) and prompt.sampling is not None:
        return Sampling.of(prompt.sampling)
    return llm.sampling
