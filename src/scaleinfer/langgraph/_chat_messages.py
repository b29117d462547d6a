"""Answers as LangChain's messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.output_parsers.openai_tools import make_invalid_tool_call, parse_tool_call
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import BaseModel

if TYPE_CHECKING:
    from scaleinfer.results import Result

__all__ = ["chat_result", "last_chunk"]


def chat_result(result: Result) -> ChatResult:
    """Return an answer with a generation for each of its choices."""
    texts = result.choices or [result.text or ""]
    messages = [_message(result, text) for text in texts]
    return ChatResult(
        generations=[ChatGeneration(message=message) for message in messages],
        llm_output={"model_name": result.model},
    )


def _message(result: Result, text: str) -> AIMessage:
    calls, invalid = [], []
    for call in result.tool_calls or ():
        try:
            parsed = parse_tool_call(call, return_id=True)
        except Exception as error:
            invalid.append(make_invalid_tool_call(call, str(error)))
        else:
            calls.append(parsed)
    usage = result.usage
    message = AIMessage(
        content=text,
        tool_calls=calls,
        invalid_tool_calls=invalid,
        usage_metadata={
            "input_tokens": usage.prompt_tokens,
            "output_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "input_token_details": {"cache_read": usage.cached_tokens},
        },
        response_metadata={
            "model_name": result.model,
            "finish_reason": result.finish_reason,
            "endpoint": result.endpoint,
            "attempts": result.attempts,
            "cost_usd": result.cost_usd,
            "resumed": result.resumed,
        }
        | ({} if result.logprobs is None else {"logprobs": result.logprobs}),
    )
    if isinstance(result.value, BaseModel):
        message.additional_kwargs["parsed"] = result.value
    return message


def last_chunk(result: Result, text: str) -> ChatGenerationChunk:
    """Return the end of a streamed answer: usage, tool calls, and `text` not streamed yet."""
    whole = _message(result, text)
    calls = [
        tool_call_chunk(
            name=call["name"],
            args=orjson.dumps(call["args"]).decode(),
            id=call["id"],
            index=number,
        )
        for number, call in enumerate(whole.tool_calls)
    ]
    return ChatGenerationChunk(
        message=AIMessageChunk(
            content=text,
            tool_call_chunks=calls,
            usage_metadata=whole.usage_metadata,
            response_metadata=whole.response_metadata,
            additional_kwargs=whole.additional_kwargs,
            chunk_position="last",
        )
    )
