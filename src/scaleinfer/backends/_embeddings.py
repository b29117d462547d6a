"""Embeddings: many texts to a call, each with an outcome of its own."""

from __future__ import annotations

import asyncio
import copy
import sys
from array import array
from base64 import b64decode
from binascii import Error as NotBase64
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from scaleinfer.backends._completion import reports_of, share_usage, usage_of
from scaleinfer.backends._dialect import explained, not_json
from scaleinfer.errors import EndpointError, Transient
from scaleinfer.requests import plain
from scaleinfer.results import Completion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaleinfer.backends._wire import WireResponse
    from scaleinfer.requests import Request, Sampling

__all__ = ["Embedder", "parse_embeddings"]

_OK = 200
_BAD_REQUEST = frozenset({400, 413, 422})
_NO_EMBEDDINGS = (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError)


class Server(Protocol):
    """What an `Embedder` needs of an adapter."""

    endpoint: str
    model: str | None

    async def embed(self, body: bytes, timeout: float | None) -> WireResponse:
        """Post to `/embeddings`.

        Raises:
            EndpointError: There was no response.
        """

    def refusal(self, response: WireResponse, model: str) -> EndpointError:
        """Return what a response other than 200 means."""

    def without_secrets(self, response: WireResponse) -> WireResponse:
        """Return a response whose excerpts may be shown."""


class Embedder:
    """Asks a server for embeddings.

    A call that the server refuses as a bad request is asked again in halves, so that only the
    culprits fail. If both halves are good it was too long for the server, and later ones are
    made shorter.
    """

    def __init__(self) -> None:
        self._most = sys.maxsize
        self._base64 = True

    async def ask(
        self, server: Server, requests: Sequence[Request], timeout: float | None
    ) -> list[Completion | EndpointError]:
        """Return an embedding or an error for each request, in their order.

        Args:
            server: Where to ask.
            requests: What to ask.
            timeout: Seconds for each call.
        """
        groups: list[tuple[Sampling, str | None, list[int]]] = []
        for position, request in enumerate(requests):
            for sampling, model, members in groups:
                same = request.sampling is sampling or request.sampling == sampling
                if same and request.model == model and len(members) < self._most:
                    members.append(position)
                    break
            else:
                groups.append((request.sampling, request.model, [position]))
        together = [[requests[position] for position in members] for _, _, members in groups]
        if len(together) == 1:
            return await self._together(server, together[0], timeout)
        found = await asyncio.gather(*(self._together(server, pack, timeout) for pack in together))
        ordered: dict[int, Completion | EndpointError] = {}
        for (_, _, members), outcomes in zip(groups, found, strict=True):
            ordered.update(zip(members, outcomes, strict=True))
        return [ordered[position] for position in range(len(requests))]

    async def _together(
        self, server: Server, requests: list[Request], timeout: float | None
    ) -> list[Completion | EndpointError]:
        try:
            response = await server.embed(self._body(server, requests), timeout)
            if (
                response.status in _BAD_REQUEST
                and self._base64
                and b"encoding_format" in response.body
            ):
                self._base64 = False
                response = await server.embed(self._body(server, requests), timeout)
            if response.status in _BAD_REQUEST and len(requests) > 1:
                return await self._halves(server, requests, timeout)
            if response.status != _OK:
                raise server.refusal(response, requests[0].model or server.model or "")
            return _parsed(server, response, [request.input or "" for request in requests])
        except EndpointError as error:
            # One for each: an error carries the item that it belongs to.
            return [copy.copy(error) for _ in requests]

    async def _halves(
        self, server: Server, requests: list[Request], timeout: float | None
    ) -> list[Completion | EndpointError]:
        half = (len(requests) + 1) // 2
        parts = await asyncio.gather(
            self._together(server, requests[:half], timeout),
            self._together(server, requests[half:], timeout),
        )
        outcomes = [outcome for part in parts for outcome in part]
        if not any(isinstance(outcome, EndpointError) for outcome in outcomes):
            self._most = min(self._most, half)
        return outcomes

    def _body(self, server: Server, requests: list[Request]) -> bytes:
        first = requests[0]
        return orjson.dumps(
            {
                "model": first.model or server.model,
                "input": [request.input for request in requests],
                "encoding_format": "base64" if self._base64 else "float",
                **first.sampling.to_body(),
            },
            default=plain,
            option=orjson.OPT_NON_STR_KEYS,
        )


def _parsed(
    server: Server, response: WireResponse, texts: list[str]
) -> list[Completion | EndpointError]:
    try:
        return parse_embeddings(response, endpoint=server.endpoint, texts=texts)
    except EndpointError:
        safe = server.without_secrets(response)
        return parse_embeddings(safe, endpoint=server.endpoint, texts=texts)


def parse_embeddings(
    response: WireResponse, *, endpoint: str, texts: list[str]
) -> list[Completion | EndpointError]:
    """Return the embeddings in a 200 response, in the texts' order.

    A text whose embedding is missing gets an error of its own. The tokens, which the server
    counts for the whole call, are shared among the texts by their lengths.

    Args:
        response: A 200 response.
        endpoint: Name of the endpoint, for errors.
        texts: What was asked.

    Raises:
        EndpointError: There are no embeddings in the body at all.
    """
    try:
        body = orjson.loads(response.body)
    except orjson.JSONDecodeError:
        raise not_json(response, endpoint) from None
    try:
        model, usage = body.get("model"), usage_of(body.get("usage"))
        vectors = {
            int(entry.get("index", position)): _vector(entry["embedding"])
            for position, entry in enumerate(body["data"])
        }
    except _NO_EMBEDDINGS:
        raise explained(Transient, "answered 200 without embeddings", response, endpoint) from None
    load, rate = reports_of(response)
    outcomes: list[Completion | EndpointError] = []
    for position in range(len(texts)):
        vector = vectors.get(position)
        if vector:
            outcomes.append(Completion("", model=model, load=load, rate=rate, vector=vector))
        else:
            outcomes.append(
                Transient(
                    f"{endpoint} left out the embedding of one of the texts sent together.",
                    endpoint=endpoint,
                    status=response.status,
                )
            )
    share_usage(usage, texts, outcomes)
    return outcomes


def _vector(embedding: Any) -> array[float]:
    """Return an embedding as float32, from numbers or from base64 of little-endian float32."""
    if not isinstance(embedding, str):
        return array("f", embedding)
    try:
        data = b64decode(embedding, validate=True)
    except NotBase64 as error:
        raise ValueError from error
    vector = array("f")
    vector.frombytes(data)
    if sys.byteorder == "big":
        vector.byteswap()
    return vector
