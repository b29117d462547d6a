"""A client of Globus Compute that never asks for a login.

The SDK prints a URL and reads a code from the terminal, in whichever thread happened to make the
call. A fleet starts from jobs and notebooks, so here a missing login is an error that says how to
log in.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NoReturn

from scaleinfer.errors import ConfigError

LOGIN = 'python -c "from globus_compute_sdk import Client; Client()"'


def our_client() -> Any:
    """Make a `globus_compute_sdk.Client` from this user's login; contacts nobody.

    Raises:
        ConfigError: only one half of a client identity is set.
    """
    from globus_compute_sdk import Client
    from globus_sdk import UserApp

    try:
        client = Client(do_version_check=False)
    except ValueError as error:  # the SDK's words for half of a client identity
        raise ConfigError(str(error)) from error
    if not isinstance(client.app, UserApp):
        return client
    app = UserApp(
        client.app.app_name,
        client_id=client.app.client_id,
        config=dataclasses.replace(client.app.config, login_flow_manager=_refusing()),
    )
    return Client(do_version_check=False, app=app)


def refuse_if_logged_out(client: Any) -> None:
    """Raise ConfigError if the client would ask a person for a login."""
    from globus_sdk import UserApp

    if isinstance(client.app, UserApp) and client.app.login_required():
        _refuse()


def _refusing() -> Any:
    from globus_sdk.login_flows import LoginFlowManager

    class Refusing(LoginFlowManager):
        @classmethod
        def for_globus_app(cls, app_name: str, login_client: Any, config: Any) -> Refusing:
            return cls(login_client)

        def run_login_flow(self, auth_parameters: Any) -> NoReturn:
            _refuse()

    return Refusing


def _refuse() -> NoReturn:
    raise ConfigError(
        "nobody is logged in to Globus Compute on this machine, or the login has expired.",
        hint=f"Log in once, in a terminal: `{LOGIN}`. Where nobody can type, set "
        "GLOBUS_COMPUTE_CLIENT_ID and GLOBUS_COMPUTE_CLIENT_SECRET.",
    )
