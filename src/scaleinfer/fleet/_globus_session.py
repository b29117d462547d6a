"""The connection to Globus Compute: its SDK's executor, threads and errors, kept in one place."""

from __future__ import annotations

import concurrent.futures
import copy
import logging
import time
import uuid
from typing import TYPE_CHECKING, Any

from scaleinfer.errors import ConfigError, ScaleInferError, WorkerLost
from scaleinfer.fleet._globus_login import our_client, refuse_if_logged_out
from scaleinfer.fleet._globus_node import run_on_node

if TYPE_CHECKING:
    import threading
    from concurrent.futures import Future

log = logging.getLogger(__name__)

_NOT_FOUND = 404
_REFUSED = range(400, 500)
_LATER = (408, 409, 425, 429)
_LAST = 400  # characters of what an endpoint says
_JOIN_SECONDS = 5.0


class GlobusSession:
    """The SDK's executor, made when it is needed and again after it has given up."""

    def __init__(
        self, endpoint: uuid.UUID, config: dict[str, Any], client: Any, per_burst: int
    ) -> None:
        self._endpoint = endpoint
        self._config = config
        self._given = client
        self._per_burst = per_burst
        self._client: Any = None
        self._executor: Any = None
        self._group: uuid.UUID | None = None
        self._sent: set[Future[str]] = set()
        self._closed = False

    def connect(self) -> None:
        """Log in and ask whether the endpoint is there; raises what `explain` understands."""
        if self._client is None:
            client = our_client() if self._given is None else copy.copy(self._given)
            refuse_if_logged_out(client)
            client.version_check()
            self._client = client
        status = self._client.get_endpoint_status(str(self._endpoint))["status"]
        if status != "online":
            raise ConfigError(
                f"Globus Compute endpoint {self._endpoint} is {status}.",
                hint="Start it on its machine: `globus-compute-endpoint start NAME` "
                "(`globus-compute-endpoint list` shows the names).",
            )

    def submit(self, entry: str, spec: str) -> Future[str]:
        """Queue one worker for the SDK's next call."""
        if self._closed:
            raise WorkerLost("the launcher was closed before the worker was sent.")
        if self._executor is None:
            self._executor = self._new_executor()
        try:
            sent = self._executor.submit(run_on_node, entry, spec)
        except RuntimeError:
            # An executor is shut down for good by the first call that fails.
            self._executor = self._new_executor()
            sent = self._executor.submit(run_on_node, entry, spec)
        future: Future[str] = sent
        self._sent.add(future)
        future.add_done_callback(self._sent.discard)
        return future

    def _new_executor(self) -> Any:
        from globus_compute_sdk import Executor
        from globus_compute_sdk.serialize import ComputeSerializer, JSONData, PureSourceTextInspect

        session = self

        class OwnGroup(Executor):
            """Keeps its task group, and with it its results, apart from the user's executors."""

            ready = False

            @property
            def task_group_id(self) -> uuid.UUID | None:
                return session._group

            @task_group_id.setter
            def task_group_id(self, group: Any) -> None:
                # While it is made, the executor offers the group that the process used last.
                if self.ready:
                    session._group = uuid.UUID(str(group)) if group else None

        executor = OwnGroup(
            endpoint_id=self._endpoint,
            client=self._client,
            user_endpoint_config=self._config or None,
            label="scaleinfer",
            batch_size=self._per_burst,
            serializer=ComputeSerializer(
                strategy_code=PureSourceTextInspect(),
                strategy_data=JSONData,
                allowed_deserializer_types=[PureSourceTextInspect, JSONData],
            ),
            result_serializers=[JSONData],
        )
        executor.ready = True
        return executor

    def close(self, deadline: float) -> None:
        """Wait for what was sent, until `deadline` (monotonic), then end the SDK's threads."""
        self._closed = True
        executor, self._executor = self._executor, None
        if executor is not None:
            # Not `cancel_futures` of what was taken: a result for a cancelled future breaks
            # the SDK's watcher. This cancels only what has not left yet.
            executor.shutdown(wait=False, cancel_futures=True)
            _join(getattr(executor, "_task_submitter", None), _left(deadline))
        concurrent.futures.wait(list(self._sent), timeout=_left(deadline))
        if executor is not None:
            self._end_watcher()
        if self._client is not None:
            if self._given is None:
                _close_connections(self._client)
            self._client = None

    def _end_watcher(self) -> None:
        """End the thread that listens for results.

        The SDK keeps it, and its connection, for the life of the process, and has the process
        wait at its end for every worker. The watcher forgets its futures before it cancels
        them, so a late result finds nothing to break.
        """
        from globus_compute_sdk.sdk import executor as sdk

        watcher = sdk._RESULT_WATCHERS.get(self._group)  # type: ignore[arg-type] # None finds none
        if watcher is None:
            return
        connection = watcher._connection
        watcher.shutdown(wait=False, cancel_futures=True)  # type: ignore[no-untyped-call] # SDK
        _join(watcher, _JOIN_SECONDS)
        if connection is not None and not watcher.is_alive():
            # The SDK stops this loop but leaves its two sockets open.
            connection.ioloop.close()


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _join(thread: threading.Thread | None, seconds: float) -> None:
    if thread is None:
        return
    thread.join(seconds)
    if thread.is_alive():
        log.warning("a thread of the Globus Compute SDK did not end: %s", thread.name)


def _close_connections(client: Any) -> None:
    web = getattr(client, "_compute_web_client", None)
    for part in (getattr(web, "v2", None), getattr(web, "v3", None), client.app):
        close = getattr(part, "close", None)
        if close is not None:
            close()


def explain(error: BaseException, where: str) -> ScaleInferError:
    """Say in our terms why a worker could not be sent, or did not come back.

    ConfigError if trying again cannot help, else WorkerLost.
    """
    if isinstance(error, ScaleInferError):
        return error
    import globus_sdk
    from globus_compute_sdk.errors import TaskExecutionFailed, VersionMismatch

    explained: ScaleInferError
    if isinstance(error, TaskExecutionFailed):
        explained = _explain_remote(error.remote_data, where)
    elif isinstance(error, VersionMismatch):
        explained = ConfigError(
            f"{where}: {error.version_message}", hint="Upgrade globus-compute-sdk."
        )
    elif isinstance(error, globus_sdk.GlobusAPIError):
        explained = _explain_status(error.http_status, error.message or error.text, where)
    else:
        explained = WorkerLost(
            f"{where} could not be reached: {type(error).__name__}: {error}".rstrip(": ")
        )
    explained.__cause__ = error
    return explained


def _explain_status(status: int, said: str, where: str) -> ScaleInferError:
    if status == _NOT_FOUND:
        return ConfigError(
            f"Globus Compute knows no such endpoint, or keeps it from this user: {where}.",
            hint="Compare the id with `globus-compute-endpoint list` on its machine.",
        )
    words = f"{where}: Globus Compute answered {status}: {said:.300}"
    if status in {401, 403}:
        return ConfigError(words, hint="Ask who runs the endpoint for access, or log in anew.")
    if status in _REFUSED and status not in _LATER:
        return ConfigError(words)
    return WorkerLost(words)


def _explain_remote(text: str, where: str) -> ScaleInferError:
    """Read what an endpoint says of a task that did not even begin, or did not end."""
    said = _reason(text)
    if "disabled by current" in text:
        error: ScaleInferError = ConfigError(
            f"{where} does not take functions as source text and arguments as JSON: {said}",
            hint="Ask who runs it to allow PureSourceTextInspect and JSONData.",
        )
    else:
        error = WorkerLost(f"a worker of {where} was lost: {said}")
    error.add_note(text)
    return error


def _reason(text: str) -> str:
    """Cut a traceback down to its exception; other texts stay, on one line."""
    lines = text.strip().splitlines()
    if any(line.lstrip().startswith("Traceback") for line in lines):
        frames = [number for number, line in enumerate(lines) if line.startswith("  ")]
        lines = lines[frames[-1] + 1 :] if frames and frames[-1] + 1 < len(lines) else lines[-1:]
    return " ".join(" ".join(lines).split())[:_LAST] or "no reason was given"
