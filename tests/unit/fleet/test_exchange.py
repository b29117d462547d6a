"""What names an exchange, what its factory carries along, and when a client tries again."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import pickle
import uuid
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from academy.agent import Agent
from academy.exception import BadEntityIdError, MailboxTerminatedError
from academy.exchange import (
    HttpExchangeFactory,
    HybridExchangeFactory,
    LocalExchangeFactory,
    RedisExchangeFactory,
)
from academy.exchange.client_config import ExchangeClientConfig
from academy.identifier import AgentId, UserId
from academy.message import CancelRequest, Header, Message, PingRequest
from academy.serialize import SerializationStrategy, allowed_deserializers, default_serializer
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.errors import ConfigError
from scaleinfer.fleet import _resilient
from scaleinfer.fleet._http_link import Registration
from scaleinfer.fleet._keepalive import keepalive_options
from scaleinfer.fleet._resilient import ExchangeAway, ResilientFactory, ResilientTransport, persist
from scaleinfer.fleet.exchange import (
    PASSWORD_VARIABLE,
    check_exchange,
    exchange_factory,
    exchange_name,
    exchange_spec,
    json_only,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from academy.exchange import ExchangeFactory

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)


def resilient(spec: str | ExchangeFactory[Any]) -> ResilientFactory:
    made = exchange_factory(spec)
    assert isinstance(made, ResilientFactory)
    return made


# What names an exchange.

TEXTS = {
    "redis://node-1:6380": "redis://node-1:6380",
    "redis://node-1": "redis://node-1:6379",
    "redis://:s3cret@node-1:6380/2": "redis://node-1:6380",
    "rediss://user:s3cret@node-1:6380": "rediss://node-1:6380",
    "hybrid://:s3cret@node-1:6380?interface=hsn0": "hybrid://node-1:6380",
    "http://node-1:8700": "http://node-1:8700",
    "http://[::1]:8700": "http://[::1]:8700",
    "https://exchange.example.org/v1/": "https://exchange.example.org/v1",
    "https://:s3cret@exchange.example.org": "https://exchange.example.org",
}


@pytest.mark.parametrize("spec", TEXTS)
def test_a_text_makes_a_factory_that_gives_it_back(spec: str) -> None:
    made = exchange_factory(spec)
    assert exchange_spec(made) == spec
    assert exchange_name(made) == TEXTS[spec]
    assert "s3cret" not in repr(made)
    copy = pickle.loads(pickle.dumps(made))
    assert exchange_spec(copy) == spec
    assert repr(copy) == repr(made)
    assert copy.config == made.config


def test_what_a_url_says_reaches_redis() -> None:
    info = resilient("rediss://me:p%40ss@node-1:6380/2").inner.redis_info  # type: ignore[attr-defined] # a Redis factory
    assert (info.hostname, info.port) == ("node-1", 6380)
    wanted = {"username": "me", "password": "p@ss", "db": 2, "ssl": True, "socket_timeout": None}
    assert wanted.items() <= info.kwargs.items()
    assert info.kwargs["socket_keepalive_options"] == keepalive_options()


def test_what_a_url_says_reaches_http() -> None:
    info = resilient("https://:t0ken@host:8700").inner._info  # type: ignore[attr-defined] # an HTTP factory
    assert info.additional_headers == {"Authorization": "Bearer t0ken"}
    assert info.url == "https://host:8700"


@pytest.mark.parametrize("scheme", ["redis", "hybrid"])
def test_a_password_from_the_environment_stays_out_of_the_text(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, "s3cret")
    made = resilient(f"{scheme}://host:1")
    info = made.inner.redis_info if scheme == "redis" else made.inner._redis_info  # type: ignore[attr-defined] # as above
    assert info.kwargs["password"] == "s3cret"
    assert exchange_spec(made) == f"{scheme}://host:1"
    given = resilient("redis://:other@host:1").inner.redis_info  # type: ignore[attr-defined] # as above
    assert given.kwargs["password"] == "other"


WRONG = [
    "",
    "globus",
    "redis",
    "redis:host:1",
    "redis://",
    "redis://:s3cret@host:port",
    "redis://:s3/cret@host:6379",
    "redis://:s3cret@host:99999",
    "redis://:s3cret@host/name",
    "redis://:s3cret@host?ssl=yes",
    "memcached://:s3cret@host:1",
    "http://:s3cret@host:1/?a=b",
    "hybrid://:s3cret@host:1?port=2",
]


@pytest.mark.parametrize("spec", WRONG)
def test_anything_else_is_refused_with_what_is_known(spec: str) -> None:
    with pytest.raises(ConfigError, match="no exchange") as refused:
        exchange_factory(spec)
    assert "Known are: redis://" in str(refused.value)
    assert "s3" not in str(refused.value)


@given(st.text(max_size=30))
def test_no_text_raises_anything_else(rest: str) -> None:
    for scheme in ("redis://", "http://", "hybrid://", ""):
        spec = scheme + rest
        if spec == "academy":
            continue
        try:
            exchange_factory(spec)
        except ConfigError:
            continue


def test_the_hosted_exchange_asks_for_a_login_where_nobody_can_type(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("ACADEMY_HOME", str(tmp_path))
    monkeypatch.delenv("ACADEMY_GLOBUS_CLIENT_ID", raising=False)
    monkeypatch.delenv("ACADEMY_GLOBUS_CLIENT_SECRET", raising=False)
    with pytest.raises(ConfigError, match="Globus login") as refused:
        exchange_factory("academy")
    assert "ACADEMY_GLOBUS_CLIENT_ID" in refused.value.hint
    del refused
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()  # Academy never closes its token database


# Factories given as objects.


def test_a_factory_of_academys_is_made_resilient() -> None:
    own = ExchangeClientConfig(heartbeat_interval=7)
    redis = resilient(RedisExchangeFactory("host", 1, password="s3cret", config=own))
    assert redis.inner.redis_info.kwargs["socket_timeout"] is None  # type: ignore[attr-defined] # as above
    assert redis.inner.redis_info.kwargs["password"] == "s3cret"  # type: ignore[attr-defined] # as above
    assert redis.config == own
    limited = resilient(RedisExchangeFactory("host", 1, socket_timeout=9))
    assert limited.inner.redis_info.kwargs["socket_timeout"] == 9  # type: ignore[attr-defined] # as above
    http = resilient(HttpExchangeFactory("http://host:1", additional_headers={"a": "b"}))
    assert http.inner._info.additional_headers == {"a": "b"}  # type: ignore[attr-defined] # as above
    hybrid = resilient(HybridExchangeFactory("host", 1, namespace="mine"))
    assert hybrid.inner._namespace == "mine"  # type: ignore[attr-defined] # as above
    for made in (redis, limited, http, hybrid):
        assert exchange_spec(made) is None
        assert made.config is not None
        assert "s3cret" not in repr(made)


def test_any_other_factory_is_returned_as_it_is() -> None:
    class Mine(RedisExchangeFactory):
        pass

    for given_one in (LocalExchangeFactory(), Mine("host", 1), resilient("redis://host:1")):
        assert exchange_factory(given_one) is given_one
    with pytest.raises(ConfigError, match="int is no exchange"):
        exchange_factory(3)  # type: ignore[arg-type] # the mistake in question


async def test_the_local_exchange_is_this_processs_own() -> None:
    made = exchange_factory("local", heartbeat_s=3, missed=4)
    assert exchange_spec(made) is None
    assert made.config == ExchangeClientConfig(heartbeat_interval=3, stale_heartbeat_threshold=4)
    await check_exchange(made)


def test_json_only_ends_with_its_block() -> None:
    before = allowed_deserializers.get(), default_serializer.get()
    with json_only():
        assert allowed_deserializers.get() == {SerializationStrategy.JSON}
        assert default_serializer.get() == SerializationStrategy.JSON
    assert (allowed_deserializers.get(), default_serializer.get()) == before


# When a call is tried again.


async def attempts(errors: list[Exception], *, patience: float = 5.0) -> int:
    """Return how many attempts it took to get through these errors."""
    made = 0

    async def call() -> int:
        nonlocal made
        made += 1
        if errors:
            raise errors.pop(0)
        return made

    return await persist(
        call, worth_another_try=lambda error: isinstance(error, OSError), patience=patience
    )


async def test_a_call_is_tried_again_while_the_exchange_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_resilient, "_FIRST_PAUSE_S", 0)
    assert await attempts([]) == 1
    assert await attempts([ConnectionResetError(), TimeoutError()]) == 3


async def test_a_refusal_is_not_tried_again() -> None:
    left: list[Exception] = [ConnectionResetError(), ValueError("no"), OSError()]
    with pytest.raises(ValueError, match="no"):
        await attempts(left)
    assert len(left) == 1


async def test_patience_ends_with_the_last_error() -> None:
    many: list[Exception] = [ConnectionResetError("gone")] * 1000
    with pytest.raises(ExchangeAway, match=r"ConnectionResetError: gone") as failed:
        await attempts(many, patience=0.05)
    assert isinstance(failed.value.__cause__, ConnectionResetError)


async def test_an_attempt_that_hangs_ends_with_the_patience() -> None:
    with pytest.raises(ExchangeAway, match=r"away for 0\.01 s"):
        await persist(asyncio.Event().wait, worth_another_try=lambda _: True, patience=0.01)


async def test_a_cancelled_call_stays_cancelled() -> None:
    task = asyncio.create_task(
        persist(asyncio.Event().wait, worth_another_try=lambda _: True, patience=5)
    )
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# What a transport does with a link that breaks.

ME, PEER = UserId.new(), AgentId[Agent].new()


def ping(src: Any = PEER) -> Message[Any]:
    return Message.create(src=src, dest=ME, body=PingRequest(kind="ping-request"))


class Scripted:
    """A link that does what it is told: a message is yielded, an error raised."""

    def __init__(self, *script: Message[Any] | Exception) -> None:
        self.script = list(script)
        self.restored = 0
        self.sent: list[Message[Any]] = []
        self.mailbox_id = ME

    def is_away(self, error: BaseException) -> bool:
        return isinstance(error, OSError)

    def _raise_next(self) -> None:
        if self.script and isinstance(self.script[0], Exception):
            raise self.script.pop(0)  # type: ignore[misc] # looked at in the line above

    async def restore_mailbox(self) -> None:
        self._raise_next()
        self.restored += 1

    async def listen(self, timeout: float | None = None) -> AsyncGenerator[Message[Any]]:
        while self.script:
            self._raise_next()
            yield self.script.pop(0)  # type: ignore[misc] # no error: it would have been raised
        raise MailboxTerminatedError(ME)

    async def send(self, message: Message[Any]) -> None:
        self._raise_next()
        self.sent.append(message)

    async def update_heartbeat(self) -> None:
        self._raise_next()

    async def terminate(self, uid: Any) -> None:
        self._raise_next()

    async def heartbeat_status(self, uid: Any) -> float | None:
        self._raise_next()
        return 1.0

    async def close(self) -> None: ...

    def factory(self) -> Any: ...

    async def discover(self, agent: Any, *, allow_subclasses: bool = True) -> Any: ...

    async def register_agent(self, agent: Any, *, name: str | None = None) -> Any: ...

    async def agent_stats(self, uid: Any) -> Any: ...


def over(link: Scripted, patience: float = 5.0) -> ResilientTransport:
    return ResilientTransport(link, patience=patience, spec=None)


async def heard(link: Scripted) -> list[Message[Any]]:
    got = []
    with contextlib.suppress(MailboxTerminatedError):
        async for message in over(link).listen():
            got.append(message)  # noqa: PERF401 - what came before the error counts
    return got


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_resilient, "_FIRST_PAUSE_S", 0)


@pytest.mark.usefixtures("at_once")
async def test_a_listener_reconnects_and_restores_its_mailbox() -> None:
    first, second, third = ping(), ping(), ping()
    link = Scripted(first, OSError(), OSError(), second, BadEntityIdError(ME), third)
    assert await heard(link) == [first, second, third]
    assert link.restored == 2


@pytest.mark.usefixtures("at_once")
async def test_a_listener_drops_what_it_has_seen() -> None:
    one = ping()
    answer = Message(header=Header(**(dict(one.header) | {"kind": "response"})), body=one.body)
    assert await heard(Scripted(one, one, answer, OSError(), one)) == [one, answer]


@pytest.mark.usefixtures("at_once")
async def test_a_listener_drops_what_is_no_body() -> None:
    good = ping()
    bad: Message[Any] = Message.model_validate(
        {"header": good.header, "body": {"kind": "nonsense"}}
    )
    bad.header = Header(**(dict(bad.header) | {"tag": uuid.uuid4()}))
    assert await heard(Scripted(bad, good)) == [good]


async def test_a_refusal_ends_a_listener() -> None:
    listening = over(Scripted(ValueError("no"))).listen()
    with pytest.raises(ValueError, match="no"):
        await anext(listening)


@pytest.mark.usefixtures("at_once")
async def test_sending_waits_for_the_peer_to_return() -> None:
    link = Scripted(OSError(), BadEntityIdError(PEER), BadEntityIdError(PEER))
    await over(link).send(ping())
    assert len(link.sent) == 1
    gone = Scripted(*[BadEntityIdError(PEER)] * 1000)
    with pytest.raises(BadEntityIdError):
        await over(gone, patience=0.02).send(ping())


async def test_giving_up_a_call_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_resilient, "_CANCEL_PATIENCE_S", 0.01)
    body = CancelRequest(kind="cancel-request", target_tag=uuid.uuid4())
    cancel: Message[Any] = Message.create(src=ME, dest=PEER, body=body)
    away = Scripted(*[OSError()] * 1000)
    await over(away, patience=60).send(cancel)
    assert not away.sent


async def test_background_work_outlives_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_resilient, "_HEARTBEAT_PATIENCE_S", 0.01)
    monkeypatch.setattr(_resilient, "_TERMINATE_PATIENCE_S", 0.01)
    away = over(Scripted(*[OSError()] * 1000), patience=0.01)
    await away.update_heartbeat()
    await away.terminate(ME)
    assert await away.heartbeat_status(PEER) is None


async def test_nothing_is_tried_again_after_closing() -> None:
    link = Scripted(OSError("gone"))
    transport = over(link)
    await transport.close()
    with pytest.raises(OSError, match="gone"):
        await transport.send(ping())


def test_a_registration_travels_to_another_process() -> None:
    registration = Registration(
        agent_id=AgentId.new(name="worker"), exchange_type="http", lineage="a,b"
    )
    assert pickle.loads(pickle.dumps(registration)) == registration
