"""What a node's server may be, and what becomes of it in JSON, arguments and environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scaleinfer.errors import ConfigError
from scaleinfer.fleet.node_server import NodeServer

VLLM = ["vllm", "serve", "MODEL", "--host", "{host}", "--port", "{port}"]


def test_port_host_and_index_are_filled_in_and_other_braces_stay() -> None:
    server = NodeServer(
        [*VLLM, "--seed", "{index}", "--override", '{"top_k": 1}'], env={"CACHE": "/tmp/{index}"}
    )
    assert server.arguments(3, 20_001) == [
        "vllm", "serve", "MODEL", "--host", "127.0.0.1", "--port", "20001",
        "--seed", "3", "--override", '{"top_k": 1}',
    ]  # fmt: skip
    assert server.environment(3, 20_001, {"PATH": "/bin"}) == {"PATH": "/bin", "CACHE": "/tmp/3"}


def test_without_port_in_the_command_it_is_in_the_environment() -> None:
    server = NodeServer(["serve-it"])
    assert server.environment(0, 20_001, {"PORT": "1"}) == {"PORT": "20001"}
    named = NodeServer(["serve-it"], env={"LISTEN": "{host}:{port}"})
    assert named.environment(0, 20_001, {}) == {"LISTEN": "127.0.0.1:20001"}


def test_a_variable_can_be_taken_away() -> None:
    server = NodeServer(VLLM, env={"PMI_RANK": None, "A": "1"})
    assert server.environment(0, 1, {"PMI_RANK": "7", "A": "0", "B": "2"}) == {"A": "1", "B": "2"}


@pytest.mark.parametrize(
    "pin",
    [
        {"ZE_AFFINITY_MASK": "{index}"},
        [{"ZE_AFFINITY_MASK": "0"}, {"ZE_AFFINITY_MASK": "1"}, {"ZE_AFFINITY_MASK": "2"}],
    ],
)
def test_each_server_has_its_own_pin(pin: Any) -> None:
    server = NodeServer(VLLM, per_node=3, pin=pin)
    environments = [server.environment(i, 1, {}) for i in range(3)]
    assert [e["ZE_AFFINITY_MASK"] for e in environments] == ["0", "1", "2"]


@pytest.mark.parametrize(
    "server",
    [
        NodeServer(VLLM),
        NodeServer(
            ["/opt/my server", "{port}"], name="mine", health="/ping", ready_timeout=1800,
            per_node=2, pin=[{"A": "0"}, {"A": "1"}], env={"B": "x", "C": None}, model="m",
            api="/api/v2/", restarts=0, check_every=1, check_timeout=2.5, failed_checks=9,
            stop_timeout=0, log_folder=Path("/logs"),
        ),
    ],
)  # fmt: skip
def test_json_there_and_back(server: NodeServer) -> None:
    data = json.loads(json.dumps(server.to_dict()))
    assert NodeServer.from_dict(data) == server
    assert NodeServer.from_dict(data).to_dict() == data


def test_names() -> None:
    assert NodeServer(["/opt/my server+"]).name == "my-server"
    assert NodeServer(["++"]).name == "server"
    assert NodeServer(VLLM, api="/").api == ""
    assert "secret" not in repr(NodeServer(VLLM, env={"TOKEN": "secret"}))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"command": "vllm serve"}, "shlex"),
        ({"command": []}, "name a program"),
        ({"command": [""]}, "name a program"),
        ({"command": ["a", 1]}, "must hold texts"),
        ({"command": ["a\0"]}, "must hold texts"),
        ({"command": ["vllm", "serve", "--port", "8000"]}, "port of its own"),
        ({"command": ["vllm", "serve", "--port=8000"]}, "port of its own"),
        ({"name": "a/b"}, "log file"),
        ({"health": "health"}, "health must be a path"),
        ({"api": "v1"}, "api must be a path"),
        ({"per_node": 0}, "per_node"),
        ({"per_node": True}, "per_node"),
        ({"restarts": -1}, "restarts"),
        ({"failed_checks": 0}, "failed_checks"),
        ({"ready_timeout": 0}, "ready_timeout"),
        ({"ready_timeout": float("nan")}, "ready_timeout"),
        ({"check_every": "5"}, "check_every"),
        ({"check_timeout": -1.0}, "check_timeout"),
        ({"stop_timeout": float("inf")}, "stop_timeout"),
        ({"env": ["A"]}, "env must map"),
        ({"env": {"A=B": "1"}}, "cannot name"),
        ({"env": {"A": 1}}, "must be a text"),
        ({"pin": {"A": None}}, "must be a text"),
        ({"pin": "0"}, "pin must be"),
        ({"pin": {"A": "0"}, "per_node": 2}, "the same device"),
        ({"pin": [{"A": "0"}], "per_node": 2}, "1 mappings for per_node=2"),
    ],
)
def test_what_cannot_be(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        NodeServer.from_dict({"command": VLLM} | arguments)


def test_json_of_another_version() -> None:
    with pytest.raises(ConfigError, match=r"no field gpus.*versions"):
        NodeServer.from_dict({"command": VLLM, "gpus": 2})
    with pytest.raises(ConfigError, match="needs a command"):
        NodeServer.from_dict({"name": "a"})
