"""The embedded engine against llama.cpp's server: tokens a second, load time, memory.

Run one engine at a time, each in a process of its own, on an otherwise idle machine:

    python tests/benchmarks/bench_local.py openvino
    python tests/benchmarks/bench_local.py openvino-exact
    python tests/benchmarks/bench_local.py xllamacpp      # pip install xllamacpp

Every prompt differs from its first words on, so no prefix cache helps either engine; every
answer has exactly 64 tokens. Figures are medians of three rounds. CPU milliseconds per token
change little when other processes use the machine; tokens per second do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

ANSWER_TOKENS = 64
LEVELS = (1, 4, 16, 64)
ROUNDS = 3


def prompt(number: int) -> str:
    """Return a prompt of about 60 tokens in the chat template."""
    return (
        f"Sample {number}: classify the solubility of this molecule in water. Molecules with "
        "polar groups dissolve well, hydrocarbons do not. Explain your reasoning in words."
    )


def memory_mb() -> int:
    """Return the resident memory of this process in MB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmRSS:")[1].split()[0]) // 1024


def measure(run: Callable[[int, int], int], load_s: float, name: str) -> None:
    """Print one row for each number of calls in flight; `run(first, count)` returns tokens."""
    print(f"{name}: load {load_s:.1f} s, {memory_mb()} MB")
    run(0, 2)
    first = 10
    for level in LEVELS:
        rates, costs = [], []
        for _ in range(ROUNDS):
            wall, cpu = time.perf_counter(), time.process_time()
            tokens = run(first, level)
            first += level
            rates.append(tokens / (time.perf_counter() - wall))
            costs.append((time.process_time() - cpu) / tokens * 1000)
        print(
            f"{level:>3} in flight: {statistics.median(rates):6.0f} tokens/s, "
            f"{statistics.median(costs):5.1f} CPU ms/token, {memory_mb()} MB",
            flush=True,
        )


def bench_openvino(model: Path, *, exact: bool) -> None:
    """Measure the embedded engine as the library uses it."""
    from scaleinfer.backends.local import LocalBackend
    from scaleinfer.requests import Request, Sampling

    sampling = Sampling(max_tokens=ANSWER_TOKENS, extra={"ignore_eos": True})
    backend = LocalBackend(model, exact=exact)

    async def many(first: int, count: int) -> int:
        requests = [
            Request(messages=[{"role": "user", "content": prompt(i)}], sampling=sampling)
            for i in range(first, first + count)
        ]
        answers = await asyncio.gather(*(backend.complete(one) for one in requests))
        return sum(answer.usage.completion_tokens for answer in answers)

    with asyncio.Runner() as runner:
        began = time.perf_counter()
        runner.run(backend.engine())
        load = time.perf_counter() - began
        name = "openvino-genai, exact" if exact else "openvino-genai"
        measure(lambda first, count: runner.run(many(first, count)), load, name)


def bench_xllamacpp(model: Path) -> None:
    """Measure llama.cpp's server, asked in process, without HTTP."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import xllamacpp  # type: ignore[import-not-found,import-untyped,unused-ignore]  # no stubs

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_parallel = max(LEVELS)
    params.n_ctx = 256 * max(LEVELS)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count() or 1
    began = time.perf_counter()
    server = xllamacpp.Server(params)
    load = time.perf_counter() - began

    def one(number: int) -> int:
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": prompt(number)}],
            "max_tokens": ANSWER_TOKENS, "temperature": 0, "ignore_eos": True,
        }  # fmt: skip
        answer = server.handle_chat_completions(body)
        answer = json.loads(answer) if isinstance(answer, str | bytes) else answer
        return int(answer["usage"]["completion_tokens"])

    with ThreadPoolExecutor(max(LEVELS)) as pool:
        measure(lambda first, n: sum(pool.map(one, range(first, first + n))), load, "xllamacpp")


def main() -> None:
    """Run the engine named on the command line."""
    from scaleinfer.backends._local_files import model_path

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("engine", choices=["openvino", "openvino-exact", "xllamacpp"])
    parser.add_argument("--model", type=Path, default=model_path())
    chosen = parser.parse_args()
    if chosen.engine == "xllamacpp":
        bench_xllamacpp(chosen.model)
    else:
        bench_openvino(chosen.model, exact=chosen.engine == "openvino-exact")


if __name__ == "__main__":
    main()
