"""How OpenAI-compatible servers answer: a 200 response becomes a `Completion`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer.backends._dialect import error_in_answer, explained, not_json
from scaleinfer.backends._orca import LOAD_HEADER, parse_load
from scaleinfer.backends._rate_headers import rate_state
from scaleinfer.errors import EndpointError, Permanent, Transient
from scaleinfer.results import Completion, Usage

if TYPE_CHECKING:
    from scaleinfer.backends._wire import WireResponse
    from scaleinfer.results import Load, RateState

__all__ = ["parse_completion", "parse_pack", "reports_of", "share_usage", "usage_of"]

_NO_COMPLETION = (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError)


def parse_completion(response: WireResponse, *, endpoint: str, chat: bool) -> Completion:
    """Return the answer in a 200 response.

    Raises:
        EndpointError: The body is no completion, or one without an answer in it.
    """
    try:
        body = orjson.loads(response.body)
    except orjson.JSONDecodeError:
        raise not_json(response, endpoint) from None
    try:
        choices = body["choices"]
        completion = _completion(choices, chat=chat)
        completion.usage = usage_of(body.get("usage"))
        completion.model = body.get("model")
    except _NO_COMPLETION:
        raise error_in_answer(response, endpoint) or explained(
            Transient, "answered 200 without a completion", response, endpoint
        ) from None
    if completion.finish_reason == "error":
        # What there is of the answer is cut where the provider failed.
        raise error_in_answer(response, endpoint) or explained(
            Transient, "answered 200 with an error", response, endpoint
        )
    completion.load, completion.rate = reports_of(response)
    if completion.text or completion.tool_calls:
        return completion
    error = _why_empty(choices[0], completion, endpoint)
    if error is not None:
        # It was generated, and is paid for.
        error.usage = completion.usage
        raise error
    return completion


def parse_pack(
    response: WireResponse, *, endpoint: str, prompts: list[str], n: int
) -> list[Completion | EndpointError]:
    """Return the answers to several prompts sent in one call, in the prompts' order.

    Choice `n * i + k` is the k-th answer to prompt i (OpenAI's completions API). A prompt
    whose choices are not all there gets an error of its own. The usage, which the server
    counts for the whole call, is shared among the answered prompts so that the sums are the
    call's: prompt tokens by the prompts' lengths, completion tokens by the texts'.

    Args:
        response: A 200 response.
        endpoint: Name of the endpoint, for errors.
        prompts: What was asked.
        n: Choices for each prompt.

    Raises:
        EndpointError: The body is no completion at all.
    """
    try:
        body = orjson.loads(response.body)
    except orjson.JSONDecodeError:
        raise not_json(response, endpoint) from None
    try:
        model, usage = body.get("model"), usage_of(body.get("usage"))
        choices = _by_index(body["choices"])
    except _NO_COMPLETION:
        raise explained(
            Transient, "answered 200 without a completion", response, endpoint
        ) from None
    load, rate = reports_of(response)
    outcomes: list[Completion | EndpointError] = []
    for i in range(len(prompts)):
        outcome = _one_of_pack(choices, range(n * i, n * (i + 1)), response, endpoint)
        if isinstance(outcome, Completion):
            outcome.model, outcome.load, outcome.rate = model, load, rate
        outcomes.append(outcome)
    share_usage(usage, prompts, outcomes)
    return outcomes


def _one_of_pack(
    choices: dict[int, Any], indices: range, response: WireResponse, endpoint: str
) -> Completion | EndpointError:
    try:
        own = [choices[index] for index in indices]
        completion = _completion(own, chat=False)
    except _NO_COMPLETION:
        return Transient(
            f"{endpoint} left out the answer to one of the prompts sent together.",
            endpoint=endpoint,
            status=response.status,
        )
    if completion.text:
        return completion
    return _why_empty(own[0], completion, endpoint) or completion


def _by_index(choices: list[Any]) -> dict[int, Any]:
    if not isinstance(choices, list):
        raise TypeError
    found: dict[int, Any] = {}
    for position, choice in enumerate(choices):
        # The first of two with one number: which of them is right cannot be known.
        found.setdefault(int(choice.get("index", position)), choice)
    return found


def _completion(choices: list[Any], *, chat: bool) -> Completion:
    first = choices[0]
    if chat:
        message = first["message"]
        text = message.get("content")
        tool_calls = message.get("tool_calls") or None
    else:
        text, tool_calls = first["text"], None
    if type(text) is not str:
        text = _joined(text)
    texts = None if len(choices) == 1 else [_text(choice, chat=chat) for choice in choices]
    return Completion(
        text,
        first.get("finish_reason"),
        _ONE_CALL,
        None,
        texts,
        tool_calls,
        first.get("logprobs"),
    )


def _text(choice: dict[str, Any], *, chat: bool) -> str:
    return _joined(choice["message"].get("content") if chat else choice["text"])


def _joined(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    # Some servers send content as parts.
    return "".join(part.get("text", "") for part in content)


_ONE_CALL = Usage(requests=1)


def usage_of(usage: dict[str, Any] | None) -> Usage:
    """Return a body's `usage`."""
    if not usage:
        return _ONE_CALL
    read, written = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    return Usage(
        int(usage.get("prompt_tokens") or 0),
        int(usage.get("completion_tokens") or 0),
        int(read.get("cached_tokens") or 0) if read else 0,
        1,
        int(written.get("reasoning_tokens") or 0) if written else 0,
    )


def reports_of(response: WireResponse) -> tuple[Load | None, RateState | None]:
    """Return what a response's headers say of load and rate limits."""
    headers = response.headers
    report = headers.get(LOAD_HEADER)
    return (None if report is None else parse_load(report)), rate_state(headers)


def _why_empty(
    choice: dict[str, Any], completion: Completion, endpoint: str
) -> EndpointError | None:
    """Return why there is no text, unless the model simply had nothing to say."""
    refusal = (choice.get("message") or {}).get("refusal")
    if refusal or completion.finish_reason == "content_filter":
        why = (
            f"the model refused: {refusal}" if refusal else "a content filter withheld the answer."
        )
        return Permanent(why, endpoint=endpoint, status=200)
    if completion.finish_reason == "length":
        return Permanent(
            "the model used up max_tokens before it began its answer.",
            hint="Raise max_tokens; a reasoning model spends it on thinking first.",
            endpoint=endpoint,
            status=200,
        )
    return None


def share_usage(
    usage: Usage, prompts: list[str], outcomes: list[Completion | EndpointError]
) -> None:
    """Share a call's usage among its answered prompts; the parts add up to it."""
    answered = [
        (prompt, outcome)
        for prompt, outcome in zip(prompts, outcomes, strict=True)
        if isinstance(outcome, Completion)
    ]
    read = [len(prompt) for prompt, _ in answered]
    written = [
        len(outcome.text) if outcome.choices is None else sum(map(len, outcome.choices))
        for _, outcome in answered
    ]
    shares = zip(
        _shared(usage.prompt_tokens, read),
        _shared(usage.completion_tokens, written),
        _shared(usage.cached_tokens, read),
        _shared(usage.requests, [1, *[0] * (len(answered) - 1)]),
        _shared(usage.reasoning_tokens, written),
        strict=False,
    )
    for (_, outcome), share in zip(answered, shares, strict=True):
        outcome.usage = Usage(*share)


def _shared(total: int, weights: list[int]) -> list[int]:
    """Split `total` in proportion to the weights; the parts add up to it."""
    whole = sum(weights)
    if not whole:
        weights, whole = [1] * len(weights), len(weights)
    parts, seen, given = [], 0, 0
    for weight in weights:
        # Rounding the running total, not each part, keeps the sum exact.
        seen += weight
        upto = total * seen // whole
        parts.append(upto - given)
        given = upto
    return parts
