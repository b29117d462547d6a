"""Tokens for FIRST, renewed against an auth server on this machine."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import pytest
from globus_sdk.token_storage import JSONTokenStorage, TokenStorageData

from scaleinfer.backends._first_login import FirstLogin
from scaleinfer.backends._globus_tokens import (
    CLIENT_ID,
    RESOURCE_SERVER,
    SCOPE,
    GivenToken,
    GlobusTokens,
    token_file,
)
from scaleinfer.errors import AuthError, Transient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

OLD_CLIENT = "58fdd3bc-e1c3-4ce5-80ea-8d6b87cfb944"


class Auth:
    """What the auth server got, and what it says."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []
        self.status = 200
        self.server_of_token = RESOURCE_SERVER
        self.wait = 0.0

    def answer(self, form: dict[str, str]) -> dict[str, Any]:
        self.asked.append(form)
        time.sleep(self.wait)
        if self.status != 200:
            return {"error": "invalid_grant"}
        body = {
            "access_token": f"new-{len(self.asked)}",
            "expires_in": 172800,
            "resource_server": self.server_of_token,
            "scope": SCOPE,
            "token_type": "Bearer",
            "other_tokens": [],
        }
        if form["grant_type"] == "authorization_code":
            body["refresh_token"] = "kept"
        return body


@pytest.fixture
def auth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Auth]:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("FIRST_ACCESS_TOKEN", "FIRST_CLIENT_ID", "FIRST_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)
    said = Auth()
    with serving(said) as url:
        monkeypatch.setenv("GLOBUS_SDK_SERVICE_URL_AUTH", url)
        yield said


@contextmanager
def serving(auth: Auth) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            form = parse_qs(self.rfile.read(size).decode())
            body = json.dumps(auth.answer({k: v[0] for k, v in form.items()})).encode()
            self.send_response(auth.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def log_in(
    token: str,
    *,
    lasts: float,
    refresh: str | None = "again",
    client: str = CLIENT_ID,
    app: str = "alcf_tokens",
) -> Path:
    """Write a login's file as globus_sdk does."""
    path = token_file(client, app)
    data = TokenStorageData(
        RESOURCE_SERVER, "me", SCOPE, token, refresh, int(time.time() + lasts), "Bearer"
    )
    JSONTokenStorage(str(path)).store_token_data_by_resource_server({RESOURCE_SERVER: data})
    return path


def kept(path: Path) -> TokenStorageData:
    data = JSONTokenStorage(str(path)).get_token_data(RESOURCE_SERVER)
    assert data is not None
    return data


async def test_a_fresh_login_is_used_as_it_is(auth: Auth) -> None:
    log_in("fresh", lasts=3600)
    assert await GlobusTokens().token() == "fresh"
    assert not auth.asked


async def test_one_that_ends_soon_is_renewed_and_kept(auth: Auth) -> None:
    path = log_in("old", lasts=300)
    assert await GlobusTokens().token() == "new-1"
    assert auth.asked == [{"grant_type": "refresh_token", "refresh_token": "again",
                           "client_id": CLIENT_ID}]  # fmt: skip
    assert (kept(path).access_token, kept(path).refresh_token) == ("new-1", "again")
    assert kept(path).identity_id == "me"
    assert path.stat().st_mode & 0o077 == 0


async def test_many_calls_renew_it_once(auth: Auth) -> None:
    log_in("old", lasts=-10)
    auth.wait = 0.1
    tokens = GlobusTokens()
    assert set(await asyncio.gather(*(tokens.token() for _ in range(50)))) == {"new-1"}
    assert len(auth.asked) == 1
    found = await asyncio.gather(*(tokens.renewed("new-1") for _ in range(50)))
    assert set(found) == {"new-2"}
    assert len(auth.asked) == 2


async def test_what_another_process_has_renewed_is_taken(auth: Auth) -> None:
    log_in("one", lasts=3600)
    tokens = GlobusTokens()
    assert await tokens.token() == "one"
    log_in("two", lasts=3600)
    assert await tokens.renewed("one") == "two"
    assert not auth.asked


async def test_threads_share_a_source(auth: Auth) -> None:
    log_in("old", lasts=-10)
    auth.wait = 0.1
    tokens, found = GlobusTokens(), list[str]()

    def ask() -> None:
        found.append(asyncio.run(tokens.token()))

    await asyncio.gather(*(asyncio.to_thread(ask) for _ in range(4)))
    assert found == ["new-1"] * 4
    assert len(auth.asked) == 1


async def test_a_server_that_is_down_does_no_harm_while_the_token_lasts(auth: Auth) -> None:
    log_in("old", lasts=700)
    tokens = GlobusTokens()
    assert await tokens.token() == "old"
    auth.status = 503
    assert tokens._known is not None
    tokens._known = replace(tokens._known, expires_at=time.time() + 60)  # time goes by
    log_in("old", lasts=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.sleep", lambda _: None)
        assert await tokens.token() == "old"
        assert await tokens.token() == "old", "not asked again at once"
        with pytest.raises(Transient):
            await tokens.renewed("old")


async def test_a_refusal_asks_for_a_human(auth: Auth) -> None:
    log_in("old", lasts=-10)
    auth.status = 400
    with pytest.raises(AuthError, match="invalid_grant") as caught:
        await GlobusTokens().token()
    assert caught.value.fatal
    assert "scaleinfer login first" in caught.value.hint


async def test_a_login_without_renewal_that_has_ended_asks_for_a_human(auth: Auth) -> None:
    log_in("old", lasts=-10, refresh=None)
    with pytest.raises(AuthError, match="has expired"):
        await GlobusTokens().token()


async def test_the_older_login_is_found_too(auth: Auth) -> None:
    log_in("older", lasts=3600, client=OLD_CLIENT, app="inference_app")
    assert await GlobusTokens().token() == "older"


async def test_a_login_that_is_of_no_use_does_not_hide_the_older_one(auth: Auth) -> None:
    log_in("old", lasts=-10, refresh=None)
    log_in("older", lasts=3600, client=OLD_CLIENT, app="inference_app")
    assert await GlobusTokens().token() == "older"


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format_version": "9"}', "\x00"])
async def test_a_damaged_file_is_named(auth: Auth, text: str) -> None:
    path = token_file()
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(AuthError, match="cannot be read"):
        await GlobusTokens().token()


async def test_no_login_at_all(auth: Auth) -> None:
    with pytest.raises(AuthError, match=r"no login for FIRST.*Run `scaleinfer login first`"):
        await GlobusTokens().token()


async def test_the_variable_goes_before_a_login(
    auth: Auth, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in("fresh", lasts=3600)
    monkeypatch.setenv("FIRST_ACCESS_TOKEN", "given\n")
    tokens = GlobusTokens()
    assert await tokens.token() == "given"
    with pytest.raises(AuthError, match="FIRST_ACCESS_TOKEN"):
        await tokens.renewed("given")


async def test_a_service_account(auth: Auth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRST_CLIENT_ID", CLIENT_ID)
    monkeypatch.setenv("FIRST_CLIENT_SECRET", "hidden")
    tokens = GlobusTokens()
    assert await tokens.token() == "new-1"
    assert await tokens.renewed("new-1") == "new-2"
    assert auth.asked[0] == {"grant_type": "client_credentials", "scope": SCOPE}
    auth.server_of_token = "other"
    with pytest.raises(AuthError, match="no token for FIRST"):
        await tokens.renewed("new-2")


async def test_a_given_token_is_not_renewed() -> None:
    tokens = GivenToken("given")
    assert await tokens.token() == "given"
    with pytest.raises(AuthError, match="any more"):
        await tokens.renewed("given")


async def test_a_given_function_is_asked_when_its_token_is_refused() -> None:
    names = iter(["one", "two", "two"])

    async def name() -> str:
        return next(names)

    for tokens in (GivenToken(name),):
        assert await tokens.token() == "one"
        assert await tokens.token() == "one"
        assert await tokens.renewed("one") == "two"
        with pytest.raises(AuthError):
            await tokens.renewed("two")


async def test_a_given_function_that_raises_may_do_better_next_time() -> None:
    def fail() -> str:
        raise OSError("no network")

    with pytest.raises(Transient, match="no network"):
        await GivenToken(fail).token()


def test_an_empty_token() -> None:
    with pytest.raises(AuthError, match="is empty"):
        GivenToken(" ")


def test_a_login_from_its_page_to_the_file(auth: Auth) -> None:
    flow = FirstLogin()
    assert f"client_id={CLIENT_ID}" in flow.url
    assert "session_required_policies=83732ff2" in flow.url
    assert "access_type=offline" in flow.url
    assert "session_required_policies" not in FirstLogin(with_policy=False).url
    path = flow.finish(" code \n")
    assert auth.asked[-1]["code"] == "code"
    assert (kept(path).access_token, kept(path).refresh_token) == ("new-1", "kept")
    assert path.stat().st_mode & 0o077 == 0
    assert asyncio.run(GlobusTokens().token()) == "new-1"


def test_a_wrong_code(auth: Auth) -> None:
    auth.status = 400
    with pytest.raises(AuthError, match="does not take this code"):
        FirstLogin().finish("wrong")


def test_a_login_for_something_else(auth: Auth) -> None:
    auth.server_of_token = "other"
    with pytest.raises(AuthError, match="no token for FIRST"):
        FirstLogin().finish("code")
    assert not token_file().exists()
