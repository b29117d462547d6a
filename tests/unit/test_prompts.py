from __future__ import annotations

import copy
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from scaleinfer.errors import ConfigError, PromptError
from scaleinfer.prompts import Prompt, Question, Renderer
from scaleinfer.requests import Sampling

pytestmark = pytest.mark.anyio


class Answer(BaseModel):
    ok: bool


class Other(BaseModel):
    n: int


@dataclass
class Molecule:
    name: str
    mass: float
    _secret: int = 0


Row = namedtuple("Row", ["name", "mass"])


async def one(prompt_fn: Any, item: Any = None, **options: Any) -> Question:
    questions = await Renderer(prompt_fn, **options).render(item)
    assert list(questions) == [""]
    return questions[""]


async def text_of(template: str, item: Any) -> Any:
    question = await one(template, item)
    assert question.request.messages is not None
    (message,) = question.request.messages
    assert message["role"] == "user"
    return message["content"]


ITEMS: list[Any] = [
    {"name": "water", "mass": 18.015},
    Molecule("water", 18.015),
    Row("water", 18.015),
    SimpleNamespace(name="water", mass=18.015),
]


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: type(item).__name__)
async def test_template_takes_keys_and_attributes(item: Any) -> None:
    assert await text_of("{name}: {mass:.1f} {{u}} {name!r}", item) == "water: 18.0 {u} 'water'"


@pytest.mark.parametrize(
    ("template", "item", "said"),
    [
        ("Say {item}", 3, "Say 3"),
        ("Say {}", "hi", "Say hi"),
        ("Say {0}", {"a": 1}, "Say {'a': 1}"),
        ("Say {text}", "hi", "Say hi"),
        ("{} and {}", ("a", "b"), "a and b"),
        ("{1}{0}", ["a", "b"], "ba"),
        ("{a[b]}", {"a": {"b": 1}}, "1"),
        ("{0}", {"0": "zero"}, "zero"),
        ("{odd name}", {"odd name": "x"}, "x"),
        ("{item}", {"item": "the field wins"}, "the field wins"),
        ("{text}", {"text": "{text}"}, "{text}"),
    ],
)
async def test_template_names(template: str, item: Any, said: str) -> None:
    assert await text_of(template, item) == said


@pytest.mark.parametrize(
    ("template", "item", "complaint"),
    [
        ("{smile}", {"smiles": "C"}, r"names \{smile\}.*It has: smiles\."),
        ("{x}", Molecule("a", 1.0), "It has: name, mass"),
        ("{x}", Row("a", 1.0), "It has: name, mass"),
        ("{x}", SimpleNamespace(b=1, _c=2), r"It has: b\."),
        ("{x}", 3, r"It has: \{item\} only \(it is a int\)"),
        ("{x}", {str(i): i for i in range(40)}, "and 28 more"),
        ("{a}", {"a": None}, r"\{a\} of the template is None"),
        ("{a[b]}", {"a": {"b": None}}, r"\{a\[b\]\} of the template is None"),
        ("{a:.2f}", {"a": "text"}, "does not fit.*ValueError"),
        ("{2}", ["a", "b"], r"names \{2\}"),
        ("{a[c]}", {"a": {"b": 1}}, "KeyError"),
    ],
)
async def test_item_without_the_field(template: str, item: Any, complaint: str) -> None:
    with pytest.raises(PromptError, match=complaint):
        await one(template, item)


@pytest.mark.parametrize(
    ("template", "complaint"),
    [("no field", "names no field"), ("{a", "cannot be read"), ("a}", "cannot be read")],
)
async def test_template_that_cannot_work(template: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Renderer(template)


async def test_functions_plain_async_and_callable_objects() -> None:
    async def later(item: int) -> str:
        return f"say {item}"

    class Callable:
        async def __call__(self, item: int) -> str:
            return await later(item)

    def gives_coroutine(item: int) -> Any:
        return later(item)

    for function in (lambda item: f"say {item}", later, Callable(), gives_coroutine):
        question = await one(function, 3)
        assert question.request.messages == [{"role": "user", "content": "say 3"}]
    assert Renderer(later).is_async
    assert Renderer(Callable()).is_async
    assert not Renderer(str).is_async


async def test_messages_pass_through_untouched() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}, picture]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]
    before = copy.deepcopy(messages)
    question = await one(lambda item: messages, system="Be brief.")
    assert question.request.messages == [{"role": "system", "content": "Be brief."}, *before]
    assert messages == before
    assert question.request.messages[1] is messages[0]


async def test_own_system_message_wins() -> None:
    for role in ("system", "developer"):
        messages = [{"role": role, "content": "mine"}, {"role": "user", "content": "x"}]
        mine = messages

        def own(item: Any) -> Any:
            return mine  # noqa: B023 - rendered before the next turn

        question = await one(own, system="the map's")
        assert question.request.messages == messages
    question = await one(lambda item: Prompt("x", system="mine"), system="the map's")
    assert question.request.messages == [
        {"role": "system", "content": "mine"},
        {"role": "user", "content": "x"},
    ]


async def test_prompt_overrides_the_maps_settings() -> None:
    prompt = Prompt("x", schema=Other, sampling={"seed": 1}, model="big")
    question = await one(lambda item: prompt, schema=Answer, sampling={"temperature": 0})
    assert question.request.sampling == Sampling(seed=1)
    assert question.request.model == "big"
    assert question.request.schema_name == "Other"
    assert question.schema is not None
    assert question.schema.model is Other
    plain = await one(lambda item: Prompt("x"), schema=Answer, sampling={"temperature": 0})
    assert plain.request.sampling == Sampling(temperature=0)
    assert plain.request.schema_name == "Answer"


async def test_completion_is_plain_text() -> None:
    question = await one(lambda item: Prompt("Once upon", completion=True), system="s")
    assert question.request.messages is None
    assert question.request.prompt == "Once upon"
    with pytest.raises(ConfigError):
        Prompt([{"role": "user", "content": "x"}], completion=True)
    with pytest.raises(ConfigError):
        Prompt("x", completion=True, system="s")
    with pytest.raises(ConfigError):
        Prompt("x", completion=True, schema=Answer)


async def test_named_questions_keep_their_order() -> None:
    renderer = Renderer(lambda item: {"b": "one", "a": Prompt("two", schema=Other)}, schema=Answer)
    questions = await renderer.render(None)
    assert list(questions) == ["b", "a"]
    schemas = [question.request.schema_name for question in questions.values()]
    assert schemas == ["Answer", "Other"]


def boom(item: Any) -> str:
    raise LookupError("no such thing")


def wrong_settings(item: Any) -> Prompt:
    return Prompt("x", sampling={"temprature": 0})


class NotAModel:
    pass


@pytest.mark.parametrize(
    ("prompt_fn", "complaint"),
    [
        (boom, "prompt_fn raised LookupError: no such thing"),
        (lambda item: None, "returned None, which is no prompt"),
        (lambda item: 3, "returned 3, which is no prompt"),
        (lambda item: b"bytes", "which is no prompt"),
        (lambda item: "", "empty string"),
        (lambda item: " \n", "empty string"),
        (lambda item: [], "empty list"),
        (lambda item: ["text"], "'text', which is no chat message"),
        (lambda item: [{"content": "x"}], "no chat message"),
        (lambda item: {"role": "user", "content": "x"}, "one chat message.*list"),
        (lambda item: {}, "empty dict"),
        (lambda item: {1: "x"}, "question named 1"),
        (lambda item: {"": "x"}, "question named ''"),
        (lambda item: {"a": None}, "None, which is no prompt"),
        (lambda item: Prompt("", completion=True), "empty completion"),
        (lambda item: Prompt(""), "empty string"),
        (lambda item: Prompt(3), "3, which is no prompt"),  # type: ignore[arg-type] # on purpose
        (lambda item: Prompt("x", completion=True, system="s"), "neither a system message"),
        (wrong_settings, "no parameter temprature"),
        (lambda item: Prompt("x", schema=NotAModel), "pydantic"),  # type: ignore[arg-type] # same
        (lambda item: "x" * 0 or object(), "which is no prompt"),
    ],
)
async def test_bad_returns_cost_the_item_alone(prompt_fn: Any, complaint: str) -> None:
    with pytest.raises(PromptError, match=complaint):
        await Renderer(prompt_fn).render({"a": 1})


async def test_no_function_at_all() -> None:
    with pytest.raises(ConfigError, match=r"must be a function.*not int"):
        Renderer(3)  # type: ignore[arg-type] # on purpose
    with pytest.raises(ConfigError, match="no parameter"):
        Renderer("{x}", sampling={"tmp": 1})
    with pytest.raises(ConfigError, match="pydantic"):
        Renderer("{x}", schema=NotAModel)  # type: ignore[arg-type] # on purpose
