from __future__ import annotations

from typing import Any

import pytest

from scaleinfer.backends import OpenAIBackend, resolve_backend
from scaleinfer.errors import ConfigError

URL = "http://127.0.0.1:9/v1"
OTHER = "http://127.0.0.1:10/v1"


def test_an_adapter_is_taken_as_it_is() -> None:
    backend = OpenAIBackend(URL)
    resolved = resolve_backend(backend)
    assert resolved.backend is backend
    assert not resolved.by_default
    for extra in ({"base_url": OTHER}, {"api_key": "k"}):
        with pytest.raises(ConfigError, match="its own address and key"):
            resolve_backend(backend, **extra)


def test_a_model_named_beside_an_adapter_is_not_forgotten() -> None:
    backend = OpenAIBackend(URL, model="small")
    with pytest.raises(ConfigError, match="model"):
        resolve_backend(backend, model="big")
    assert resolve_backend(backend, model="small").backend is backend


@pytest.mark.parametrize(
    ("arguments", "environment", "endpoint", "reason"),
    [
        ({"base_url": URL}, {}, URL, "base_url= argument"),
        ({"backend": URL}, {}, URL, "backend= argument"),
        ({"backend": "openai"}, {"OPENAI_BASE_URL": URL}, URL, "backend= argument"),
        ({"backend": "openai", "base_url": URL}, {}, URL, "backend= argument"),
        ({}, {"SCALEINFER_BACKEND": URL}, URL, "SCALEINFER_BACKEND"),
        ({"base_url": URL}, {"SCALEINFER_BACKEND": OTHER}, URL, "base_url= argument"),
        ({"base_url": URL}, {"OPENAI_BASE_URL": OTHER}, URL, "base_url= argument"),
        ({}, {"SCALEINFER_BACKEND": "openai", "OPENAI_BASE_URL": URL}, URL, "SCALEINFER_BACKEND"),
        ({"base_url": URL + "/"}, {}, URL, "base_url= argument"),
    ],
)
def test_the_first_choice_wins(
    arguments: dict[str, Any],
    environment: dict[str, str],
    endpoint: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    resolved = resolve_backend(**arguments)
    assert resolved.backend.kind == "openai"
    assert resolved.backend.endpoint == endpoint
    assert resolved.reason == reason
    assert not resolved.by_default


def test_nothing_chosen_is_the_embedded_model_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolved = resolve_backend()
    assert resolved.backend.kind == "local"
    assert resolved.by_default
    assert resolved.reason == "nothing else was chosen"
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert "pass backend='openai'" in resolve_backend().reason


def test_models_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_backend(base_url=URL, model="m").backend.model == "m"
    monkeypatch.setenv("OPENAI_BASE_URL", URL)
    monkeypatch.setenv("OPENAI_MODEL", "env")
    assert resolve_backend("openai").backend.model == "env"
    assert resolve_backend("openai:org/m:free").backend.model == "org/m:free"
    assert resolve_backend("openai:a", model="b").backend.model == "b"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"backend": "opneai"}, "unknown.*Known: 'local'"),
        ({"backend": 3}, "must be a Backend, an openai client or a string"),
        ({"backend": OpenAIBackend}, "must be a Backend, an openai client or a string"),
        ({"backend": URL, "base_url": OTHER}, "pass one of them"),
        ({"backend": "local", "base_url": URL}, "has no base_url"),
        ({"base_url": "localhost:8000/v1"}, "no http"),
        ({"base_url": "ftp://localhost/v1"}, "no http"),
        ({"base_url": "http://"}, "no http"),
        ({"base_url": "http://host:port/v1"}, "no http"),
        ({"base_url": "http://[::1/v1"}, "no http"),
        ({"backend": "openai"}, "needs a key.*OPENAI_API_KEY"),
        ({"base_url": URL, "api_key": "two\nlines"}, "key"),
        ({"base_url": URL, "api_key": "so‑called"}, "key"),  # noqa: RUF001 - on purpose
        ({"base_url": f"{URL}?key=x"}, "goes on after its path"),
        ({"backend": "local", "model": "gpt-5"}, "only one here"),
        ({"model": "gpt-5"}, "only one here.*base_url="),
    ],
)
def test_contradictions_and_typing_errors(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        resolve_backend(**arguments)


def test_no_message_repeats_a_secret() -> None:
    for arguments in (
        {"base_url": "user:CANARY@host/v1"},
        {"base_url": "ftp://user:CANARY@host/v1"},
        {"base_url": URL, "api_key": "CANARY\nCANARY"},
        {"base_url": f"{URL}?key=CANARY"},
    ):
        with pytest.raises(ConfigError) as caught:
            resolve_backend(**arguments)
        assert "CANARY" not in str(caught.value)


def test_unknown_name_in_the_room() -> None:
    from scaleinfer import backends

    with pytest.raises(AttributeError, match="Nothing"):
        backends.Nothing  # noqa: B018 - the access is the test
