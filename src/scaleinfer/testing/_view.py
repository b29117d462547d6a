"""What a script (latency, answer, fault) sees of a request."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["SECRET_HEADERS", "RequestView", "count_tokens", "find_prompts", "text_of"]

SECRET_HEADERS = frozenset(
    {"authorization", "proxy-authorization", "api-key", "x-api-key", "cookie"}
)
"""Headers whose values never leave the connection they came on."""

CHARACTERS_PER_TOKEN = 4


def count_tokens(text: str) -> int:
    """Return the simulated number of tokens: one for every four characters begun."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)


class RequestView:
    """One request for a completion, as `latency=`, `answer=` and `match=` callables get it.

    Attributes:
        path: `/v1/chat/completions`, `/v1/completions` or `/v1/embeddings`.
        body: The request's JSON.
        prompts: The prompt, or text to be embedded; several if a list came.
        attempt: 1 if this prompt is asked for the first time.
        elapsed: Seconds since the server's first request.
        headers: Names in lower case; secrets (`Authorization`, ...) are left out.
        choice: Which of `n` choices, from 0, or which of several prompts, is asked of `answer=`.
        text: The prompt that `answer=` is to answer: `prompts[0]` but for packed requests.
        messages: The chat messages; empty for a plain completion.
        model: The model that was asked for; empty if none was named.
        chat: True for a chat completion.
        embedding: True for texts to be embedded.
        stream: True if the answer is to come as server-sent events.
    """

    __slots__ = (
        "attempt", "body", "chat", "choice", "elapsed", "embedding", "headers", "messages", "model",
        "path", "prompts", "stream", "text",
    )  # fmt: skip

    def __init__(
        self,
        path: str,
        body: dict[str, Any],
        prompts: tuple[str, ...] = ("",),
        *,
        attempt: int = 1,
        elapsed: float = 0.0,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.path = path
        self.body = body
        self.prompts = prompts
        self.attempt = attempt
        self.elapsed = elapsed
        self.headers = headers
        self.choice = 0
        self.text = ""
        self.chat = path == "/v1/chat/completions"
        self.embedding = path == "/v1/embeddings"
        self.messages: list[dict[str, Any]] = _messages_of(body) if self.chat else []
        self.model = str(body.get("model") or "")
        self.stream = bool(body.get("stream")) and not self.embedding

    @property
    def prompt(self) -> str:
        """The prompt this request is filed under in the ledger (the first of several)."""
        return self.prompts[0]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all messages or prompts, by `count_tokens` for each."""
        if not self.chat:
            return sum(map(count_tokens, self.prompts))
        tokens = 0
        for message in self.messages:
            tokens += count_tokens(text_of(message.get("content")))
        return tokens


def _messages_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the messages that are objects; anything else in the list is passed over."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        return []
    for message in messages:
        if not isinstance(message, dict):
            return [m for m in messages if isinstance(m, dict)]
    return messages


def text_of(content: Any) -> str:
    """Return a message's text: a string as it is, the text parts of a list, else nothing."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return "\n".join(text for text in parts if isinstance(text, str))
    return ""


def find_prompts(view: RequestView, known: Callable[[str], bool]) -> tuple[str, ...]:
    """Return the prompts a request is filed under; never empty.

    A chat is filed under its last user message. If it holds an earlier user message that was
    asked as a prompt before (`known`) and answered in between, the request is a later turn of
    that conversation (a repair, a tool's result) and is filed under that one. Examples
    in a few-shot prompt were never asked, so they do not count as earlier turns.
    """
    if view.chat:
        return (_chat_prompt(view.messages, known),)
    prompt = view.body.get("input" if view.embedding else "prompt", "")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return tuple(map(_plain_prompt, prompt))
    return (_plain_prompt(prompt),)


def _plain_prompt(prompt: Any) -> str:
    """Return a prompt as text; token ids are written out as a list."""
    return prompt if isinstance(prompt, str) else str(prompt)


def _chat_prompt(messages: list[dict[str, Any]], known: Callable[[str], bool]) -> str:
    if len(messages) == 1:
        return text_of(messages[0].get("content"))
    users = [i for i, message in enumerate(messages) if message.get("role") == "user"]
    if not users:
        return "\n".join(text_of(message.get("content")) for message in messages)
    for i in users[:-1]:
        answered = messages[i + 1].get("role") != "user"
        if answered and known(text := text_of(messages[i].get("content"))):
            return text
    return text_of(messages[users[-1]].get("content"))
