"""`python -m scaleinfer.testing`: the simulated server as a command."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer.errors import ConfigError
from scaleinfer.testing._faults import Fault
from scaleinfer.testing._process import serve_in_this_process
from scaleinfer.testing._server import SimulatedServer
from scaleinfer.testing._thread import new_event_loop

if TYPE_CHECKING:
    from collections.abc import Sequence

_KINDS = (
    "status", "delay", "drop", "reset", "stall", "truncate", "malformed", "html",
    "wrong_content_type", "slow_drip", "empty_choices", "keepalive_close",
)  # fmt: skip
_EPILOG = """\
--fault NAME[:ARGUMENT][,KEYWORD=VALUE...] adds a fault, such as
  --fault status:503,rate=0.2   --fault status:429,retry_after=0.5,first=2
  --fault drop,rate=0.01        --fault status:503,after=60,until=120
The first line of output is the base URL; SIGTERM or Ctrl-C ends the server."""


def parse_fault(text: str) -> Fault:
    """Return the fault that a command line names.

    Raises:
        argparse.ArgumentTypeError: There is no such fault, or it does not take that.
    """
    head, *options = text.split(",")
    name, _, argument = head.partition(":")
    if name not in _KINDS:
        raise argparse.ArgumentTypeError(f"no fault {name!r}; known: {', '.join(_KINDS)}")
    keywords = {}
    for option in options:
        keyword, equals, value = option.partition("=")
        if not equals:
            raise argparse.ArgumentTypeError(f"{option!r} is not KEYWORD=VALUE")
        keywords[keyword] = _value(value)
    arguments = [_value(argument)] if argument else []
    try:
        fault: Fault = getattr(Fault, name)(*arguments, **keywords)
    except (TypeError, ConfigError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
    return fault


def parse_latency(text: str) -> float | tuple[float, float]:
    """Return `0.03` as a number, `0.03,0.01` as mean and jitter."""
    mean, comma, jitter = text.partition(",")
    return (float(mean), float(jitter)) if comma else float(mean)


def _value(text: str) -> Any:
    """Return a number or a boolean if it is one, else the text."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    made = argparse.ArgumentParser(
        prog="python -m scaleinfer.testing",
        description="An OpenAI-compatible simulated server on 127.0.0.1.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--port", type=int, default=0, help="0 (the default) takes a free one")
    made.add_argument("--latency", type=parse_latency, default=0.0, help="SECONDS or MEAN,JITTER")
    made.add_argument("--fault", type=parse_fault, action="append", default=[], dest="faults")
    made.add_argument("--model", action="append", dest="models", help="may be given again")
    made.add_argument("--slots", type=int, help="requests served at once; the rest wait")
    made.add_argument("--tokens-per-second", type=float, help="pace of each answer")
    made.add_argument("--answer-tokens", type=int, help="length of each answer")
    made.add_argument("--max-prompt-tokens", type=int, help="longer prompts are refused")
    made.add_argument("--api-key", help="key that requests must bear")
    made.add_argument("--dialect", choices=("openai", "vllm"), default="openai")
    made.add_argument("--json-schema", choices=("answer", "refuse", "ignore"), default="answer")
    made.add_argument("--ledger", choices=("full", "counts"), default="full")
    made.add_argument("--keep-bodies", action="store_true")
    made.add_argument("--seed", type=int, default=0)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status (2: it could not start)."""
    options = vars(parser().parse_args(arguments))
    options["models"] = options["models"] or ["sim-model"]
    if options["json_schema"] == "answer":
        options["json_schema"] = True
    try:
        server = SimulatedServer(**options)
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(serve_in_this_process(server, _print_url))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _print_url(server: SimulatedServer) -> None:
    print(server.base_url, flush=True)


if __name__ == "__main__":
    sys.exit(main())
