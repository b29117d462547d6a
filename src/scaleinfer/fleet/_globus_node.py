"""What a Globus Compute worker runs: a function whose source travels, and what it answers.

The function must not lean on this module, on one version of scaleinfer or on one version of
Python: Globus Compute takes its text to the node and runs it there. Its answer is JSON text, so
nothing is unpickled on either side.
"""

from __future__ import annotations

import json
from typing import Any

from scaleinfer.errors import ConfigError, ScaleInferError, WorkerLost, error_from_dict


def run_on_node(entry: str, spec: str) -> str:
    """Import `entry` ("module:function") on the node, call it with `spec`, and say how it went.

    Returns:
        JSON: `node`, `python`, `python_version`, `scaleinfer` (its version there, or null), and
        either `summary` (the function's answer), `missing` (why it cannot be imported) or
        `failed` (what it raised).
    """
    import contextlib
    import importlib
    import json
    import platform
    import sys
    import traceback
    from importlib import metadata

    answer: dict[str, object] = {
        "node": platform.node(),
        "python": sys.executable,
        "python_version": platform.python_version(),
        "scaleinfer": None,
    }
    with contextlib.suppress(metadata.PackageNotFoundError):
        answer["scaleinfer"] = metadata.version("scaleinfer")
    module, _, name = entry.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        answer["missing"] = str(error)
        return json.dumps(answer)
    try:
        answer["summary"] = function(spec)
    except (Exception, SystemExit) as error:
        failed: dict[str, object] = {"type": type(error).__name__, "message": str(error)}
        if hasattr(error, "to_dict"):
            failed["error"] = error.to_dict()
        failed["traceback"] = traceback.format_exc()
        answer["failed"] = failed
    return json.dumps(answer)


def read_answer(text: str, *, where: str, version: str) -> str:
    """Return the summary within a node's answer, or raise what went wrong there.

    Args:
        text: What `run_on_node` returned.
        where: The endpoint, as messages name it.
        version: The version of scaleinfer on this side.

    Raises:
        ConfigError: scaleinfer cannot be imported on the node, or the worker said so itself.
        WorkerLost: the worker failed, or the answer makes no sense.
    """
    try:
        answer: dict[str, Any] = json.loads(text)
        node = f"node {answer['node']}"
    except (ValueError, TypeError, KeyError) as error:
        raise WorkerLost(f"{where} gave an answer that no worker gives: {text!r:.200}") from error
    if "missing" in answer:
        raise _missing(answer, where=where, node=node, version=version)
    if "failed" in answer:
        raise _failed(answer, where=where, node=node, version=version)
    return str(answer["summary"])


def _missing(answer: dict[str, Any], *, where: str, node: str, version: str) -> ConfigError:
    python = f"{answer['python']} (Python {answer['python_version']})"
    theirs = answer["scaleinfer"]
    if theirs is None:
        said = f"scaleinfer is not installed on {node} of {where} for {python}."
    else:
        said = (
            f"scaleinfer {theirs} on {node} of {where}, for {python}, cannot run a worker: "
            f"{answer['missing']}."
        )
    hint = (
        f"Install it there: `{answer['python']} -m pip install scaleinfer=={version}`. If it is "
        "in another environment, activate that with worker_init=..."
    )
    return ConfigError(said, hint=hint)


def _failed(answer: dict[str, Any], *, where: str, node: str, version: str) -> ScaleInferError:
    failed, theirs = answer["failed"], answer["scaleinfer"]
    hint = ""
    if theirs not in {None, version}:
        hint = (
            f"The node has scaleinfer {theirs}, this side {version}: install the same on both, "
            "then try again."
        )
    error: ScaleInferError
    if "error" in failed:
        error = error_from_dict(failed["error"])
        error.message = f"{error.message} ({node} of {where})"
        error.hint = " ".join(filter(None, (error.hint, hint)))
    else:
        error = WorkerLost(
            f"the worker on {node} of {where} failed: {failed['type']}: {failed['message']}",
            hint=hint,
        )
    error.add_note(f"On {node}:\n{failed['traceback']}")
    return error
