"""What is taken over from a client of the openai package, and when the client itself is asked."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import openai
import pytest

from scaleinfer.backends import OpenAIBackend, SDKBackend, resolve_backend
from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

URL = "http://127.0.0.1:9/v1"
AZURE: Any = {
    "azure_endpoint": "http://127.0.0.1:9",
    "api_version": "2024-10-21",
    "api_key": "azure-key",
}
HTTP_CLIENT = openai.DefaultHttpxClient
ASYNC_HTTP_CLIENT = openai.DefaultAsyncHttpxClient


@pytest.fixture(autouse=True)
def plain_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY", "OPENAI_CUSTOM_HEADERS"):
        monkeypatch.delenv(name, raising=False)


def taken(client: Any, **options: Any) -> OpenAIBackend:
    backend = OpenAIBackend.from_client(client, **options)
    assert isinstance(backend, OpenAIBackend)
    return backend


@pytest.mark.parametrize("kind", [openai.AsyncOpenAI, openai.OpenAI])
def test_everything_a_client_is_configured_for(kind: Any) -> None:
    client = kind(
        api_key="a-key",
        base_url=f"{URL}/",
        organization="org",
        project="proj",
        timeout=42,
        default_headers={"X-Team": "t", "User-Agent": "mine/1"},
        default_query={"tier": "batch"},
        max_retries=7,
    )
    backend = taken(client, model="m", packing=3)
    assert backend.endpoint == URL
    assert (backend.model, backend.timeout, backend.packing) == ("m", 42.0, 3)
    assert backend._chat_url == f"{URL}/chat/completions?tier=batch"
    headers = {name.lower(): value for name, value in backend._headers.items()}
    assert headers == {
        "content-type": "application/json",
        "endpoint-load-metrics-format": "JSON",
        "authorization": "Bearer a-key",
        "openai-organization": "org",
        "openai-project": "proj",
        "x-team": "t",
        "user-agent": "mine/1",
    }


def test_what_a_client_does_not_say_is_left_to_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "from-the-environment")
    backend = taken(openai.AsyncOpenAI(base_url=URL, api_key="EMPTY"))
    assert backend.timeout is None
    assert backend._headers["Authorization"] == "Bearer EMPTY"
    timeout = openai.Timeout(9.0, read=30.0)
    assert taken(openai.AsyncOpenAI(base_url=URL, timeout=timeout)).timeout == 30.0
    assert taken(openai.AsyncOpenAI(base_url=URL, timeout=None)).timeout is None
    # A header that was left out on purpose takes no key from anywhere.
    omitted = openai.AsyncOpenAI(base_url=URL, default_headers={"Authorization": openai.omit})  # type: ignore[dict-item] # the SDK takes it
    assert "authorization" not in {name.lower() for name in taken(omitted)._headers}
    own = openai.AsyncOpenAI(base_url=URL, default_headers={"Authorization": "Token t"})
    assert taken(own)._headers["Authorization"] == "Token t"


def test_a_key_that_changes_stays_one() -> None:
    async def later() -> str:
        return "k"

    backend = taken(openai.AsyncOpenAI(base_url=URL, api_key=later))
    assert backend._provider is later
    assert "Authorization" not in backend._headers
    assert taken(openai.OpenAI(base_url=URL, api_key=lambda: "k"))._provider is not None


class Own(openai.AsyncOpenAI):
    """A user's own class may do anything."""


class OwnSync(openai.OpenAI):
    """The same, without asyncio."""


ASKED_ITSELF: dict[str, Callable[[], Any]] = {
    "has its own ways": lambda: openai.AsyncAzureOpenAI(**AZURE),
    "Own has its own ways": lambda: Own(base_url=URL, api_key="k"),
    "http_client of its own": lambda: openai.AsyncOpenAI(
        base_url=URL, api_key="k", http_client=ASYNC_HTTP_CLIENT(trust_env=False)
    ),
    "its base URL has a query": lambda: openai.AsyncOpenAI(base_url=f"{URL}?a=b", api_key="k"),
    "its default_query has lists": lambda: openai.AsyncOpenAI(
        base_url=URL, api_key="k", default_query={"a": [1, 2]}
    ),
}


@pytest.mark.parametrize("reason", ASKED_ITSELF)
def test_a_client_that_does_more_is_asked_itself(
    reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = ASKED_ITSELF[reason]()
    resolved = resolve_backend(client, model="m")
    assert isinstance(resolved.backend, SDKBackend)
    assert resolved.backend.model == "m"
    (record,) = caplog.records
    assert "asked through the openai SDK" in record.message
    assert reason in record.message
    with pytest.raises(ConfigError, match="packing cannot be set here"):
        OpenAIBackend.from_client(client, model="m", packing=3)


@pytest.mark.parametrize(
    ("client", "hint"),
    [
        (lambda: openai.AzureOpenAI(**AZURE), "openai.AsyncAzureOpenAI"),
        (lambda: OwnSync(base_url=URL, api_key="k"), "openai.AsyncOpenAI"),
        (
            lambda: openai.OpenAI(
                base_url=URL, api_key="k", http_client=HTTP_CLIENT(trust_env=False)
            ),
            "openai.AsyncOpenAI",
        ),
    ],
)
def test_a_client_without_asyncio_cannot_be_asked(client: Any, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        resolve_backend(client(), model="m")


def test_a_client_as_backend_has_its_own_address() -> None:
    client = openai.AsyncOpenAI(base_url=URL, api_key="a-key")
    resolved = resolve_backend(client, model="m")
    assert resolved.backend.endpoint == URL
    assert resolved.reason == "backend= argument, an openai.AsyncOpenAI"
    for extra in ({"base_url": URL}, {"api_key": "k"}):
        with pytest.raises(ConfigError, match="its own address and key"):
            resolve_backend(client, **extra)


def test_what_is_no_client() -> None:
    with pytest.raises(ConfigError, match="int is no client"):
        OpenAIBackend.from_client(3)
    with pytest.raises(ConfigError, match=r"no openai\.AsyncOpenAI"):
        SDKBackend(openai.OpenAI(base_url=URL, api_key="k"))


def test_looking_at_a_value_does_not_import_the_sdk() -> None:
    code = (
        "import sys\n"
        "from scaleinfer.backends import resolve_backend, OpenAIBackend\n"
        f"resolve_backend(OpenAIBackend({URL!r}))\n"
        "try: resolve_backend(3)\n"
        "except Exception as error: assert 'must be a Backend' in str(error)\n"
        "assert 'openai' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
