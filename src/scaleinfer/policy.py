"""Data policy: which endpoints may see which items, and what is kept out of journal and telemetry.

```python
from scaleinfer.policy import Policy

policy = Policy(
    label=lambda item: item["access"],
    allow={"restricted": ["http://node*:8000/v1", "tag:site"], "public": "*"},
    tags={"site": ["fleet polaris"]},
)
```

An endpoint that may not see an item does not exist for that item: not when another fails, not for
a second copy, not together with other items in one call. An item that no endpoint may see fails
with `ConfigError` and the others go on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from scaleinfer.errors import ConfigError, PromptError, ScaleInferError, error_from_dict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["WITHHELD", "Audience", "Policy", "withheld"]

WITHHELD = "what it said is withheld by the policy."
"""Stands for a message that may quote a prompt or an answer."""

_EVERYWHERE = frozenset({"*", "**"})
_TAG = "tag:"
_REDACTABLE = ("prompts", "answers")


class Audience:
    """A label, and the endpoints that may see what carries it.

    Attributes:
        label: What the policy calls the items; empty for those it has no name for.
        restricted: True if there are endpoints that may not see them.
    """

    __slots__ = ("_known", "_patterns", "label", "restricted")

    def __init__(self, label: str, patterns: Sequence[str]) -> None:
        self.label = label
        self.restricted = not _EVERYWHERE.intersection(patterns)
        self._patterns = tuple(patterns)
        self._known: dict[str, bool] = {}

    def admits(self, endpoint: str) -> bool:
        """Return whether an endpoint may see what carries the label.

        Args:
            endpoint: Its name, as results have it.
        """
        known = self._known.get(endpoint)
        if known is None:
            name = endpoint.rstrip("/")
            known = not self.restricted or any(_matches(one, name) for one in self._patterns)
            self._known[endpoint] = known
        return known

    def refusal(self, endpoints: Iterable[str]) -> ConfigError:
        """Return the error of an item that none of these endpoints may see."""
        what = f"items labelled {self.label!r}" if self.label else "items without a label"
        allowed = ", ".join(self._patterns) or "nowhere"
        return ConfigError(
            f"the policy lets no endpoint of this map see {what}; nothing was sent.",
            hint=f"They may go to: {allowed}. The map has: {', '.join(endpoints) or 'none'}.",
        )


@dataclass(frozen=True)
class Policy:
    """Which endpoints may see which items, and what is kept out of journal and telemetry.

    A pattern is an endpoint's name as results have it (the URL without credentials; a fleet is
    `fleet NAME`), in which `*` stands for any characters but `/`, and `**` for any; `*` alone is
    every endpoint; `tag:NAME` is what `tags` says.

    Attributes:
        label: `label(item)` names an item's class, `None` if it has none. What it raises fails
            the item, unasked. Without it every item may go everywhere.
        allow: For each label, the patterns of the endpoints that may see it.
        default: The same for items without a label and for labels that `allow` does not name;
            by default they may go nowhere.
        tags: Patterns that share a name.
        redact: `"prompts"` keeps a template's text and the messages of errors, which may quote a
            prompt, out of the journal and of telemetry; `"answers"` keeps out the answers too, so
            that a resumed run asks again. Hashes stay.

    Raises:
        ConfigError: The policy contradicts itself.
    """

    label: Callable[[Any], str | None] | None = None
    allow: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    default: str | Sequence[str] = ()
    tags: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    redact: Sequence[Literal["prompts", "answers"]] | str = ()
    _audiences: dict[str, Audience] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.label is not None and not callable(self.label):
            raise ConfigError("label must be a function, e.g. label=lambda item: item['access'].")
        if self.label is None and (self.allow or self.default):
            raise ConfigError("allow= and default= say where labels may go: Policy needs label=.")
        unknown = sorted(set(_listed(self.redact)).difference(_REDACTABLE))
        if unknown:
            raise ConfigError(f"redact knows 'prompts' and 'answers', not {', '.join(unknown)}.")
        for patterns in (*self.allow.values(), self.default, *self.tags.values()):
            for pattern in _listed(patterns):
                if not isinstance(pattern, str) or not pattern:
                    raise ConfigError(f"{pattern!r} is no endpoint's name and no pattern.")
        for patterns in (*self.allow.values(), self.default):
            self._expanded(patterns)

    @property
    def keeps_prompts(self) -> bool:
        """False if prompts are kept out of journal and telemetry."""
        return not _listed(self.redact)

    @property
    def keeps_answers(self) -> bool:
        """False if answers are kept out of journal and telemetry."""
        return "answers" not in _listed(self.redact)

    @property
    def tells_errors(self) -> bool:
        """True if a server's messages may leave the run: one may quote any item's prompt."""
        return self.keeps_prompts and self.label is None

    def audience(self, item: Any) -> Audience:
        """Return who may see an item.

        Raises:
            PromptError: `label` raised, or returned something that is no label.
        """
        if self.label is None:
            return _ANYBODY
        try:
            label = self.label(item)
        except Exception as error:
            failed = PromptError(
                f"the policy's label raised {type(error).__name__}.",
                hint="The item was not asked; mend label= and call again.",
            )
            failed.__cause__ = error
            raise failed from error
        if label is not None and not isinstance(label, str):
            raise PromptError(f"the policy's label is a {type(label).__name__}, not a string.")
        return self.audience_of(label or "")

    def audience_of(self, label: str) -> Audience:
        """Return who may see what carries a label."""
        known = self._audiences.get(label)
        if known is None:
            patterns = self.allow.get(label, self.default) if label else self.default
            known = self._audiences[label] = Audience(label, self._expanded(patterns))
        return known

    def describe(self) -> dict[str, Any]:
        """Return the policy as plain data, for a journal; the function's name stands for it."""
        return {
            "label": getattr(self.label, "__qualname__", None),
            # Pairs: a journal strikes out what stands under names such as "secret".
            "allow": [[label, _listed(patterns)] for label, patterns in self.allow.items()],
            "default": _listed(self.default),
            "tags": [[tag, _listed(patterns)] for tag, patterns in self.tags.items()],
            "redact": _listed(self.redact),
        }

    def _expanded(self, patterns: str | Sequence[str]) -> list[str]:
        """Return patterns with those of their tags in place of them.

        Raises:
            ConfigError: There is no such tag.
        """
        found: list[str] = []
        for pattern in _listed(patterns):
            if not pattern.startswith(_TAG):
                found.append(pattern)
                continue
            tag = pattern.removeprefix(_TAG)
            if tag not in self.tags:
                raise ConfigError(f"the policy's tags have no {tag!r}.")
            found += _listed(self.tags[tag])
        return found


_ANYBODY = Audience("", ("*",))


def withheld(error: ScaleInferError) -> ScaleInferError:
    """Return an error without any text that may quote a prompt or an answer."""
    data = error.to_dict()
    kept = {name: data[name] for name in _TOLD if name in data}
    return error_from_dict(kept | {"message": WITHHELD})


_TOLD = (
    "type", "index", "key", "endpoint", "status", "retry_after", "fatal", "reached", "cap", "limit",
    "spent",
)  # fmt: skip


def _listed(value: str | Iterable[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _matches(pattern: str, name: str) -> bool:
    return _compiled(pattern).fullmatch(name) is not None


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*|\*)", pattern.rstrip("/"))
    stars = {"*": "[^/]*", "**": ".*"}
    return re.compile("".join(stars.get(part) or re.escape(part) for part in parts), re.DOTALL)
