"""Real exchanges: restarted under an agent, idle, refused, and fed with pickles."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import subprocess
import sys
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

import psutil
import pytest
import redis.exceptions as redis_errors
import trustme
from academy.agent import Agent, action
from academy.debug import set_academy_debug
from academy.exception import DeserializationMethodProhibitedError
from academy.exchange import MailboxStatus, RedisExchangeFactory
from academy.handle import Handle
from academy.message import ActionRequest, ActionResponse, Message, PingRequest, SuccessResponse
from academy.runtime import Runtime, RuntimeConfig
from academy.serialize import SerializationStrategy
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from tests.services.http_exchange import HttpExchange
from tests.services.redis import Redis, free_port

from scaleinfer.errors import ConfigError
from scaleinfer.fleet._serve_exchange import serve_exchange
from scaleinfer.fleet.exchange import check_exchange, exchange_factory, json_only

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from academy.exchange import ExchangeFactory, UserExchangeClient

pytestmark = pytest.mark.anyio

JSON_CONFIG = RuntimeConfig(
    allowed_deserializers={SerializationStrategy.JSON},
    default_serializer=SerializationStrategy.JSON,
)
PICKLE = SerializationStrategy.PICKLE


class Echo(Agent):
    """Answers with what it was asked, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    @action
    async def echo(self, what: Any) -> Any:
        self.asked += 1
        return what


class Server(Protocol):
    @property
    def url(self) -> str: ...

    async def restart(self, away_s: float) -> None: ...


class Started:
    """A server of `tests.services`, restarted without holding up the loop."""

    def __init__(self, service: Redis | HttpExchange) -> None:
        self.service = service
        self.url = service.url

    async def restart(self, away_s: float) -> None:
        await asyncio.to_thread(self.service.restart, away_s=away_s)


class Ours:
    """An exchange of `serve_exchange`, restarted on the same port with the same token."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._port = free_port()
        self._stack = contextlib.AsyncExitStack()
        self.url = ""

    async def start(self) -> None:
        serving = serve_exchange(log=self._log, port=self._port, token="let-me-in")
        self.url = await self._stack.enter_async_context(serving)

    async def stop(self) -> None:
        await self._stack.aclose()

    async def restart(self, away_s: float) -> None:
        await self.stop()
        await asyncio.sleep(away_s)
        await self.start()


@asynccontextmanager
async def serving(kind: str, folder: Path) -> AsyncIterator[Server]:
    if kind == "ours":
        ours = Ours(folder / "exchange.log")
        await ours.start()
        try:
            yield ours
        finally:
            await ours.stop()
    elif kind == "http":
        with HttpExchange(folder) as http:
            yield Started(http)
    else:
        with Redis(folder, keep=kind == "redis") as redis:
            server = Started(redis)
            if kind == "hybrid":
                server.url = redis.url.replace("redis:", "hybrid:")
            yield server


@asynccontextmanager
async def echoing(
    factory: ExchangeFactory[Any],
) -> AsyncIterator[tuple[UserExchangeClient[Any], Handle[Echo], Runtime[Echo]]]:
    async with await factory.create_user_client(name="test") as client:
        registration = await client.register_agent(Echo, name="echo")
        runtime = Runtime(
            Echo(), exchange_factory=factory, registration=registration, config=JSON_CONFIG
        )
        async with runtime:
            handle = Handle(registration.agent_id, exchange=client, ignore_context=True)
            yield client, handle, runtime


async def answered(handle: Handle[Echo], within_s: float) -> None:
    """Call until an answer comes; a message lost on the way costs one short wait."""
    async with asyncio.timeout(within_s):
        while True:
            with contextlib.suppress(TimeoutError), json_only():
                word = uuid.uuid4().hex
                assert await asyncio.wait_for(handle.echo(word), 2) == word
                return


async def known(client: UserExchangeClient[Any], handle: Handle[Echo]) -> bool:
    """Tell whether the exchange knows the agent's class and that it is alive."""
    found = await client.discover(Echo)
    status = await client.status(handle.agent_id)
    return found == (handle.agent_id,) and status == MailboxStatus.ACTIVE


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have mailboxes looked at often."""
    monkeypatch.setattr("scaleinfer.fleet._redis_link._POLL_S", 0.3)


@pytest.fixture(scope="module")
def ours() -> Iterator[str]:
    """An exchange of ours for the tests that leave it running, started by its command."""
    command = [sys.executable, "-m", "scaleinfer.fleet._serve_exchange"]
    started = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"SCALEINFER_EXCHANGE_TOKEN": "correct-horse"},
    )
    assert started.stdin is not None
    assert started.stdout is not None
    yield started.stdout.readline().strip().replace("exchange at ", "http://:correct-horse@")
    started.stdin.close()
    assert started.wait(10) == 0
    started.stdout.close()


@pytest.fixture(params=["redis", "ours"])
def url(request: pytest.FixtureRequest, tmp_path: Path, ours: str) -> Iterator[str]:
    if request.param == "ours":
        yield ours
    else:
        with Redis(tmp_path) as redis:
            yield redis.url


@pytest.fixture
def strict() -> Iterator[None]:
    """Have Academy end the process when one of its background tasks fails."""
    set_academy_debug()
    yield
    set_academy_debug(False)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("kind", ["redis", "emptied redis", "hybrid", "http", "ours"])
async def test_an_agent_and_its_user_outlive_a_restart(kind: str, tmp_path: Path) -> None:
    async with serving(kind, tmp_path) as server:
        factory = exchange_factory(server.url, heartbeat_s=0.5)
        await check_exchange(factory)
        async with echoing(factory) as (client, handle, runtime):
            await answered(handle, 10)
            # Calls and heartbeats go on while it is away.
            calling = asyncio.create_task(answered(handle, 15))
            await server.restart(1.0)
            await calling
            await answered(handle, 10)
            assert not runtime._shutdown_event.is_set()
            async with asyncio.timeout(5):
                while not await known(client, handle):  # noqa: ASYNC110 - another process tells
                    await asyncio.sleep(0.05)
            # Another user finds it too, with what a transport says of its exchange.
            async with await client.factory().create_user_client() as other:
                await answered(Handle(handle.agent_id, exchange=other, ignore_context=True), 5)


async def test_a_client_closes_while_its_exchange_is_gone(tmp_path: Path) -> None:
    with Redis(tmp_path) as redis:
        factory = exchange_factory(redis.url, heartbeat_s=0.2, patience_s=0.5)
        async with echoing(factory) as (_, handle, _):
            await answered(handle, 10)
            redis.kill()
            with pytest.raises(Exception, match="the exchange was away for"), json_only():
                await handle.echo("lost")


async def test_a_message_sent_twice_is_read_once(tmp_path: Path, quick: None) -> None:
    with Redis(tmp_path) as redis:
        factory = exchange_factory(redis.url)
        async with echoing(factory) as (client, handle, runtime):
            body = ActionRequest(
                kind="action-request",
                action="echo",
                pargs=("x",),
                serialization=SerializationStrategy.JSON,
            )
            request: Message[Any] = Message.create(
                src=client.client_id, dest=handle.agent_id, body=body, label=uuid.uuid4()
            )
            for _ in range(2):
                await client.send(request)
            # The second of two answers to one question would end Academy's listener.
            ping = Message.create(
                src=client.client_id,
                dest=handle.agent_id,
                body=PingRequest(kind="ping-request"),
                label=handle.handle_id,
            )
            handle._pending_response_futures[ping.tag] = asyncio.get_running_loop().create_future()
            answer = ping.create_response(SuccessResponse(kind="success-response"))
            for _ in range(2):
                await client.send(answer)
            await answered(handle, 5)
            assert runtime.agent.asked == 2


async def test_what_is_no_message_is_dropped(tmp_path: Path, quick: None) -> None:
    with Redis(tmp_path) as redis:
        async with echoing(exchange_factory(redis.url)) as (_, handle, runtime):
            queue = f"queue:{handle.agent_id.uid}"
            for nonsense in ("nonsense", "{}", pickle.dumps({}, 0).decode()):
                redis.command("rpush", queue, nonsense)
            await answered(handle, 5)
            assert not runtime._shutdown_event.is_set()


@pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning")
async def test_an_idle_agent_lives_on(tmp_path: Path) -> None:
    with Redis(tmp_path) as redis:
        # redis-py's own 5 s made short: the read that waits for a message ends, and the agent
        # with it.
        plain = RedisExchangeFactory(
            "127.0.0.1", redis.port, socket_timeout=0.1, retry=Retry(NoBackoff(), 3)
        )
        async with await plain.create_user_client(start_listener=False) as client:
            with pytest.raises(redis_errors.TimeoutError):
                await asyncio.wait_for(anext(client._transport.listen()), 10)
        # With ours nothing is set that could end it, and it reads for longer than that.
        async with echoing(exchange_factory(redis.url)) as (_, handle, runtime):
            connection = runtime._exchange_client._transport._link._client.connection_pool  # type: ignore[union-attr] # it runs
            assert connection.connection_kwargs["socket_timeout"] is None
            await asyncio.sleep(6)
            await answered(handle, 5)


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self.path),)


async def test_a_pickle_is_refused_and_never_unpickled(url: str, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    pickle.loads(pickle.dumps(Evil(touched)))
    touched.unlink()  # so much for what it would do
    async with echoing(exchange_factory(url)) as (client, handle, runtime):
        pickling = Handle(
            handle.agent_id, exchange=client, ignore_context=True, request_serializer=PICKLE
        )
        with pytest.raises(DeserializationMethodProhibitedError):
            await asyncio.wait_for(pickling.echo(Evil(touched)), 10)
        assert runtime.agent.asked == 0
        assert not touched.exists()


class Liar(Agent):
    """Never runs: what sits in its mailbox is answered by the test."""

    @action
    async def echo(self, what: Any) -> Any: ...


async def test_a_pickled_answer_is_never_unpickled(url: str, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    async with await exchange_factory(url).create_user_client() as client:
        registration = await client.register_agent(Liar)

        async def lie(request: Message[Any]) -> None:
            body = ActionResponse(
                kind="action-response", result=Evil(touched), serialization=PICKLE
            )
            await agent.send(request.create_response(body))

        agent = await client.factory().create_agent_client(registration, lie)
        listening = asyncio.create_task(agent._listen_for_messages())
        handle: Handle[Liar] = Handle(registration.agent_id, exchange=client, ignore_context=True)
        with json_only(), pytest.raises(DeserializationMethodProhibitedError):
            await asyncio.wait_for(handle.echo("x"), 10)
        assert not touched.exists()
        # Without it Academy does unpickle, which is why it is there.
        await asyncio.wait_for(handle.echo("x"), 10)
        assert touched.exists()
        listening.cancel()
        await listening
        await agent.close()


async def test_redis_says_why_it_cannot_be_used(tmp_path: Path) -> None:
    with Redis(tmp_path, password="correct-horse") as redis:
        await check_exchange(exchange_factory(redis.url))
        wrong = redis.url.replace("correct", "battery")
        with pytest.raises(ConfigError, match="refused the password") as refused:
            await check_exchange(exchange_factory(wrong))
        assert "horse" not in str(refused.value)
        assert f"redis://127.0.0.1:{redis.port}" in str(refused.value)
        without = f"redis://127.0.0.1:{redis.port}"
        with pytest.raises(ConfigError, match="asks for a password"):
            await check_exchange(exchange_factory(without))
        with pytest.raises(ConfigError, match="cannot be used"):
            await check_exchange(exchange_factory(without.replace("redis:", "http:")))


async def test_a_password_may_stay_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALEINFER_EXCHANGE_PASSWORD", "correct-horse")
    with Redis(tmp_path, password="correct-horse") as redis:
        await check_exchange(exchange_factory(f"redis://127.0.0.1:{redis.port}"))


async def test_our_exchange_wants_its_token(ours: str) -> None:
    await check_exchange(exchange_factory(ours))
    without = ours.replace(":correct-horse@", "")
    with pytest.raises(ConfigError, match=f"{without} cannot be used: it asks for a token"):
        await check_exchange(exchange_factory(without))
    with pytest.raises(ConfigError, match="it refused the token") as refused:
        await check_exchange(exchange_factory(ours.replace("correct", "battery")))
    assert "horse" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"no exchange answered \(404\)"):
        await check_exchange(exchange_factory(f"{ours}/elsewhere"))
    with pytest.raises(ConfigError, match="cannot be used"):
        await check_exchange(exchange_factory(without.replace("http:", "redis:")))


async def test_an_exchange_that_does_not_start_says_why(tmp_path: Path, ours: str) -> None:
    port = int(ours.rpartition(":")[2])
    with pytest.raises(ConfigError, match="Address already in use") as failed:
        async with serve_exchange(log=tmp_path / "log", port=port):
            pass
    assert str(tmp_path / "log") in str(failed.value)


@pytest.mark.parametrize("scheme", ["redis", "http", "hybrid"])
async def test_nobody_listens(scheme: str) -> None:
    where = f"{scheme}://127.0.0.1:{free_port()}"
    with pytest.raises(ConfigError, match=f"{where} cannot be used: nobody listens there"):
        await check_exchange(exchange_factory(where))


@pytest.mark.parametrize("scheme", ["redis", "https"])
async def test_no_such_host(scheme: str) -> None:
    where = f"{scheme}://nowhere.invalid:1234"
    with pytest.raises(ConfigError, match=f"{where} cannot be used: there is no such host"):
        await check_exchange(exchange_factory(where))


@pytest.mark.parametrize("scheme", ["rediss", "https"])
async def test_a_certificate_that_does_not_verify(scheme: str, tmp_path: Path) -> None:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConfigError, match="its TLS certificate does not verify"):
            await check_exchange(exchange_factory(f"{scheme}://localhost:{port}"))


async def test_large_messages_pass(ours: str) -> None:
    text = 'é"\\' * 20_000  # the most that escaping can make of 60,000 characters
    plain = "x" * 500_000
    async with echoing(exchange_factory(ours)) as (_, handle, _):
        with json_only():
            assert await asyncio.wait_for(handle.echo(text), 10) == text
            assert await asyncio.wait_for(handle.echo(plain), 10) == plain


PARENT = """
import asyncio, os, sys, time
from scaleinfer.fleet._serve_exchange import serve_exchange

async def main():
    async with serve_exchange(log=sys.argv[1]) as url:
        if os.fork() == 0:  # a fork holds the pipe open, as a pool's workers do
            time.sleep(30)
            os._exit(0)
        print(url, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PARENT, str(tmp_path / "log")]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    yield started
    for child in psutil.Process(started.pid).children() if started.poll() is None else []:
        child.kill()
    started.kill()
    started.communicate()


def test_the_exchange_ends_with_its_killed_parent(parent: subprocess.Popen[str]) -> None:
    assert parent.stdout is not None
    assert parent.stdout.readline().startswith("http://:")
    children = psutil.Process(parent.pid).children()
    exchange = next(one for one in children if "scaleinfer.fleet._serve_exchange" in one.cmdline())
    parent.send_signal(signal.SIGKILL)
    gone, left = psutil.wait_procs([exchange], timeout=10)
    assert gone
    assert not left
    for fork in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            fork.kill()
