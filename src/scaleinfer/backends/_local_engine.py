"""The embedded model's engine: OpenVINO GenAI in this process, shared by all its maps.

`ContinuousBatchingPipeline.step()` holds Python's interpreter lock for the whole step (15 ms
with one call in flight, 200 ms with 64), so a thread that calls it stalls every event loop of
the process. `generate()` releases the lock, and its loop also steps requests that other
threads add meanwhile. So the stepping thread calls `generate()` on a tiny request of its own
(the opener); while that runs, the watching thread adds the real requests, reads what they
gave, and cancels those that nobody waits for any more.
"""

from __future__ import annotations

import itertools
import sys
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scaleinfer.backends._local_gguf import check_whole, read_header
from scaleinfer.errors import ConfigError, Permanent, Transient

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scaleinfer.backends._local_gguf import GgufHeader

__all__ = ["Engine", "Generated", "Job", "cache_plan"]

_POLL_SECONDS = 0.004
_request_ids = itertools.count(1)
_OPENER_TOKENS = 16
_JOIN_SECONDS = 60.0
_GIB = 1 << 30
_LARGEST_CACHE_GIB = 4
_PIECE = 2000  # characters whose tokens fit every model's context


@dataclass(slots=True)
class Generated:
    """What the engine made of one job.

    Attributes:
        token_ids: Tokens of the answer, the end token included.
        logprobs: Their log probabilities; zeros if not asked for.
        finish_reason: `stop` or `length`.
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = "stop"


@dataclass(slots=True, eq=False)
class Job:
    """One request to the engine. Cancelling `future` cancels it in the engine.

    Attributes:
        prompt: Token ids.
        options: Fields of OpenVINO GenAI's `GenerationConfig`.
        grammar: EBNF grammar of the answer, if any.
        on_tokens: Called by the engine's thread with new token ids as they come.
        future: Gives the result.
    """

    prompt: list[int]
    options: dict[str, Any]
    grammar: str | None = None
    on_tokens: Callable[[list[int]], None] | None = None
    future: Future[Generated] = field(default_factory=Future)
    _handle: Any = None
    _ended: bool = False  # the token that ended the answer was read
    _result: Generated = field(default_factory=Generated)


def cache_plan(header: GgufHeader, *, exact: bool) -> tuple[int, int]:
    """Return the KV cache's size in GiB and the context length that fits it, in tokens.

    One whole context fits at least, unless that takes more than 4 GiB; then the context is
    shortened.
    """
    per_token = header.kv_values_per_token * (4 if exact else 2)
    wanted = -(-header.context_length * per_token // _GIB)
    size = min(max(wanted, 1), _LARGEST_CACHE_GIB)
    return size, min(header.context_length, size * _GIB // per_token)


class Engine:
    """One loaded model. Lives until it dies of an error or the process ends.

    All methods may be called from any thread.

    Attributes:
        ready: Done when the model is loaded; fails with `ConfigError` if it cannot be.
        context_length: Tokens of prompt and answer together.
        dead: True if it takes no more jobs.
    """

    def __init__(self, path: Path, *, exact: bool, threads: int | None) -> None:
        self._path = path
        self._exact = exact
        self._threads = threads
        self._cache_gib, self.context_length = cache_plan(read_header(path), exact=exact)
        self.ready: Future[None] = Future()
        self.ready.set_running_or_notify_cancel()
        self.dead = False
        self._changed = threading.Condition()
        self._queue: list[Job] = []
        self._active: list[Job] = []
        self._wanted = False  # the watcher asks for the stepping loop
        self._stepping = False  # the stepping loop takes new requests
        self._closing = False
        self._opened = threading.Event()  # the opener's first token is there
        self._admitted = threading.Event()  # the opener may end
        self._pipeline: Any = None
        self._tokenizer: Any = None
        self._stepper = threading.Thread(
            target=self._step_until_closed, name="scaleinfer-local-step", daemon=True
        )
        self._watcher = threading.Thread(
            target=self._watch, name="scaleinfer-local-watch", daemon=True
        )
        self._stepper.start()

    # Called by the backends, once `ready` is done.

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the token ids of `text`, with the model's own start token if `special`."""
        ids = self._tokenizer.encode(text, add_special_tokens=special).input_ids.data
        return [int(token) for token in ids[0]]

    def count(self, text: str) -> int:
        """Return about how many tokens `text` has, however long it is."""
        pieces = (text[at : at + _PIECE] for at in range(0, len(text), _PIECE))
        return sum(len(self.encode(piece, special=False)) for piece in pieces)

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of token ids, without special tokens."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))

    def render(self, messages: list[dict[str, str]]) -> str:
        """Return chat messages in the model's own chat template."""
        return str(self._tokenizer.apply_chat_template(messages, add_generation_prompt=True))

    def submit(self, job: Job) -> None:
        """Hand over a job; `job.future` gives its result.

        Raises:
            Transient: The engine has died; `shared_engine` gives a new one.
        """
        with self._changed:
            if self.dead or self._closing:
                raise Transient("The embedded engine has just stopped.", endpoint="local")
            self._queue.append(job)
            self._changed.notify_all()

    def close(self) -> None:
        """End the engine: jobs in flight are cancelled and fail with `Transient`."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in (self._watcher, self._stepper):
            if thread.ident is not None:
                thread.join(_JOIN_SECONDS)

    # The stepping thread.

    def _step_until_closed(self) -> None:
        try:
            self._open_pipeline()
        except Exception as error:
            self.dead = True
            self.ready.set_exception(_load_error(self._path, error))
            return
        self._watcher.start()
        self.ready.set_result(None)
        try:
            while self._wait_until_wanted():
                self._run_once()
        except Exception as error:
            self._die(error)
        finally:
            self._opened.set()
            self._watcher.join()
            self._pipeline = self._tokenizer = None

    def _open_pipeline(self) -> None:
        # OpenVINO reports its use over the network unless its reporting module is missing.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # means absent
        try:
            import openvino_genai  # type: ignore[import-untyped,unused-ignore]  # no stubs
        except ImportError:
            raise ConfigError(
                "The embedded model's runtime is not installed.",
                hint="Run: pip install 'scaleinfer[local]'",
            ) from None
        check_whole(self._path)
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.cache_size = self._cache_gib
        properties: dict[str, Any] = {}
        if self._exact:
            properties["INFERENCE_PRECISION_HINT"] = "f32"
            properties["KV_CACHE_PRECISION"] = "f32"
            properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
        if self._threads is not None:
            properties["INFERENCE_NUM_THREADS"] = self._threads
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(self._path), scheduler, "CPU", properties
        )
        self._tokenizer = self._pipeline.get_tokenizer()

    def _wait_until_wanted(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._wanted or self._closing or self.dead)
            self._wanted = False
            return not (self._closing or self.dead)

    def _run_once(self) -> None:
        """Step until nothing is left to do."""
        import openvino_genai

        prompt = _tensor([self._opener_token()])
        config = openvino_genai.GenerationConfig(max_new_tokens=_OPENER_TOKENS, ignore_eos=True)
        self._pipeline.generate([prompt], [config], _opener(self._opened, self._admitted))
        with self._changed:
            self._stepping = False
        # A request that was added just as generate() was returning is still there. Nothing
        # is added any more until it is done.
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()

    def _opener_token(self) -> int:
        return max(int(self._tokenizer.get_eos_token_id()), 0)

    def _die(self, error: Exception) -> None:
        with self._changed:
            self.dead = True
            jobs = [*self._active, *self._queue]
            self._active, self._queue = [], []
            self._changed.notify_all()
        for job in jobs:
            if job._handle is not None:
                job._handle.cancel()
        text = " ".join(str(error).split())[-200:]
        _fail(jobs, Transient(f"The embedded engine failed ({text}).", endpoint="local"))

    # The watching thread.

    def _watch(self) -> None:
        try:
            while self._wait_for_work():
                self._collect()
                self._admit()
        except Exception as error:
            self._die(error)
        with self._changed:
            jobs = [*self._active, *self._queue]
            self._active, self._queue = [], []
        for job in jobs:
            if job._handle is not None:
                job._handle.cancel()
        self._admitted.set()
        _fail(jobs, Transient("The embedded engine was closed.", endpoint="local"))

    def _wait_for_work(self) -> bool:
        with self._changed:
            if not (self._closing or self.dead):
                busy = bool(self._active) or bool(self._queue and self._stepping)
                self._changed.wait_for(
                    lambda: self._closing or self.dead or (self._queue and not busy),
                    _POLL_SECONDS if busy or self._active else None,
                )
            return not (self._closing or self.dead)

    def _collect(self) -> None:
        """Hand over what finished, drop what nobody waits for."""
        for job in list(self._active):
            if job.future.cancelled():
                job._handle.cancel()
            elif not _read(job):
                continue
            with self._changed:
                if job not in self._active:  # _die() has failed it
                    continue
                self._active.remove(job)
            _resolve(job)

    def _admit(self) -> None:
        with self._changed:
            if not self._queue:
                return
            if self._active:
                # Whoever is active keeps the stepping loop alive; unless it is ending, what
                # is added now is stepped too.
                if self._stepping:
                    self._add_all()
                return
            if self._stepping or self._wanted:
                return
            self._opened.clear()
            self._admitted.clear()
            self._wanted = self._stepping = True
            self._changed.notify_all()
        self._opened.wait()
        with self._changed:
            if not self.dead:
                self._add_all()
        self._admitted.set()

    def _add_all(self) -> None:
        jobs, self._queue = self._queue, []
        for job in jobs:
            if job.future.cancelled():
                continue
            try:
                job._handle = self._add(job)
            except Exception as error:
                text = " ".join(str(error).split())[-200:]
                _fail([job], Permanent(f"The engine refused it: {text}", endpoint="local"))
            else:
                self._active.append(job)

    def _add(self, job: Job) -> Any:
        import openvino_genai

        config = openvino_genai.GenerationConfig(**job.options)
        config.set_eos_token_id(self._tokenizer.get_eos_token_id())
        if job.grammar is not None:
            config.structured_output_config = openvino_genai.StructuredOutputConfig(
                grammar=job.grammar
            )
        return self._pipeline.add_request(next(_request_ids), _tensor(job.prompt), config)


def _tensor(token_ids: list[int]) -> Any:
    import numpy
    import openvino  # type: ignore[import-untyped,unused-ignore]  # no stubs

    return openvino.Tensor(numpy.array([token_ids], dtype=numpy.int64))


def _opener(opened: threading.Event, admitted: threading.Event) -> Any:
    import openvino_genai

    class Opener(openvino_genai.StreamerBase):  # type: ignore[misc]  # the runtime is untyped
        def write(self, _token: object) -> Any:
            opened.set()
            admitted.wait()
            return openvino_genai.StreamingStatus.STOP

        def end(self) -> None:
            pass

    return Opener()


def _read(job: Job) -> bool:
    """Take over new tokens; return True if there will be no more."""
    status = job._handle.get_status().name
    if status == "RUNNING" and job.on_tokens is None:
        return False
    fresh: list[int] = []
    while job._handle.can_read():
        for output in job._handle.read().values():
            fresh += output.generated_ids
            job._result.logprobs += output.generated_log_probs
            reason = output.finish_reason.name
            job._ended |= reason != "NONE"
            job._result.finish_reason = "length" if reason == "LENGTH" else "stop"
    job._result.token_ids += fresh
    if fresh and job.on_tokens is not None:
        job.on_tokens(fresh)
    # The status says FINISHED a moment before the last tokens can be read.
    return job._ended or status not in {"RUNNING", "FINISHED"}


def _resolve(job: Job) -> None:
    if not job.future.set_running_or_notify_cancel():
        return
    if job._handle.get_status().name == "IGNORED":
        message = "The request does not fit the embedded engine's KV cache."
        job.future.set_exception(Permanent(message, endpoint="local"))
    else:
        job.future.set_result(job._result)


def _fail(jobs: list[Job], error: Exception) -> None:
    for job in jobs:
        if job.future.set_running_or_notify_cancel():
            job.future.set_exception(error)


def _load_error(path: Path, error: Exception) -> ConfigError:
    if isinstance(error, ConfigError):
        return error
    text = " ".join(str(error).split())[-200:]
    return ConfigError(
        f"OpenVINO cannot load the model {path} ({text}).",
        hint="Another GGUF file may work; for the embedded one run: scaleinfer model install",
    )
