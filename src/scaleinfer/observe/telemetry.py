"""`Telemetry`: what a run tells the outside: OpenTelemetry, Prometheus, structured logs.

Off unless configured, for the whole process:

```python
from scaleinfer.observe import Telemetry, configure

configure(Telemetry(spans=0.01, metrics=True, logs=True))
configure(None)  # off again
```

or by the variable `SCALEINFER_TELEMETRY`, for instance `spans=0.01,metrics,prometheus=9464`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from scaleinfer.observe._prometheus import Exposition
    from scaleinfer.observe._sinks import RunFacts, Sink

__all__ = ["Telemetry", "check_telemetry", "configure", "metrics_url", "open_sinks"]

VARIABLE = "SCALEINFER_TELEMETRY"
_LAST_PORT = 65535


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What is told to whom. Prompts and answers never are.

    Attributes:
        spans: Share of the items whose calls become OpenTelemetry spans, 0 to 1. They go to the
            process's own tracer provider.
        metrics: True for OpenTelemetry metrics, which go to the process's own meter provider.
        prometheus: Port of a Prometheus endpoint on 127.0.0.1; 0 takes a free one.
        logs: True for records on the loggers `scaleinfer.runs` and `scaleinfer.calls`.
        error_texts: True to put the messages of errors into spans and logs. A server's message
            may quote a prompt.

    Raises:
        ConfigError: A value makes no sense.
    """

    spans: float = 0.0
    metrics: bool = False
    prometheus: int | None = None
    logs: bool = False
    error_texts: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.spans <= 1:
            raise ConfigError(f"Telemetry(spans=) is a share from 0 to 1, not {self.spans}.")
        port = self.prometheus
        if port is not None and (isinstance(port, bool) or not 0 <= port <= _LAST_PORT):
            raise ConfigError(f"Telemetry(prometheus=) is a port, not {port}.")

    @classmethod
    def parse(cls, text: str) -> Telemetry:
        """Return what a text such as `spans=0.01,metrics,prometheus=9464` says.

        Raises:
            ConfigError: It makes no sense.
        """
        known = {field.name for field in fields(cls)}
        given: dict[str, float | bool | int] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = part.partition("=")
            if name not in known:
                raise ConfigError(
                    f"{VARIABLE} has {name!r}, which is unknown.",
                    hint=f"Known: {', '.join(sorted(known))}.",
                )
            try:
                if name == "spans":
                    given[name] = float(value)
                elif name == "prometheus":
                    given[name] = int(value)
                else:
                    given[name] = _truth(value)
            except ValueError:
                raise ConfigError(f"{VARIABLE} has {part!r}, whose value is none.") from None
        return cls(**given)  # type: ignore[arg-type]  # each has the type of its field


def _truth(value: str) -> bool:
    known = {"": True, "1": True, "true": True, "0": False, "false": False}
    if value.lower() not in known:
        raise ValueError(value)
    return known[value.lower()]


class _Process:
    """What this process has configured."""

    telemetry: Telemetry | None = None
    read_variable = False
    exposition: Exposition | None = None


def configure(telemetry: Telemetry | None) -> None:
    """Set what runs that start from now on tell the outside; `None` ends all of it.

    Raises:
        ConfigError: A package is missing, or the port is taken.
    """
    exposition = None
    if telemetry is not None:
        if telemetry.spans or telemetry.metrics:
            from scaleinfer.observe._otel import require

            require()
        before = _Process.telemetry
        if before is not None and before.prometheus == telemetry.prometheus:
            exposition = _Process.exposition
        elif telemetry.prometheus is not None:
            from scaleinfer.observe._prometheus import Exposition

            exposition = Exposition(telemetry.prometheus)
    if _Process.exposition is not None and _Process.exposition is not exposition:
        _Process.exposition.close()
    _Process.telemetry, _Process.exposition, _Process.read_variable = telemetry, exposition, True


def metrics_url() -> str | None:
    """Return the address of this process's Prometheus endpoint; `None` without one."""
    return None if _Process.exposition is None else _Process.exposition.url


def check_telemetry() -> None:
    """Take up what the variable `SCALEINFER_TELEMETRY` says, if nothing was configured.

    Raises:
        ConfigError: It makes no sense, or as `configure`.
    """
    if not _Process.read_variable:
        text = os.environ.get(VARIABLE, "")
        configure(Telemetry.parse(text) if text else None)


def open_sinks(facts: RunFacts, *, quotes: bool = True) -> list[Sink]:
    """Return what is to be told of a run.

    Args:
        facts: The run.
        quotes: False if nothing may be told that quotes a prompt.
    """
    telemetry = _Process.telemetry
    sinks: list[Sink] = []
    if telemetry is None:
        return sinks
    error_texts = telemetry.error_texts and quotes
    if telemetry.spans:
        from scaleinfer.observe._otel import Spans

        sinks.append(Spans(facts, telemetry.spans, error_texts=error_texts))
    if telemetry.metrics:
        from scaleinfer.observe._otel import Metrics

        sinks.append(Metrics(facts))
    if _Process.exposition is not None:
        sinks.append(_Process.exposition.sink(facts))
    if telemetry.logs:
        from scaleinfer.observe._records import Records

        sinks.append(Records(facts, error_texts=error_texts))
    return sinks
