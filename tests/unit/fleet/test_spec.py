"""What a worker is started with survives its way, and is checked."""

from __future__ import annotations

import pytest

from scaleinfer import Concurrency, ConfigError, OpenAIBackend, RateLimit, Retry
from scaleinfer.backends import LocalBackend
from scaleinfer.fleet import Fleet, NodeServer, WorkerSpec
from scaleinfer.fleet._options import model_of, spec_of
from scaleinfer.fleet._spec import node_backends


def test_a_spec_survives_json() -> None:
    spec = spec_of(
        {
            "backend": ["openai", "http://127.0.0.1:1/v1"],
            "model": "m",
            "concurrency": Concurrency(2, None, 8),
            "rate_limit": RateLimit(requests_per_minute=60),
            "retry": Retry(attempts=3),
        },
        fleet="f",
        secret="s",
    )
    again = WorkerSpec.from_json(spec.to_json())
    assert again == spec
    assert again.concurrency_or_none() == Concurrency(2, None, 8)
    assert again.rate_limit_or_none() == RateLimit(requests_per_minute=60)
    assert again.retry_rules() == Retry(attempts=3)
    assert again.node_server() is None


def test_a_server_survives_json() -> None:
    server = NodeServer(["vllm", "serve", "m", "--port", "{port}"], model="m", per_node=2)
    spec = WorkerSpec.from_json(spec_of({"server": server}, fleet="f", secret="").to_json())
    assert spec.node_server() == server
    assert model_of(spec) == "m"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"exchange": "x", "new_field": 1}', '{"a": 1}'])
def test_what_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="spec"):
        WorkerSpec.from_json(text)


def test_an_adapter_does_not_travel() -> None:
    with pytest.raises(ConfigError, match="cannot travel"):
        Fleet.local(1, backend=OpenAIBackend("http://127.0.0.1:1/v1"))  # type: ignore[arg-type] # the mistake itself
    with pytest.raises(ConfigError, match="leave out backend"):
        Fleet.local(1, backend="local", server=NodeServer(["x"]))
    with pytest.raises(ConfigError, match="concurrency"):
        Fleet.local(1, concurrency=0)


@pytest.mark.parametrize(
    "numbers",
    [{"workers": 0}, {"workers": 2, "min_workers": 3}, {"workers": 2, "max_workers": 1}],
)
def test_numbers_of_workers_that_do_not_fit(numbers: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        Fleet.local(**numbers)  # type: ignore[arg-type] # each is a number


def test_adapters_are_made_on_the_node() -> None:
    [local] = node_backends(["local"])
    assert isinstance(local, LocalBackend)
    [remote] = node_backends([], base_url="http://127.0.0.1:1/v1", model="m")
    assert (remote.endpoint, remote.model) == ("http://127.0.0.1:1/v1", "m")
    [own] = node_backends(["tests.integration.fleet.adapters:idle"])
    assert own.kind == "idle"
    given = OpenAIBackend("http://127.0.0.1:1/v1")
    assert node_backends([given]) == [given]


@pytest.mark.parametrize("spec", ["no_such:make", "json:no_such", "json:loads", "builtins:dict"])
def test_a_function_that_makes_no_adapter(spec: str) -> None:
    with pytest.raises(ConfigError):
        node_backends([spec])


def test_globus_compute_needs_an_exchange_that_both_sides_reach() -> None:
    with pytest.raises(ConfigError, match="needs an exchange"):
        Fleet.globus_compute("4b116d3c-1703-4f8f-9f6f-39921e5864df")
