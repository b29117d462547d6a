"""`python -m scaleinfer.testing`: the simulated server as a command."""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer._loop import new_event_loop
from scaleinfer.errors import ConfigError
from scaleinfer.testing._batch_settings import BatchApi
from scaleinfer.testing._batching_settings import Batching
from scaleinfer.testing._changes import Change
from scaleinfer.testing._faults import Fault
from scaleinfer.testing._process import serve_in_this_process
from scaleinfer.testing._server import SimulatedServer

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
--change KEYWORD=VALUE[,KEYWORD=VALUE...] changes the server at a time, such as
  --change at=30,slots=400      --change at=60,until=90,slowdown=3
  --change at=120,until=180,down=true
--step or --kv-tokens (or any other option of the batch) makes it batch continuously.
Each line of output is a base URL; SIGTERM or Ctrl-C ends the servers. GET /ledger has what
happened, POST /control changes a server: {"slots": 100}."""


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


def parse_change(text: str) -> Change:
    """Return the change that a command line names.

    Raises:
        argparse.ArgumentTypeError: It does not take that.
    """
    keywords: dict[str, Any] = {}
    for option in text.split(","):
        keyword, equals, value = option.partition("=")
        if not equals:
            raise argparse.ArgumentTypeError(f"{option!r} is not KEYWORD=VALUE")
        keywords[keyword] = "503" if value == "503" else _value(value)
    try:
        return Change(**keywords)
    except (TypeError, ValueError, ConfigError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error


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
    made.add_argument("--batch-seconds", type=float, help="serve /v1/batches; seconds of a batch")
    made.add_argument("--count", type=int, default=1, help="so many servers, on one core")
    _add_limits(made.add_argument_group("limits and changes"))
    _add_batching(made.add_argument_group("continuous batching"))
    return made


def _add_limits(made: argparse._ArgumentGroup) -> None:
    made.add_argument("--requests-per-second", type=float, help="429 above that")
    made.add_argument("--requests-per-minute", type=float, help="429 above that")
    made.add_argument("--tokens-per-minute", type=float, help="429 above that")
    made.add_argument("--burst", type=float, dest="burst_s", help="SECONDS' worth at once")
    made.add_argument("--retry-after", choices=("seconds", "date", "ms", "none"), default="seconds")
    made.add_argument("--rate-limit-headers", action="store_true", help="x-ratelimit-*")
    made.add_argument("--max-waiting", type=int, help="503 when so many wait")
    made.add_argument("--change", type=parse_change, action="append", default=[], dest="changes")
    made.add_argument("--load-report", action=argparse.BooleanOptionalAction)


def _add_batching(made: argparse._ArgumentGroup) -> None:
    made.add_argument("--step", type=float, dest="step_s", help="seconds of a step")
    made.add_argument("--step-per-sequence", type=float, dest="step_per_sequence_s")
    made.add_argument("--prefill-tokens-per-second", type=float, dest="prefill_tokens_per_s")
    made.add_argument("--kv-tokens", type=int)
    made.add_argument("--kv-thrash", type=float)
    made.add_argument("--prefix-cache-tokens", type=int)
    made.add_argument("--prefix-block-tokens", type=int)


_BATCHING = [field.name for field in fields(Batching) if field.name != "slots"]


def options_of(arguments: Sequence[str] | None) -> dict[str, Any]:
    """Return a command line's options: arguments of `SimulatedServer`, and `count`.

    Raises:
        ConfigError: A value that cannot be.
    """
    options = vars(parser().parse_args(arguments))
    options["models"] = options["models"] or ["sim-model"]
    if options["json_schema"] == "answer":
        options["json_schema"] = True
    if (seconds := options.pop("batch_seconds")) is not None:
        options["batches"] = BatchApi(seconds=seconds)
    if options["retry_after"] == "none":
        options["retry_after"] = None
    batching = {name: options.pop(name) for name in _BATCHING}
    batching = {name: value for name, value in batching.items() if value is not None}
    if batching:
        if (slots := options.pop("slots")) is not None:
            batching["slots"] = slots
        options["batching"] = Batching(**batching)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status (2: it could not start)."""
    try:
        settings = options_of(arguments)
        count, port = settings.pop("count"), settings.pop("port")
        ports = [port + i if port else 0 for i in range(count)]
        servers = [SimulatedServer(port=one, **settings) for one in ports]
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(serve_in_this_process(servers, _print_url))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _print_url(server: SimulatedServer) -> None:
    print(server.base_url, flush=True)


if __name__ == "__main__":
    sys.exit(main())
