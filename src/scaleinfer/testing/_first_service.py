"""The simulated gateway's routes: what `Service` does, behind a gateway's rules."""

from __future__ import annotations

import copy
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import orjson

from scaleinfer.testing import _first_refusals as refusals
from scaleinfer.testing import _refusals
from scaleinfer.testing._delivery import deliver
from scaleinfer.testing._first_batches import FIRST_BATCHES, ClusterBatches
from scaleinfer.testing._first_refusals import FirstRefusal
from scaleinfer.testing._job import Job
from scaleinfer.testing._pages import is_own
from scaleinfer.testing._refusals import Refusal
from scaleinfer.testing._responder import Responder, script_failed
from scaleinfer.testing._service import Service
from scaleinfer.testing._view import RequestView, count_tokens

if TYPE_CHECKING:
    from scaleinfer.testing._delivery import Delivery
    from scaleinfer.testing._first_gateway import Gateway, Place
    from scaleinfer.testing._job import Head
    from scaleinfer.testing._ledger import Ledger
    from scaleinfer.testing._settings import Settings

__all__ = ["ROOT", "FirstService"]

ROOT = "/resource_server"
_COMPLETIONS = ("/v1/chat/completions", "/v1/completions")
_EMBEDDINGS = "/v1/embeddings"
_WANTED = {_COMPLETIONS[0]: "messages", _COMPLETIONS[1]: "prompt", _EMBEDDINGS: "input"}
_BATCHES = "/v1/batches"
_ROUTE_PARTS = 4
_RESERVED = frozenset({
    "api_port", "cache_salt", "openai_endpoint", "stream_task_id", "stream_task_token",
    "streaming_server_host", "streaming_server_port", "streaming_server_protocol",
})  # fmt: skip
_LONGEST_SESSION = 128
_DIMENSIONS = 8
_ALPHABET = 256


class FirstService(Service):
    """Routes as FIRST has them.

    A request for a completion is passed on to `Service` under the path that a plain server
    has for it; the ledger's `client` of a request is its cluster.

    Args:
        settings: How the models behind the gateway answer.
        ledger: Where to write down what happened.
        gateway: The gateway's own state.
        epoch: Unix time at the clock's zero.
    """

    def __init__(
        self, settings: Settings, ledger: Ledger, gateway: Gateway, *, epoch: float
    ) -> None:
        super().__init__(settings, ledger, epoch=epoch)
        self.gateway = gateway
        self._offline = None  # files and batches of a plain server
        self._batches = ClusterBatches(
            gateway, settings.batches or FIRST_BATCHES, settings, ledger, epoch=epoch
        )
        self._responder = FirstResponder(
            settings, ledger, self.conditions, lambda: self.load, epoch=epoch
        )
        self._charges: dict[Job, tuple[Place, str]] = {}
        self._asked: tuple[str, str, str] | None = None
        self._size = 0
        self._now = 0.0
        self._head: Head | None = None
        self._admitted: tuple[Place, str] | None = None

    def arrive(self, head: Head, body: bytes, client: Any, now: float) -> Job:
        """Take a request; see `Service.arrive`."""
        self._now, self._head, self._size = now, head, len(body)
        self._asked, self._admitted = None, None
        if is_own(head.path):
            return super().arrive(head, body, client, now)
        self.gateway.at(now)
        route = _route(head.path)
        if route is not None and head.method == "POST" and route[2] in _COMPLETIONS:
            self._asked = route
            head = copy.copy(head)
            head.path, head.client = route[2], route[0]
        elif head.path in _COMPLETIONS:
            head = copy.copy(head)  # there is no such route here
            head.path = f"/absent{head.path}"
        return super().arrive(head, body, client, now)

    def _refuse(self, request: Head, view: RequestView) -> Refusal | None:
        del request
        assert self._head is not None
        assert self._asked is not None
        cluster, framework, path = self._asked
        view.path = f"/{cluster}/{framework}{path}"
        try:
            place, user = self._check(self._asked, view.body, self._head)
            settings = place.model.max_prompt_tokens
            if settings is not None and (tokens := view.prompt_tokens) > settings:
                refusal = _refusals.too_long(settings, tokens, chat=view.chat)
                raise refusals.from_upstream(
                    refusal, self.settings.dialect, direct=place.cluster.direct
                )
        except FirstRefusal as refusal:
            return refusal
        self._admitted = place, user
        return None

    def _check(
        self, route: tuple[str, str, str], body: dict[str, Any], head: Head
    ) -> tuple[Place, str]:
        """Return what a request is for and who asks, if the gateway lets it pass."""
        gateway = self.gateway
        if gateway.maintenance:
            raise gateway.refusal("maintenance", refusals.maintenance())
        if self._size > gateway.rules.body_bytes:
            raise gateway.refusal("too large", refusals.too_large())
        user = gateway.user(head.authorization, self._now)
        session = head.headers.get("x-alcf-session-id", "")
        visible = session.isascii() and session.isprintable() and " " not in session
        if len(session) > _LONGEST_SESSION or not visible:
            raise gateway.refusal("bad session", refusals.bad_session())
        wrong = _control_fields(body, _WANTED[route[2]])
        if wrong is not None:
            raise gateway.refusal("bad field", wrong)
        place = gateway.place(*route, str(body["model"]))
        gateway.check_tokens(place, user, self._now)
        return place, user

    def _decide(self, job: Job, refusal: Refusal | None, now: float) -> None:
        admitted, self._admitted = self._admitted, None
        if admitted is None or refusal is not None:
            super()._decide(job, refusal, now)
            return
        place, _ = admitted
        try:
            wait = self.gateway.admit(place, now)
        except FirstRefusal as refused:
            super()._decide(job, refused, now)
            return
        longest = self.gateway.rules.request_timeout_s
        self._charges[job] = admitted
        if wait <= longest:
            super()._decide(job, None, now)
            if job.due is not None:
                job.due += wait
                job.started = job.due
            return
        job.delivery = self._responder.refusal(
            job, self.gateway.refusal("timeout", refusals.timed_out())
        )
        job.started = job.due = now + longest

    def _serve(self, job: Job, now: float) -> None:
        super()._serve(job, now)
        admitted = self._charges.get(job)
        if admitted is None:
            return
        place, _ = admitted
        job.started = job.due = (job.due or now) + place.model.latency * self.conditions.slowdown
        if not place.cluster.direct and job.delivery.ok and not job.view.stream:
            job.delivery = _with_timing(job, job.started - now)

    def _finish(self, job: Job, now: float, *, ok: bool = False, aborted: bool = False) -> None:
        admitted = self._charges.pop(job, None)
        if admitted is not None and ok and job.entry is not None:
            tokens = job.entry.prompt_tokens + job.entry.completion_tokens
            self.gateway.charge(*admitted, tokens, now)
        super()._finish(job, now, ok=ok, aborted=aborted)

    def _arrive_other(
        self, head: Head, data: bytes, client: Any, now: float, elapsed: float
    ) -> Job:
        if is_own(head.path) or self.conditions.down is not None:
            return super()._arrive_other(head, data, client, now, elapsed)
        view = RequestView(head.path, {}, elapsed=elapsed, headers=head.headers)
        job = Job(client, view, None, head.keep_alive)
        self.ledger.other_paths[head.path] += 1
        fault = None
        try:
            job.verdict = self._script.decide(view, completion=False)
            fault = job.verdict.fault
            if fault is not None and fault.early:
                job.delivery = self._responder.fault(job, fault, now)
            else:
                body = orjson.dumps(self._gateway_page(head, data))
                job.delivery = deliver(HTTPStatus.OK, body, keep_alive=job.keep_alive, fault=fault)
        except Refusal as refusal:
            job.delivery = self._responder.refusal(job, refusal)
        except Exception as error:
            job.delivery = self._responder.refusal(job, script_failed(error))
        job.started = job.due = now + job.verdict.delay
        return job

    def _gateway_page(  # noqa: PLR0911 - one return for each route
        self, head: Head, data: bytes
    ) -> Any:
        """Return the JSON of everything that is no completion."""
        path = head.path.removeprefix(ROOT)
        if head.method == "GET" and path in ("/health", "/status"):
            up = dict.fromkeys(self.gateway.clusters, True)
            return up if path == "/status" else {"status": "ok"}
        route = _route(head.path)
        if head.method == "POST" and route is not None and route[2] in _WANTED:
            return self._embed(route, data, head)
        parts = path.strip("/").split("/")
        submits = head.method == "POST" and route is not None and route[2] == _BATCHES
        if not submits and (head.method != "GET" or not _is_page(head.path, parts)):
            raise refusals.no_page(head.method, path)
        if self.gateway.maintenance:
            raise self.gateway.refusal("maintenance", refusals.maintenance())
        user = self.gateway.user(head.authorization, self._now)
        if route is not None and submits:
            return self._batches.submit(*route[:2], data, user, self._now)
        asked = parse_qs(head.query)
        match parts:
            case ["list-endpoints"]:
                return self.gateway.endpoints()
            case ["whoami"]:
                return {"username": user}
            case ["v1", "batches", *below]:
                return self._batches.get(below, asked.get("status", [None])[0], user, self._now)
            case [cluster, "jobs"]:
                return self.gateway.jobs(cluster, self._now)
        return self.gateway.models(parts[0], asked.get("model_id", [None])[0])

    def _embed(self, route: tuple[str, str, str], data: bytes, head: Head) -> dict[str, Any]:
        body, refusal = self._parse_body(data)
        if refusal is not None:
            raise refusal
        place, user = self._check(route, body, head)
        self.gateway.admit(place, self._now)
        given = body["input"]
        texts = [given] if isinstance(given, str) else [str(text) for text in given]
        tokens = sum(map(count_tokens, texts))
        self.gateway.charge(place, user, tokens, self._now)
        vectors = [
            {"object": "embedding", "index": index, "embedding": _embedding(text)}
            for index, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": vectors, "model": body["model"], "usage": usage}


class FirstResponder(Responder):
    """Deliveries with the gateway's own bodies."""

    def refusal(self, job: Job, refusal: Refusal) -> Delivery:
        """Return an error."""
        if not isinstance(refusal, FirstRefusal) or refusal.content_type is None:
            return super().refusal(job, refusal)
        return deliver(
            refusal.status,
            refusal.data,
            keep_alive=job.keep_alive,
            content_type=refusal.content_type,
        )


def _is_page(path: str, parts: list[str]) -> bool:
    """Return whether there is something to get under a path."""
    known = parts in (["list-endpoints"], ["whoami"]) or parts[1:] in (["jobs"], ["models"])
    return path.startswith(ROOT) and (known or parts[:2] == ["v1", "batches"])


def _route(path: str) -> tuple[str, str, str] | None:
    """Return the cluster, the framework and the rest of an inference route."""
    parts = path.removeprefix(ROOT).split("/", _ROUTE_PARTS - 1)
    if not path.startswith(ROOT) or len(parts) < _ROUTE_PARTS or parts[0]:
        return None
    rest = f"/{parts[3]}"
    return (parts[1], parts[2], rest) if rest.startswith("/v1/") and rest != "/v1/models" else None


def _control_fields(body: dict[str, Any], wanted: str) -> FirstRefusal | None:
    for name in sorted(_RESERVED & body.keys()):
        return refusals.bad_field(name, "Extra inputs are not permitted", "extra_forbidden")
    for name in ("model", wanted):
        if name not in body:
            return refusals.bad_field(name, "Field required", "missing")
    if not isinstance(body["model"], str):
        return refusals.bad_field("model", "Input should be a valid string", "string_type")
    return None


def _with_timing(job: Job, seconds: float) -> Delivery:
    """Return the answer with the keys that Sophia adds."""
    whole = b"".join(data for _, data in job.delivery.parts)
    body = orjson.loads(whole.partition(b"\r\n\r\n")[2])
    tokens = body["usage"]["total_tokens"]
    body["response_time"] = seconds
    body["throughput_tokens_per_second"] = tokens / seconds if seconds else 0.0
    return deliver(HTTPStatus.OK, orjson.dumps(body), keep_alive=job.keep_alive, ok=True)


def _embedding(text: str) -> list[float]:
    """Return a vector that only depends on the text."""
    codes = text.encode() or b"\0"
    return [codes[i % len(codes)] / _ALPHABET for i in range(_DIMENSIONS)]
