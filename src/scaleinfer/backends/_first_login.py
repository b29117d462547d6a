"""A human's login to FIRST: a page to open, a code to bring back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scaleinfer.backends._globus_tokens import (
    CLIENT_ID,
    RESOURCE_SERVER,
    SCOPE,
    SESSION_POLICY,
    token_file,
    words_of,
)
from scaleinfer.errors import AuthError, Transient

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FirstLogin"]


class FirstLogin:
    """One login, from its page to the tokens on disk.

    Args:
        with_policy: Ask for a session that satisfies the gateway's policy, as it wants it.

    Attributes:
        url: The page to open in a browser.
    """

    def __init__(self, *, with_policy: bool = True) -> None:
        import globus_sdk

        self._client = globus_sdk.NativeAppAuthClient(CLIENT_ID, app_name="scaleinfer")
        self._client.oauth2_start_flow(
            requested_scopes=SCOPE, refresh_tokens=True, prefill_named_grant="scaleinfer"
        )
        policies = [SESSION_POLICY] if with_policy else []
        options: dict[str, Any] = {"session_required_policies": policies} if policies else {}
        self.url: str = self._client.oauth2_get_authorize_url(prompt="login", **options)

    def finish(self, code: str) -> Path:
        """Exchange the code for tokens; return where they are kept, readable by the user alone.

        Raises:
            AuthError: The code is not taken, or the login is not for FIRST.
            Transient: Globus Auth cannot be reached.
        """
        import globus_sdk
        from globus_sdk.token_storage import JSONTokenStorage

        try:
            response: Any = self._client.oauth2_exchange_code_for_tokens(code.strip())
        except globus_sdk.GlobusAPIError as error:
            raise AuthError(
                f"Globus Auth does not take this code: {words_of(error)}.",
                hint="A code lasts 10 minutes; run the command again for a new page.",
            ) from error
        except globus_sdk.GlobusError as error:
            raise Transient(f"Globus Auth cannot be reached: {error}") from error
        if RESOURCE_SERVER not in response.by_resource_server:
            raise AuthError("Globus Auth gave no token for FIRST.", hint="Ask ALCF for access.")
        path = token_file()
        JSONTokenStorage(str(path)).store_token_response(response)
        return path
