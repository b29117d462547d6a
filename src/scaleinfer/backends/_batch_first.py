"""The batch API of FIRST: input and output are files on the cluster's own file system."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import posixpath
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from scaleinfer.backends._batch_base import (
    BatchBackend,
    BatchLimits,
    BatchProblem,
    BatchState,
)
from scaleinfer.backends._batch_rows import answers_in, chunks_of, input_line
from scaleinfer.backends._first_listing import alias
from scaleinfer.backends._request_body import BodyWriter
from scaleinfer.errors import ConfigError, EndpointError, Permanent, RateLimited, Transient

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from scaleinfer.backends._batch_base import BatchAnswer, BatchPhase, Fetch, Stage
    from scaleinfer.backends.openai import OpenAIBackend
    from scaleinfer.requests import Request

__all__ = ["FirstBatches", "JsonRoutes"]

_LIMITS = BatchLimits(
    rows=150_000, bytes=500 << 20, open=1, window_s=7 * 86_400.0, poll_s=(15.0, 60.0)
)
_PHASES: dict[str, BatchPhase] = {
    "pending": "validating",
    "queued": "validating",
    "running": "in_progress",
    "completed": "completed",
    "failed": "failed",
}
_FOLDER_VARIABLE = "FIRST_BATCH_FOLDER"
_NOT_FOUND = 404
_TIMEOUT = 60.0


class JsonRoutes(Protocol):
    """A gateway's routes: JSON out, JSON in, and errors as `EndpointError`."""

    async def get(self, path: str) -> Any:
        """Return what is at a path of the gateway, such as `/v1/batches`."""

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """Post to a path; return the answer. Never tried again by itself."""

    async def open(self) -> None:
        """Connect."""

    async def aclose(self) -> None:
        """Close the connections."""


class FirstBatches(BatchBackend):
    """FIRST's batch API on one cluster.

    `FirstBackend` has one of its own. Where the client runs on the cluster, the files are read
    and written in `folder`. Elsewhere `stage` and `fetch` bring them there and back, such as those
    of a `GlobusTransfer`.

    Args:
        gateway: Its routes: anything with `get` and `post` for JSON, or an `OpenAIBackend` whose
            base URL is the gateway's and whose key is the user's token.
        folder: Folder on the cluster's file system for input and output; default the variable
            `FIRST_BATCH_FOLDER`.
        model: The model, as the cluster names it.
        cluster: Name of the cluster.
        framework: Name of its framework.
        stage: `stage(data, path)` writes bytes to a path on the cluster; may be async.
        fetch: `fetch(path)` returns the bytes of a file there; may be async.
        limits: What the gateway allows; by default one batch at once.

    Raises:
        ConfigError: Only one of `stage` and `fetch` is given, or the folder is not absolute.
    """

    def __init__(
        self,
        gateway: JsonRoutes | OpenAIBackend,
        *,
        folder: str | os.PathLike[str] | None = None,
        model: str,
        cluster: str = "sophia",
        framework: str = "vllm",
        stage: Stage | None = None,
        fetch: Fetch | None = None,
        limits: BatchLimits | None = None,
    ) -> None:
        if (stage is None) != (fetch is None):
            raise ConfigError("FirstBatches needs both stage= and fetch=, or neither.")
        self._folder = ""
        self._stage: Callable[..., Any] = _write
        self._fetch: Callable[..., Any] = _read
        folder = folder or os.environ.get(_FOLDER_VARIABLE)
        self.keep_files(None if folder is None else os.fspath(folder), stage, fetch)
        self.limits = limits or _LIMITS
        self._routes = _routes_of(gateway)
        self.endpoint = f"{getattr(gateway, 'endpoint', 'first')} {cluster}/{framework}"
        self._model = model
        self._create = f"/{cluster}/{framework}/v1/batches"
        self._bodies = BodyWriter()

    async def open(self) -> None:
        """Connect to the gateway."""
        await self._routes.open()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._routes.aclose()

    def keep_files(
        self, folder: str | None, stage: Stage | None = None, fetch: Fetch | None = None
    ) -> None:
        """Keep input and output in another folder; see `BatchBackend.keep_files`.

        Raises:
            ConfigError: It is not an absolute path.
        """
        if folder is not None:
            self._folder = folder.rstrip("/")
            if not self._folder.startswith("/"):
                raise ConfigError(f"folder must be a path on the cluster, not {self._folder!r}.")
        if stage is not None and fetch is not None:
            self._stage, self._fetch = stage, fetch

    def check_settings(self) -> None:
        """See whether it is known where files go; see `BatchBackend.check_settings`."""
        if not self._folder:
            raise ConfigError(
                f"a batch at {self.endpoint} needs a folder on the cluster's file system.",
                hint="Pass mode=Batch(folder='/eagle/PROJECT/batches'), with stage= and fetch= if "
                f"this machine does not see it; or set {_FOLDER_VARIABLE}.",
            )

    def group(self, request: Request) -> str:
        """Return what requests must have in common; see `BatchBackend.group`."""
        return f"{_route(request)} {self._model_of(request)}"

    def line(self, custom_id: str, request: Request) -> bytes:
        """Return a line of an input file; see `BatchBackend.line`."""
        model = self._model_of(request)
        if request.model is not None:
            request = replace(request, model=model)
        return input_line(self._bodies, custom_id, _route(request), request, model)

    def _model_of(self, request: Request) -> str:
        asked = request.model
        return self._model if asked is None or alias(asked) == alias(self._model) else asked

    async def available(self) -> bool:
        """Ask for the list of batches; see `BatchBackend.available`."""
        if not self._folder:
            return False
        try:
            await self._routes.get("/v1/batches")
        except EndpointError as error:
            if error.status == _NOT_FOUND:
                return False
            raise
        return True

    async def upload(self, token: str, lines: list[bytes]) -> str:
        """Write the input file on the cluster; see `BatchBackend.upload`."""
        path = f"{self._folder}/{token}.jsonl"
        try:
            await _called(self._stage, b"".join(lines), path)
        except (EndpointError, ConfigError):
            raise
        except Exception as error:
            raise Transient(
                f"staging {path} failed: {type(error).__name__}: {error}", endpoint=self.endpoint
            ) from error
        return path

    async def create(self, token: str, group: str, upload: str) -> str:
        """Start the batch; see `BatchBackend.create`.

        Always with an output folder: without one the gateway starts a job that it then forgets.
        """
        asked = {
            "input_file": upload,
            "model": group.partition(" ")[2],
            "output_folder_path": f"{self._folder}/{token}.out/",
        }
        try:
            answer = await self._routes.post(self._create, asked)
        except EndpointError as error:
            code = _code(error)
            if code == "quota_exceeded":
                raise RateLimited(
                    error.message, endpoint=self.endpoint, status=error.status
                ) from error
            if code == "batch_ongoing":
                # This very input file: an earlier try was accepted after all.
                found = await self.find(token)
                if found is not None:
                    return found
                raise Transient(error.message, endpoint=self.endpoint) from error
            raise
        try:
            return str(answer["batch_id"])
        except (KeyError, TypeError):
            raise Transient(
                f"{self.endpoint} started a batch without naming it: {str(answer)[:200]}",
                endpoint=self.endpoint,
            ) from None

    async def find(self, token: str) -> str | None:
        """Look through the user's batches for the input file; see `BatchBackend.find`."""
        for name, path in await self._listed():
            if posixpath.basename(path) == f"{token}.jsonl":
                return name
        return None

    async def _folder_of(self, batch: str) -> str:
        """Return the folder of a batch's output; empty if it is not listed."""
        for name, path in await self._listed():
            if name == batch:
                return f"{path.removesuffix('.jsonl')}.out"
        return ""

    async def _listed(self) -> list[tuple[str, str]]:
        """Return the name and the input file of each of the user's batches."""
        listed = await self._routes.get("/v1/batches")
        if isinstance(listed, dict):
            listed = next((value for value in listed.values() if isinstance(value, list)), [])
        found = []
        for batch in listed if isinstance(listed, list) else ():
            path = batch.get("input_file") if isinstance(batch, dict) else None
            name = (batch.get("batch_id") or batch.get("id")) if isinstance(path, str) else None
            if isinstance(path, str) and name is not None:
                found.append((str(name), path))
        return found

    async def poll(self, batch: str) -> BatchState:
        """Ask for the batch's status; see `BatchBackend.poll`."""
        try:
            said = await self._routes.get(f"/v1/batches/{batch}")
        except EndpointError as error:
            if error.status == _NOT_FOUND:
                return BatchState("gone")
            raise
        status = said.get("status") if isinstance(said, dict) else said
        phase = _PHASES.get(str(status))
        if phase is None:
            raise Transient(
                f"{self.endpoint} says that a batch is {status!r}.", endpoint=self.endpoint
            )
        if phase == "failed":
            problem = BatchProblem("batch_failed", await self._why_failed(batch))
            return BatchState(phase, problems=(problem,), begun=True)
        return BatchState(phase)

    async def fetch(self, batch: str, state: BatchState) -> AsyncGenerator[list[BatchAnswer], None]:
        """Fetch the results file from the cluster; see `BatchBackend.fetch`.

        Of a failed batch the gateway tells none. Where the client sees the folder, what the job
        had written there is taken all the same.
        """
        if state.phase == "failed" and self._fetch is _read:
            for data in await asyncio.to_thread(_left_behind, await self._folder_of(batch)):
                for chunk in self._answers(data, batch):
                    yield chunk
        if state.phase != "completed":
            return
        path = _results_file(await self._routes.get(f"/v1/batches/{batch}/result"))
        if path is None:
            raise Transient(f"{self.endpoint} names no results file.", endpoint=self.endpoint)
        try:
            data = await _called(self._fetch, path)
        except FileNotFoundError as error:
            raise Permanent(
                f"{path} is not there.", endpoint=self.endpoint, status=_NOT_FOUND
            ) from error
        except (EndpointError, ConfigError):
            raise
        except Exception as error:
            raise Transient(
                f"fetching {path} failed: {type(error).__name__}: {error}", endpoint=self.endpoint
            ) from error
        for chunk in self._answers(data, batch):
            yield chunk

    def _answers(self, data: bytes, batch: str) -> Iterator[list[BatchAnswer]]:
        return chunks_of(answers_in(data, endpoint=self.endpoint, batch=batch, model=self._model))

    async def cancel(self, batch: str) -> None:
        """Do nothing: FIRST cannot cancel a batch."""

    async def _why_failed(self, batch: str) -> str:
        try:
            await self._routes.get(f"/v1/batches/{batch}/result")
        except EndpointError as error:
            return error.message
        return "no reason given"


class _OverOpenAI:
    """The routes of a gateway that an `OpenAIBackend` reaches."""

    def __init__(self, backend: OpenAIBackend) -> None:
        self._backend = backend

    async def get(self, path: str) -> Any:
        return await self._json(path, None)

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        return await self._json(path, orjson.dumps(body))

    async def open(self) -> None:
        await self._backend.open()

    async def aclose(self) -> None:
        await self._backend.aclose()

    async def _json(self, path: str, body: bytes | None) -> Any:
        response = await self._backend.request(
            path.lstrip("/"), body, timeout=_TIMEOUT, apart=body is not None
        )
        try:
            return orjson.loads(response.body)
        except orjson.JSONDecodeError:
            raise Transient(
                f"{self._backend.endpoint}{path} did not answer with JSON.",
                endpoint=self._backend.endpoint,
            ) from None


def _routes_of(gateway: Any) -> JsonRoutes:
    routes: JsonRoutes = gateway if hasattr(gateway, "post") else _OverOpenAI(gateway)
    return routes


async def _called(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call what may be async, or may block."""
    if inspect.iscoroutinefunction(function):
        return await function(*arguments)
    value = await asyncio.to_thread(function, *arguments)
    return await value if inspect.isawaitable(value) else value


def _route(request: Request) -> str:
    return "/v1/chat/completions" if request.prompt is None else "/v1/completions"


def _write(data: bytes, path: str) -> None:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Complete under another name first: nobody reads half a file.
    part = target.with_suffix(".part")
    part.write_bytes(data)
    part.replace(target)


def _read(path: str) -> bytes:
    return Path(path).read_bytes()


def _left_behind(folder: str) -> list[bytes]:
    """Return the results that a job which has ended early left in its folder."""
    found = sorted(Path(folder).glob("*results.jsonl")) if folder else []
    return [path.read_bytes() for path in found]


def _code(error: EndpointError) -> str:
    try:
        return str(orjson.loads(error.body)["error"]["code"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return next(
            (code for code in ("quota_exceeded", "batch_ongoing") if code in str(error)), ""
        )


def _results_file(said: Any) -> str | None:
    """Return the path in a result: an object, JSON in a string, or a Python repr in one."""
    if isinstance(said, str):
        try:
            said = orjson.loads(said)
        except orjson.JSONDecodeError:
            try:
                said = ast.literal_eval(said)
            except (ValueError, SyntaxError):
                return None
    path = said.get("results_file") if isinstance(said, dict) else None
    return path if isinstance(path, str) else None
