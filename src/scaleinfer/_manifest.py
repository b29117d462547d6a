"""What a run was: the program's fingerprint and the facts a journal keeps. Holds no secrets."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import os
import platform
import socket
import sys
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from pydantic import BaseModel

    from scaleinfer.backends import Backend
    from scaleinfer.requests import Sampling

__all__ = ["describe_run", "source_of"]

_PACKAGES = ("scaleinfer", "pydantic", "aiohttp", "openai", "openvino-genai")


def describe_run(
    *,
    backend: Backend,
    prompt_fn: Any,
    system: str | None,
    schema: type[BaseModel] | None,
    sampling: Sampling,
) -> tuple[str, dict[str, Any]]:
    """Return a run's fingerprint and its facts.

    Runs of the same program (prompts, model, sampling, schema) have the same fingerprint,
    whatever the items, so that a resumed run is known as such.
    """
    program = {
        "prompt_fn": _hash(source_of(prompt_fn)),
        "system": None if system is None else _hash(system),
        "schema": None if schema is None else _hash(_json(schema.model_json_schema())),
        "sampling": sampling.to_body(),
        "model": backend.model,
    }
    facts = {
        "program": program,
        "prompt_fn": prompt_fn if isinstance(prompt_fn, str) else _name(prompt_fn),
        "schema": None if schema is None else schema.__name__,
        "backend": backend.kind,
        "endpoint": backend.endpoint,
        "python": platform.python_version(),
        "packages": _versions(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "argv0": sys.argv[0] if sys.argv else "",
    }
    return _hash(_json(program)), orjson.loads(_json(facts))


def source_of(prompt_fn: Any) -> str:
    """Return what stands for the function's source: its text, else its bytecode.

    A lambda typed into a plain interpreter has no source text.
    """
    if isinstance(prompt_fn, str):
        return prompt_fn
    try:
        return inspect.getsource(prompt_fn)
    except (OSError, TypeError):
        pass
    code = getattr(prompt_fn, "__code__", None)
    if code is None and callable(prompt_fn):
        code = getattr(type(prompt_fn).__call__, "__code__", None)
    if code is None:
        # A compiled graph is told apart by its nodes.
        return f"{_name(prompt_fn)} {sorted(map(str, getattr(prompt_fn, 'nodes', ())))}"
    # Nested code objects show their address, which differs in every process.
    constants = [const for const in code.co_consts if not inspect.iscode(const)]
    return f"{code.co_code.hex()} {code.co_names} {constants!r}"


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _name(value: Any) -> str:
    name = getattr(value, "__qualname__", None) or type(value).__qualname__
    return f"{getattr(value, '__module__', '')}.{name}"


def _json(value: Any) -> bytes:
    return orjson.dumps(value, default=str, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)


def _hash(value: str | bytes) -> str:
    data = value.encode() if isinstance(value, str) else value
    return hashlib.blake2b(data, digest_size=16).hexdigest()
