"""The embedded model's server, asked by the OpenAI SDK and over bare sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel

from scaleinfer.backends.local import LocalBackend
from scaleinfer.backends.serve import LocalServer
from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

MODEL = "SmolLM2-135M-Instruct"
FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]


class Verdict(BaseModel):
    solubility: Literal["low", "high"]
    rings: int


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - the engine's threads set no event of this loop
        await asyncio.sleep(0.01)


@pytest.fixture
async def server(local_engine: Path) -> AsyncIterator[LocalServer]:
    async with LocalServer(LocalBackend(local_engine)) as running:
        yield running


@pytest.fixture
async def client(server: LocalServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


async def test_chat_and_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == [MODEL]
    assert (await client.models.retrieve(MODEL)).id == MODEL
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("other")
    answers = await asyncio.gather(
        *(
            client.chat.completions.create(model=MODEL, messages=FRANCE, max_tokens=12)
            for _ in range(6)
        )
    )
    for answer in answers:
        assert "Paris" in (answer.choices[0].message.content or "")
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == 37
        assert answer.usage.total_tokens == 37 + answer.usage.completion_tokens


async def test_streaming_gives_the_same_text(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model=MODEL, messages=FRANCE, max_tokens=12)
    stream = await client.chat.completions.create(
        model=MODEL, messages=FRANCE, max_tokens=12, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert sum(bool(c.choices and c.choices[0].delta.content) for c in chunks) > 3
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage == whole.usage


async def test_schema_choices_and_completions(client: openai.AsyncOpenAI) -> None:
    parsed = await client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "Judge ethanol."}],
        response_format=Verdict,
    )
    assert isinstance(parsed.choices[0].message.parsed, Verdict)
    several = await client.chat.completions.create(
        model=MODEL, messages=FRANCE, n=2, temperature=1.0, max_tokens=4, logprobs=True
    )
    assert [choice.index for choice in several.choices] == [0, 1]
    assert several.choices[1].logprobs is not None
    plain = await client.completions.create(model=MODEL, prompt="One, two,", max_tokens=4)
    assert plain.choices[0].text
    stream = await client.completions.create(
        model=MODEL, prompt="One, two,", max_tokens=4, stream=True
    )
    assert "".join([c.choices[0].text async for c in stream]) == plain.choices[0].text


async def test_errors_are_openai_shaped(client: openai.AsyncOpenAI, server: LocalServer) -> None:
    with pytest.raises(openai.NotFoundError, match=MODEL):
        await client.chat.completions.create(model="gpt-x", messages=FRANCE)
    with pytest.raises(openai.BadRequestError, match="pattern"):
        await client.chat.completions.create(
            model=MODEL, messages=FRANCE, stream=True,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "string", "pattern": "a"}},
            },
        )  # fmt: skip
    with pytest.raises(openai.BadRequestError, match="temperature"):
        await client.chat.completions.create(model=MODEL, messages=FRANCE, temperature=-1)
    async with httpx.AsyncClient(base_url=server.url) as http:
        for path, body, status in (
            ("/chat/completions", b"{", 400),
            ("/chat/completions", b"[]", 400),
            ("/chat/completions", b"{}", 400),
            ("/completions", b'{"prompt": [1, 2]}', 400),
            ("/completions", b'{"prompt": "x", "temperature": "hot"}', 400),
            ("/completions", b'{"prompt": "x", "n": "many"}', 400),
        ):
            answer = await http.post(path, content=body)
            assert answer.status_code == status, body
            assert answer.json()["error"]["message"], body


async def test_client_that_goes_away_ends_its_call(server: LocalServer, local_engine: Path) -> None:
    engine = await LocalBackend(local_engine).engine()
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    for stream in (False, True):
        body = json.dumps({"prompt": "x", "max_tokens": 4000, "ignore_eos": True, "stream": stream})
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write((head + body).encode())
        await writer.drain()
        await until(lambda: engine._active)
        if stream:
            await reader.readuntil(b"data: ")
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        async with asyncio.timeout(5):
            await until(lambda: not engine._active)


async def test_taken_port_has_words(server: LocalServer, local_engine: Path) -> None:
    port = int(server.url.removesuffix("/v1").rsplit(":", 1)[1])
    with pytest.raises(ConfigError, match="Cannot listen"):
        await LocalServer(LocalBackend(local_engine), port=port).open()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_process_serves_and_stops(local_model: Path, number: signal.Signals) -> None:
    code = "from scaleinfer.backends.serve import run_server; run_server()"
    environment = os.environ | {"SCALEINFER_DATA": str(local_model.parent.parent)}
    environment.pop("SCALEINFER_LOCAL_MODEL", None)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, env=environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 100)).decode()
        url = line.split()[-1]
        assert url.startswith("http://127.0.0.1:")
        async with httpx.AsyncClient(base_url=url) as http:
            health = await http.get(url.removesuffix("/v1") + "/health")
            assert health.json() == {"status": "ok"}
            long = {"prompt": "x", "max_tokens": 4000, "ignore_eos": True}
            call = asyncio.create_task(http.post("/completions", json=long, timeout=100))
            await asyncio.sleep(0.3)
            process.send_signal(number)
            with contextlib.suppress(httpx.HTTPError):
                assert (await call).status_code == 503
        _, errors = await asyncio.wait_for(process.communicate(), 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert errors == b""
