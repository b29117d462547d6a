"""Workers on the nodes of a Globus Compute endpoint."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
import uuid
from concurrent.futures import Future, InvalidStateError
from functools import partial
from typing import TYPE_CHECKING, Any

from scaleinfer.errors import ConfigError, ScaleInferError, WorkerLost
from scaleinfer.fleet._globus_node import read_answer
from scaleinfer.fleet._globus_session import GlobusSession, explain

if TYPE_CHECKING:
    from collections.abc import Mapping

_ENTRY = "scaleinfer.fleet._entry:run_worker"

_Waiting = tuple[str, "Future[str]"]


class GlobusComputeLauncher:
    """Starts workers through Globus Compute; one worker takes one slot of the endpoint.

    Nothing is contacted until the first `start`. Workers asked for within a moment travel in one
    call, because the SDK allows four calls in 16 seconds. The connection, its threads and the
    futures that the SDK gives stay inside: cancelling a future of `start` after its worker was
    sent changes nothing.

    Args:
        endpoint_id: The endpoint's id (a UUID).
        user_endpoint_config: Values for the endpoint's template: account, partition, nodes.
            They must be JSON.
        worker_init: Shell lines that a node runs before the worker, such as activating an
            environment; the same as `worker_init` in `user_endpoint_config`.
        client: A `globus_compute_sdk.Client`; by default one is made from the login of
            this user, or from GLOBUS_COMPUTE_CLIENT_ID and GLOBUS_COMPUTE_CLIENT_SECRET.
        max_workers: How many workers the endpoint can run at once, if known.
        per_burst: The most workers that travel in one call.
        burst_seconds: How long a call waits for more workers to travel with it.
        close_seconds: How long `close` waits for workers to end. Those that are still queued
            with the endpoint's batch system will not; they end when they find no fleet.
        entry: What a worker runs, as "module:function": text in, text out.

    Attributes:
        name: What messages call it.
        max_workers: As given.

    Raises:
        ConfigError: the id is no UUID, or the configuration is not JSON.
    """

    def __init__(
        self,
        endpoint_id: str | uuid.UUID,
        *,
        user_endpoint_config: Mapping[str, Any] | None = None,
        worker_init: str | None = None,
        client: Any = None,
        max_workers: int | None = None,
        per_burst: int = 128,
        burst_seconds: float = 0.25,
        close_seconds: float = 10.0,
        entry: str = _ENTRY,
    ) -> None:
        self._endpoint = _endpoint_id(endpoint_id)
        self._config = _endpoint_config(user_endpoint_config, worker_init)
        self.name = f"Globus Compute endpoint {self._endpoint}"
        self.max_workers = max_workers
        self._per_burst = max(1, per_burst)
        self._burst_seconds = burst_seconds
        self._close_seconds = close_seconds
        self._entry = entry
        self._session = GlobusSession(self._endpoint, self._config, client, self._per_burst)
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._open: set[Future[str]] = set()
        self._thread: threading.Thread | None = None
        self._closed = False

    def start(self, spec: str) -> Future[str]:
        """Ask for one worker; returns at once.

        Args:
            spec: What the worker is to do, as text.

        Returns:
            A future of the worker's summary. It fails with ConfigError if the endpoint is
            unknown, offline or closed to this user, if nobody is logged in, or if the node
            lacks scaleinfer; with WorkerLost if the worker failed or was lost.

        Raises:
            ConfigError: the launcher is closed.
        """
        outcome: Future[str] = Future()
        with self._lock:
            if self._closed:
                raise ConfigError(f"{self.name}: the launcher is closed.")
            self._open.add(outcome)
            self._queue.put((spec, outcome))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._send_bursts, name="scaleinfer-globus", daemon=True
                )
                self._thread.start()
        return outcome

    def close(self) -> None:
        """Wait a while for the workers to end, then let go of them and of the connection.

        Globus Compute cannot end a task that it has taken: workers end because their
        coordinator tells them to, or because they no longer hear from it. Futures of those that
        have not ended fail with WorkerLost. May be called again.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            thread = self._thread
        deadline = time.monotonic() + self._close_seconds
        if thread is not None:
            self._queue.put(None)
            thread.join(self._close_seconds)
        self._session.close(deadline)
        for outcome in list(self._open):
            self._settle(outcome, error=self._let_go())

    def _let_go(self) -> WorkerLost:
        return WorkerLost(
            f"a worker of {self.name} had not ended when its fleet was closed.",
            hint="It stops by itself when it no longer hears from its fleet, or with its job.",
        )

    def _send_bursts(self) -> None:
        """Send what was asked for, burst by burst; runs in a thread of its own."""
        while (first := self._queue.get()) is not None:
            burst, more = [first], True
            deadline = time.monotonic() + self._burst_seconds
            while more and len(burst) < self._per_burst:
                try:
                    following = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
                except queue.Empty:
                    break
                if following is None:
                    self._queue.put(None)
                    more = False
                else:
                    burst.append(following)
            if self._closed:
                return
            self._send(burst)

    def _send(self, burst: list[_Waiting]) -> None:
        wanted = []
        for spec, outcome in burst:
            # From here on the caller's cancel() finds the future running.
            if outcome.set_running_or_notify_cancel():
                wanted.append((spec, outcome))
            else:
                self._open.discard(outcome)
        try:
            self._session.connect()
            for spec, outcome in wanted:
                sent = self._session.submit(self._entry, spec)
                sent.add_done_callback(partial(self._ended, outcome))
        except Exception as error:
            for _, outcome in wanted:
                self._settle(outcome, error=explain(error, self.name))

    def _ended(self, outcome: Future[str], sent: Future[str]) -> None:
        """Pass on how a worker ended; runs in a thread of the SDK."""
        if sent.cancelled():
            self._settle(outcome, error=self._let_go())
            return
        error = sent.exception()
        if error is not None:
            self._settle(outcome, error=explain(error, self.name))
            return
        from scaleinfer import __version__

        try:
            summary = read_answer(sent.result(), where=self.name, version=__version__)
        except ScaleInferError as failed:
            self._settle(outcome, error=failed)
        else:
            self._settle(outcome, summary=summary)

    def _settle(
        self, outcome: Future[str], *, summary: str = "", error: BaseException | None = None
    ) -> None:
        self._open.discard(outcome)
        with contextlib.suppress(InvalidStateError):
            if error is None:
                outcome.set_result(summary)
            else:
                outcome.set_exception(error)


def _endpoint_id(given: str | uuid.UUID) -> uuid.UUID:
    try:
        return uuid.UUID(str(given))
    except ValueError:
        raise ConfigError(
            f"{str(given)!r} is not the id of a Globus Compute endpoint, which is a UUID.",
            hint="`globus-compute-endpoint list`, on the endpoint's machine, shows it.",
        ) from None


def _endpoint_config(given: Mapping[str, Any] | None, worker_init: str | None) -> dict[str, Any]:
    config = dict(given or {})
    if worker_init is not None:
        if "worker_init" in config:
            raise ConfigError("worker_init is given twice: alone and in user_endpoint_config.")
        config["worker_init"] = worker_init
    try:
        json.dumps(config)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"user_endpoint_config must be JSON: {error}.") from error
    return config
