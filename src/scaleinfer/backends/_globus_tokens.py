"""Access tokens for FIRST: found, refreshed in good time, never asked of a human.

Looked for in this order: the variable `FIRST_ACCESS_TOKEN`; a service account's
`FIRST_CLIENT_ID` and `FIRST_CLIENT_SECRET`; the login of `scaleinfer login first`, which ALCF's
own `alcf-tokens` shares; the older one of `inference_auth_token.py`.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from scaleinfer.backends._address import checked_key
from scaleinfer.backends._first_dialect import LOGIN
from scaleinfer.errors import AuthError, Transient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = [
    "CLIENT_ID",
    "RESOURCE_SERVER",
    "SCOPE",
    "SESSION_POLICY",
    "TOKEN_VARIABLE",
    "GivenToken",
    "GlobusTokens",
    "TokenSource",
    "token_file",
    "words_of",
]

RESOURCE_SERVER = "681c10cc-f684-4540-bcd7-0b4df3bc26ef"
SCOPE = f"https://auth.globus.org/scopes/{RESOURCE_SERVER}/action_all"
SESSION_POLICY = "83732ff2-9c42-4548-b5ce-17e498c84f6a"
CLIENT_ID = "7f3e61f5-e0de-4e8f-9150-0a62c65dda63"
TOKEN_VARIABLE = "FIRST_ACCESS_TOKEN"
_ID_VARIABLE, _SECRET_VARIABLE = "FIRST_CLIENT_ID", "FIRST_CLIENT_SECRET"
_APPS = (
    (CLIENT_ID, "alcf_tokens"),
    ("58fdd3bc-e1c3-4ce5-80ea-8d6b87cfb944", "inference_app"),
)
_EARLY_S = 600.0
_NOT_AGAIN_S = 30.0
_NO_LOGIN = "there is no login for FIRST on this machine."
_HOW = (
    f"Run `{LOGIN}` in a terminal of this machine (jobs find the login in the home folder), "
    f"or set {TOKEN_VARIABLE}."
)


class TokenSource(ABC):
    """Names the token of the moment; one renewal at a time, however many calls ask for it."""

    def __init__(self) -> None:
        self._locks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = (
            WeakKeyDictionary()
        )

    async def token(self) -> str:
        """Return a token.

        Raises:
            AuthError: There is none, and a human is needed.
            Transient: The server that renews it cannot be reached.
        """
        known = self._fresh()
        if known is not None:
            return known
        async with self._lock():
            known = self._fresh()
            return await self._fetch(None) if known is None else known

    async def renewed(self, refused: str) -> str:
        """Return another token than the one that the gateway has refused.

        Raises:
            AuthError: There is no other, and a human is needed.
            Transient: The server that renews it cannot be reached.
        """
        async with self._lock():
            known = self._fresh()
            if known is not None and known != refused:
                return known  # another call has renewed it meanwhile
            return await self._fetch(refused)

    def _lock(self) -> asyncio.Lock:
        return self._locks.setdefault(asyncio.get_running_loop(), asyncio.Lock())

    @abstractmethod
    def _fresh(self) -> str | None:
        """Return the token at hand, if it will last for a while."""

    @abstractmethod
    async def _fetch(self, refused: str | None) -> str:
        """Get a token that is not `refused`."""


class GivenToken(TokenSource):
    """A token that the user gave, or a function that names the one of the moment.

    Args:
        given: The token, or the function, which may be a coroutine function and may block.
    """

    def __init__(self, given: str | Callable[[], str | Awaitable[str]]) -> None:
        super().__init__()
        self._ask = given if callable(given) else None
        self._known = None if callable(given) else checked_key(given)
        if self._ask is None and self._known is None:
            raise AuthError("the token for FIRST is empty.", hint=_HOW, fatal=True)

    def _fresh(self) -> str | None:
        return self._known

    async def _fetch(self, refused: str | None) -> str:
        token = None
        if self._ask is not None:
            try:
                found: Any = await asyncio.to_thread(self._ask)
                token = checked_key(await found if asyncio.iscoroutine(found) else found)
            except Exception as error:
                raise Transient(
                    f"the function that names the token for FIRST raised "
                    f"{type(error).__name__}: {error}"
                ) from error
        if token is None or token == refused:
            raise AuthError(
                "FIRST does not take the given token any more (they last 48 hours).",
                hint=f"Pass a new one, or leave token= out and run `{LOGIN}`.",
                fatal=True,
            )
        self._known = token
        return token


@dataclass(frozen=True, slots=True)
class _Found:
    token: str
    expires_at: float
    origin: str

    def lasts(self, seconds: float) -> bool:
        return self.expires_at - time.time() > seconds


class GlobusTokens(TokenSource):
    """Tokens from the environment, a service account, or the files of a login.

    Refreshed with Globus Auth ten minutes before they end. Nothing is imported or read before
    the first token is asked for.

    Args:
        home: The home folder; by default the user's.
    """

    def __init__(self, home: Path | None = None) -> None:
        super().__init__()
        self._home = home
        self._known: _Found | None = None
        self._tried_at = -float("inf")
        # Loops in other threads may share this source.
        self._thread_lock = threading.Lock()

    def _fresh(self) -> str | None:
        known = self._known
        if known is None:
            return None
        soon = time.monotonic() - self._tried_at < _NOT_AGAIN_S
        return known.token if known.lasts(0 if soon else _EARLY_S) else None

    async def _fetch(self, refused: str | None) -> str:
        return await asyncio.to_thread(self._fetch_blocking, refused)

    def _fetch_blocking(self, refused: str | None) -> str:
        with self._thread_lock:
            known = self._known
            if known is not None and known.token != refused and known.lasts(_EARLY_S):
                return known.token
            try:
                self._known = self._found(refused)
            except Transient:
                # Not renewed in time is no harm while the old one lasts.
                if known is None or known.token == refused or not known.lasts(0):
                    raise
                self._tried_at = time.monotonic()
            assert self._known is not None
            return self._known.token

    def _found(self, refused: str | None) -> _Found:
        given = os.environ.get(TOKEN_VARIABLE)
        if given:
            token = checked_key(given)
            if token is None or token == refused:
                raise AuthError(
                    f"FIRST does not take the token in {TOKEN_VARIABLE} (they last 48 hours).",
                    hint=f"Set a new one, or unset it and run `{LOGIN}`.",
                    fatal=True,
                )
            return _Found(token, float("inf"), TOKEN_VARIABLE)
        client_id = os.environ.get(_ID_VARIABLE)
        secret = os.environ.get(_SECRET_VARIABLE)
        if client_id and secret:
            return _of_service_account(client_id, secret)
        return self._of_login(refused)

    def _of_login(self, refused: str | None) -> _Found:
        failure: AuthError | None = None
        for client_id, app in _APPS:
            path = token_file(client_id, app, home=self._home)
            if not path.exists():
                continue
            try:
                return _of_file(path, client_id, refused)
            except AuthError as error:
                failure = failure or error
        raise failure or AuthError(_NO_LOGIN, hint=_HOW, fatal=True)


def token_file(
    client_id: str = CLIENT_ID, app: str = "alcf_tokens", *, home: Path | None = None
) -> Path:
    """Return where globus_sdk keeps the tokens of an app."""
    return (home or Path.home()) / ".globus" / "app" / client_id / app / "tokens.json"


def _of_file(path: Path, client_id: str, refused: str | None) -> _Found:
    import globus_sdk
    from globus_sdk.token_storage import JSONTokenStorage

    try:
        storage = JSONTokenStorage(str(path))
        kept = storage.get_token_data(RESOURCE_SERVER)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise AuthError(f"{path} cannot be read: {error}.", hint=_HOW, fatal=True) from error
    if kept is None:
        raise AuthError(f"{path} holds no token for FIRST.", hint=_HOW, fatal=True)
    found = _Found(kept.access_token, float(kept.expires_at_seconds), str(path))
    # Another process may have renewed it already.
    if found.token != refused and found.lasts(_EARLY_S):
        return found
    if kept.refresh_token is None:
        if found.token != refused and found.lasts(0):
            return found
        raise AuthError(f"the login in {path} has expired.", hint=_HOW, fatal=True)
    client, renewal = globus_sdk.NativeAppAuthClient(client_id), kept.refresh_token
    response = _asked(lambda: client.oauth2_refresh_token(renewal), str(path))
    data = response.by_resource_server.get(RESOURCE_SERVER)
    if data is None:
        raise AuthError(f"the login in {path} is not for FIRST.", hint=_HOW, fatal=True)
    if not data.get("refresh_token"):
        data["refresh_token"] = kept.refresh_token
    _keep(storage, kept, data)
    return _Found(data["access_token"], float(data["expires_at_seconds"]), str(path))


def _keep(storage: Any, old: Any, new: dict[str, Any]) -> None:
    from globus_sdk.token_storage import TokenStorageData

    data = TokenStorageData(
        resource_server=RESOURCE_SERVER,
        identity_id=old.identity_id,
        scope=new["scope"],
        access_token=new["access_token"],
        refresh_token=new["refresh_token"],
        expires_at_seconds=new["expires_at_seconds"],
        token_type=new.get("token_type"),
    )
    try:
        storage.store_token_data_by_resource_server({RESOURCE_SERVER: data})
    except OSError:
        # A home folder that cannot be written, on a node for instance: this process has it.
        return


def _of_service_account(client_id: str, secret: str) -> _Found:
    import globus_sdk

    client = globus_sdk.ConfidentialAppAuthClient(client_id, secret)
    response = _asked(
        lambda: client.oauth2_client_credentials_tokens(requested_scopes=SCOPE), _ID_VARIABLE
    )
    data = response.by_resource_server.get(RESOURCE_SERVER)
    if data is None:
        raise AuthError(
            f"the service account in {_ID_VARIABLE} gets no token for FIRST.",
            hint="Ask ALCF to let it use the inference service.",
            fatal=True,
        )
    return _Found(data["access_token"], float(data["expires_at_seconds"]), _ID_VARIABLE)


def _asked(ask: Callable[[], Any], origin: str) -> Any:
    import globus_sdk

    try:
        return ask()
    except globus_sdk.GlobusAPIError as error:
        if error.http_status >= 500 or error.http_status == 429:  # noqa: PLR2004 - it may pass
            raise Transient(f"Globus Auth answered {error.http_status} to a renewal.") from error
        raise AuthError(
            f"Globus Auth does not renew the login of {origin}: {words_of(error)}.",
            hint=_HOW,
            fatal=True,
        ) from error
    except globus_sdk.GlobusError as error:
        raise Transient(f"Globus Auth cannot be reached to renew a token: {error}") from error


def words_of(error: Any) -> str:
    """Return what Globus Auth said in an error."""
    told = error.raw_json or {}
    return str(error.message or told.get("error") or f"HTTP {error.http_status}")
