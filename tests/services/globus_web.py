"""A stand-in for the web service of Globus Compute and for Globus Auth, on loopback.

It speaks as much REST as the real `globus_compute_sdk.Executor` and the real
`globus-compute-endpoint` ask for, and carries tasks and results over a real RabbitMQ. It was
written from what those two clients send and expect: it holds the client's side of the contract
and says nothing about Globus's own routing, permissions, quotas or TLS.

    python -m tests.services.globus_web amqp://guest:guest@127.0.0.1:5672/
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
import uuid
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import pika  # type: ignore[import-untyped] # it has no stubs
from aiohttp import web
from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import (
    EPStatusReport,
    Result,
    ResultErrorDetails,
    Task,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pika.adapters.blocking_connection import (  # type: ignore[import-untyped] # no stubs
        BlockingChannel,
    )

# `local_compute_services` of the SDK and of the endpoint fixes host and port.
PORT = 5000
TOKEN = "token-of-the-stand-in"
_WHO = "0f6f8f43-7e7b-4e37-9d0c-0d1f5c1c2b3a"
_NAME = "tester@example.org"
# The resource server that the SDK's scopes belong to.
_SCOPE_OWNER = "facd7ccc-c5f4-42aa-916b-a0e270e2c2a9"
_SHARED = ("results", "heartbeats")

T = TypeVar("T")


class Broker:
    """The one connection to RabbitMQ, used by the one thread that owns it."""

    def __init__(self, url: str, on_message: Callable[[str, bytes], None]) -> None:
        self.url = url
        self._on_message = on_message
        self._connection = pika.BlockingConnection(pika.URLParameters(f"{url}?heartbeat=0"))
        self._channel = self._connection.channel()
        for name in _SHARED:
            self._channel.exchange_declare(name, "topic", durable=True)
            self._channel.queue_declare(name, durable=True)
            self._channel.queue_bind(name, name, "#")
            self._channel.basic_consume(name, self._received)
        threading.Thread(target=self._channel.start_consuming, daemon=True).start()

    def _received(self, channel: BlockingChannel, deliver: Any, _props: Any, body: bytes) -> None:
        self._on_message(deliver.exchange, body)
        channel.basic_ack(deliver.delivery_tag)

    async def do(self, what: Callable[[BlockingChannel], T]) -> T:
        """Run `what` in the connection's thread."""
        done: Future[T] = Future()

        def call() -> None:
            try:
                done.set_result(what(self._channel))
            except Exception as error:
                done.set_exception(error)

        self._connection.add_callback_threadsafe(call)
        return await asyncio.wrap_future(done)

    def publish(self, queue: str, body: bytes, **properties: Any) -> None:
        """Put a message into a queue; only within the connection's thread."""
        self._channel.basic_publish("", queue, body, pika.BasicProperties(**properties))

    def own(self, queue: str) -> dict[str, Any]:
        """Describe a queue that an endpoint reads."""
        return {"connection_url": self.url, "queue": queue}

    def shared(self, name: str, endpoint: str) -> dict[str, Any]:
        """Describe a queue that every endpoint writes to."""
        publish = {
            "exchange": name,
            "routing_key": f"{endpoint}.{name}",
            "mandatory": True,
            "properties": {"content_type": "application/octet-stream"},
        }
        return self.own(name) | {"exchange": name, "queue_publish_kwargs": publish}


@dataclass
class Endpoint:
    """What the service knows of an endpoint."""

    about: dict[str, Any] = field(default_factory=dict)
    heard: float = float("-inf")
    period: float = 30.0
    report: dict[str, Any] = field(default_factory=dict)

    def online(self) -> bool:
        """An endpoint is online until three heartbeats are missing."""
        return time.monotonic() - self.heard < 3 * self.period


@dataclass
class Sent:
    """A task that was accepted."""

    group: str
    endpoint: str
    done: bool = False


class Service:
    """Functions, endpoints and tasks, and the REST calls that speak of them."""

    def __init__(self, amqp: str) -> None:
        self.functions: dict[str, str] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self.tasks: dict[str, Sent] = {}
        self.batches: list[int] = []
        self.refuse = 0
        self.broker = Broker(amqp, self._message)

    # What endpoints send; in the broker's thread.

    def _message(self, exchange: str, body: bytes) -> None:
        message = messagepack.unpack(body)
        if exchange == "results" and isinstance(message, Result):
            self._result(message, body)
        elif isinstance(message, EPStatusReport):
            self._heartbeat(str(message.endpoint_id), message.global_state)

    def _result(self, result: Result, body: bytes) -> None:
        task = self.tasks.get(str(result.task_id))
        if task is not None and not task.done:
            task.done = True
            self.broker.publish(f"tg.{task.group}", body, timestamp=int(time.time()))

    def _heartbeat(self, name: str, state: dict[str, Any]) -> None:
        endpoint = self.endpoints.setdefault(name, Endpoint())
        endpoint.report = state
        endpoint.period = state.get("heartbeat_period") or 30.0
        alive = state.get("heartbeat_period") and state.get("active", True)
        endpoint.heard = time.monotonic() if alive else float("-inf")
        if "error" not in state:
            return
        # The endpoint could not start the process that would run this user's tasks.
        why = ResultErrorDetails(code="UserEndpointStartFailure", user_message=str(state["error"]))
        for task_id, task in self.tasks.items():
            if task.endpoint == name and not task.done:
                failed = Result(
                    task_id=uuid.UUID(task_id), data=str(state["error"]), error_details=why
                )
                self._result(failed, messagepack.pack(failed))

    # What clients and endpoints ask over REST.

    async def version(self, _request: web.Request) -> web.Response:
        return web.json_response(
            {"api": "stand-in", "min_sdk_version": "2.0.0", "min_ep_version": "2.0.0"}
        )

    async def result_queue(self, _request: web.Request) -> web.Response:
        return web.json_response({"queue_prefix": "tg.", "connection_url": self.broker.url})

    async def register_function(self, request: web.Request) -> web.Response:
        function = str(uuid.uuid4())
        self.functions[function] = (await request.json())["function_code"]
        return web.json_response({"function_uuid": function})

    async def register_endpoint(self, request: web.Request) -> web.Response:
        name = request.match_info.get("endpoint") or str(uuid.uuid4())
        about = await request.json()
        self.endpoints.setdefault(name, Endpoint()).about.update(about)
        commands = f"{name}.commands"
        await self.broker.do(lambda channel: channel.queue_declare(commands, durable=True))
        return web.json_response(
            {
                "endpoint_id": name,
                "command_queue_info": self.broker.own(commands),
                "heartbeat_queue_info": self.broker.shared("heartbeats", name),
            }
        )

    async def endpoint(self, request: web.Request) -> web.Response:
        name = request.match_info["endpoint"]
        return web.json_response(self._endpoint(name).about | {"uuid": name})

    async def endpoint_status(self, request: web.Request) -> web.Response:
        endpoint = self._endpoint(request.match_info["endpoint"])
        status = "online" if endpoint.online() else "offline"
        return web.json_response({"status": status, "details": endpoint.report})

    def _endpoint(self, name: str) -> Endpoint:
        if name not in self.endpoints:
            raise _RefusedError(404, "ENDPOINT_NOT_FOUND", f"Endpoint {name} could not be resolved")
        return self.endpoints[name]

    async def submit(self, request: web.Request) -> web.Response:
        if self.refuse:
            self.refuse -= 1
            raise _RefusedError(400, "INVALID_REQUEST", "refused, as the test asked")
        parent, asked = request.match_info["endpoint"], await request.json()
        self._endpoint(parent)
        group = asked.get("task_group_id") or str(uuid.uuid4())
        options = asked.get("user_endpoint_config") or {}
        # One user endpoint per set of options, as Globus has it.
        child = str(uuid.uuid5(uuid.UUID(parent), _WHO + json.dumps(options, sort_keys=True)))
        self.endpoints.setdefault(child, Endpoint())
        named = {
            function: [(str(uuid.uuid4()), payload) for payload in payloads]
            for function, payloads in asked["tasks"].items()
        }
        self.batches.append(sum(map(len, named.values())))
        start = self._start_command(parent, child, options, asked.get("user_runtime") or {})

        def hand_over(channel: BlockingChannel) -> None:
            for queue in (f"{child}.tasks", f"tg.{group}"):
                channel.queue_declare(queue, durable=True)
            for function, tasks in named.items():
                for task_id, payload in tasks:
                    self.tasks[task_id] = Sent(group, child)
                    body = messagepack.pack(
                        Task(
                            task_id=uuid.UUID(task_id),
                            task_buffer=self.functions[function] + payload,
                        )
                    )
                    headers = {
                        "function_uuid": function,
                        "task_uuid": task_id,
                        "result_serializers": asked.get("result_serializers") or [],
                        "resource_specification": json.dumps(asked.get("resource_specification")),
                    }
                    self.broker.publish(f"{child}.tasks", body, headers=headers)
            self.broker.publish(
                f"{parent}.commands",
                json.dumps(start).encode(),
                content_type="application/json",
                timestamp=int(time.time()),
            )

        await self.broker.do(hand_over)
        return web.json_response(
            {
                "tasks": {name: [task for task, _ in tasks] for name, tasks in named.items()},
                "task_group_id": group,
                "request_id": str(uuid.uuid4()),
                "endpoint_id": child,
            }
        )

    def _start_command(
        self, parent: str, child: str, options: dict[str, Any], runtime: dict[str, Any]
    ) -> dict[str, Any]:
        queues = {
            "endpoint_id": child,
            "task_queue_info": self.broker.own(f"{child}.tasks"),
            "result_queue_info": self.broker.shared("results", child),
            "heartbeat_queue_info": self.broker.shared("heartbeats", child),
        }
        return {
            "command": "cmd_start_endpoint",
            "args": [],
            "globus_username": _NAME,
            "globus_effective_identity": _WHO,
            "globus_identity_set": [{"sub": _WHO, "username": _NAME}],
            "kwargs": {
                "name": f"uep.{parent}.{child}",
                "user_opts": options,
                "user_runtime": runtime,
                "amqp_creds": queues,
            },
        }

    # Globus Auth: as much as a client identity needs.

    async def token(self, request: web.Request) -> web.Response:
        scopes = str((await request.post()).get("scope", "")).split()
        by_server: dict[str, list[str]] = {}
        for scope in scopes:
            server = "funcx_service" if _SCOPE_OWNER in scope else "auth.globus.org"
            by_server.setdefault(server, []).append(scope)
        tokens: list[dict[str, Any]] = [
            {
                "access_token": TOKEN,
                "token_type": "Bearer",
                "expires_in": 172800,
                "resource_server": server,
                "scope": " ".join(owned),
            }
            for server, owned in by_server.items()
        ]
        return web.json_response(tokens[0] | {"other_tokens": tokens[1:]})

    async def userinfo(self, _request: web.Request) -> web.Response:
        return web.json_response(
            {"sub": _WHO, "preferred_username": _NAME, "identity_set": [{"sub": _WHO}]}
        )

    # For tests only.

    async def control(self, request: web.Request) -> web.Response:
        self.refuse = int(request.query.get("refuse", self.refuse))
        return web.json_response({"batches": self.batches, "refuse": self.refuse})


class _RefusedError(Exception):
    def __init__(self, status: int, code: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.body = {"code": code, "reason": reason, "http_status_code": status}


@web.middleware
async def _guard(request: web.Request, handler: Any) -> Any:
    open_to_all = request.path.startswith(("/auth/", "/v2/version"))
    try:
        if not open_to_all and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _RefusedError(401, "UNAUTHORIZED", "the token is not valid")
        return await handler(request)
    except _RefusedError as refused:
        return web.json_response(refused.body, status=refused.status)


def application(amqp: str) -> web.Application:
    """Build the service on a broker that is running."""
    service = Service(amqp)
    app = web.Application(middlewares=[_guard], client_max_size=64 << 20)
    one = "/{endpoint:[0-9a-f-]{36}}"
    app.add_routes(
        [
            web.get("/v2/version", service.version),
            web.get("/v2/get_amqp_result_connection_url", service.result_queue),
            web.post("/v3/functions", service.register_function),
            web.post("/v3/endpoints", service.register_endpoint),
            web.put(f"/v3/endpoints{one}", service.register_endpoint),
            web.get(f"/v2/endpoints{one}", service.endpoint),
            web.get(f"/v2/endpoints{one}/status", service.endpoint_status),
            web.post(f"/v3/endpoints{one}/submit", service.submit),
            web.post("/auth/v2/oauth2/token", service.token),
            web.get("/auth/v2/oauth2/userinfo", service.userinfo),
            web.post("/control", service.control),
        ]
    )
    return app


if __name__ == "__main__":
    web.run_app(application(sys.argv[1]), host="127.0.0.1", port=PORT)
