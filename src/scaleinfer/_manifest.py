"""What a run was: the program's fingerprint and the facts a journal keeps. Holds no secrets."""

from __future__ import annotations

import getpass
import hashlib
import importlib.metadata
import inspect
import os
import platform
import socket
import sys
from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer._git import git_state, source_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import BaseModel

    from scaleinfer.backends import Backend
    from scaleinfer.requests import Sampling

__all__ = ["describe_run", "source_of"]

_PACKAGES = (
    "scaleinfer", "pydantic", "aiohttp", "orjson", "genai-prices", "openai", "openvino-genai",
    "langgraph", "langchain-core", "academy-py", "parsl", "globus-compute-sdk",
)  # fmt: skip
_MOST_ENDPOINTS = 100


def describe_run(
    *,
    backends: Sequence[Backend],
    prompt_fn: Any,
    system: str | None,
    schema: type[BaseModel] | None,
    sampling: Sampling,
    program: bool = False,
    parameters: Mapping[str, Any] | None = None,
    keep_prompts: bool = True,
) -> tuple[str, dict[str, Any]]:
    """Return a run's fingerprint and its facts.

    Runs of the same program (prompts, model, sampling, schema) have the same fingerprint,
    whatever the items, so that a resumed run is known as such. May ask `git` for its state, for
    two seconds at the most.

    Args:
        backends: Where it asks, the first one's model counting.
        prompt_fn: The template, function or program.
        system: The system message.
        schema: The answer's schema.
        sampling: The sampling parameters.
        program: True if `prompt_fn` is a program or graph that asks by itself.
        parameters: The other arguments of the map.
        keep_prompts: False to keep a template's text out of the facts; its hash stays.
    """
    from scaleinfer.journal import redact_data

    backend = backends[0]
    asked = {
        "prompt_fn": _hash(source_of(prompt_fn)),
        "system": None if system is None else _hash(system),
        "schema": None if schema is None else _hash(_json(schema.model_json_schema())),
        "sampling": sampling.to_body(),
        "model": backend.model,
    }
    template = isinstance(prompt_fn, str) and keep_prompts
    facts = {
        "program": asked,
        "kind": "program" if program else "prompts",
        "prompt_fn": prompt_fn if template else _name(prompt_fn),
        "schema": None if schema is None else schema.__name__,
        "backend": backend.kind,
        "endpoint": backend.endpoint,
        "endpoints": [one.endpoint for one in backends[:_MOST_ENDPOINTS]],
        "parameters": dict(parameters or {}),
        "git": git_state(source_folder(prompt_fn)),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _versions(),
        "user": _user(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "argv0": sys.argv[0] if sys.argv else "",
    }
    # Reports show the facts too.
    return _hash(_json(asked)), redact_data(orjson.loads(_json(facts)))


def _user() -> str:
    """Return who runs this: the login name, else the number of the user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return str(os.getuid()) if hasattr(os, "getuid") else ""


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
