"""`GlobusTransfer`: brings batch files to a cluster and back, where the client does not see it."""

from __future__ import annotations

import asyncio
import os
import posixpath
import secrets
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaleinfer.backends._address import checked_key
from scaleinfer.errors import AuthError, ConfigError, EndpointError, Permanent, Transient

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["GlobusTransfer"]

_SCOPE = "urn:globus:auth:scope:transfer.api.globus.org:all"
_TOKEN_VARIABLE = "GLOBUS_TRANSFER_TOKEN"
_ID_VARIABLE, _SECRET_VARIABLE = "FIRST_CLIENT_ID", "FIRST_CLIENT_SECRET"
_HOW = (
    f"Pass token=, set {_TOKEN_VARIABLE}, or a service account's {_ID_VARIABLE} and "
    f"{_SECRET_VARIABLE}. The scope is {_SCOPE}."
)
_REFUSED = frozenset({401, 403})
_TOO_MANY, _BROKEN = 429, 500
_HOPELESS = frozenset({"PERMISSION_DENIED", "FILE_NOT_FOUND", "QUOTA_EXCEEDED", "CONNECT_FAILED"})
_MISSING = "FILE_NOT_FOUND"


class GlobusTransfer:
    """A `stage` and `fetch` pair for FIRST's batches, by Globus Transfer.

    A file goes from a folder that this machine sees, through a collection that holds this folder
    (a Globus Connect Personal one, or the site's own), to a collection on the cluster, and back.
    Globus does the copying, and tries again what fails on the way until `timeout_s` is over.

        transfer = GlobusTransfer(mine, eagles, local_folder="/home/ada/batches")
        mode = Batch(folder="/eagle/project/ada", stage=transfer.stage, fetch=transfer.fetch)

    Args:
        source_collection: Identifier of the collection that holds `local_folder`.
        destination_collection: Identifier of the collection that the cluster reads from.
        local_folder: Folder of this machine for files on their way; made if it is not there.
        local_path: The same folder as the source collection names it; default `local_folder`.
        destination_root: Where the destination collection's own root is on the cluster: with
            `"/eagle"`, the cluster's `/eagle/project/x` is `/project/x` in the collection.
        token: A Globus Transfer token, or a function that returns the one of the moment (they
            last 48 hours). Default the variable `GLOBUS_TRANSFER_TOKEN`, or the service account
            of `FIRST_CLIENT_ID` and `FIRST_CLIENT_SECRET`.
        poll_s: Seconds between two looks at a transfer.
        timeout_s: Seconds that one may take.
        base_url: Address of the Transfer API, if not Globus's own.

    Raises:
        ConfigError: A value cannot be used.
    """

    def __init__(
        self,
        source_collection: str,
        destination_collection: str,
        *,
        local_folder: str | os.PathLike[str],
        local_path: str | None = None,
        destination_root: str = "/",
        token: str | Callable[[], str] | None = None,
        poll_s: float = 5.0,
        timeout_s: float = 3600.0,
        base_url: str | None = None,
    ) -> None:
        for name, value in (("poll_s", poll_s), ("timeout_s", timeout_s)):
            if not value > 0:
                raise ConfigError(f"{name} must be positive, not {value}.")
        if not source_collection or not destination_collection:
            raise ConfigError("GlobusTransfer needs the identifiers of two collections.")
        self._here, self._there = source_collection, destination_collection
        self._folder = Path(local_folder).absolute()
        self._path = (local_path or self._folder.as_posix()).rstrip("/")
        self._root = "/" + destination_root.strip("/")
        self._token = token
        self._poll_s = poll_s
        self._timeout_s = timeout_s
        self._base_url = base_url

    async def stage(self, data: bytes, path: str) -> None:
        """Write bytes to a path on the cluster.

        Raises:
            ConfigError: The path is not below the destination collection's root.
            EndpointError: They are not there.
        """
        target = self._in_collection(path)
        file = self._folder / f"{secrets.token_hex(8)}-{posixpath.basename(path)}"
        await asyncio.to_thread(_write, file, data)
        try:
            await self._move(self._here, f"{self._path}/{file.name}", self._there, target)
        finally:
            await asyncio.to_thread(file.unlink, missing_ok=True)

    async def fetch(self, path: str) -> bytes:
        """Return the bytes of a file on the cluster.

        Raises:
            FileNotFoundError: There is none.
            ConfigError: The path is not below the destination collection's root.
            EndpointError: It could not be brought here.
        """
        origin = self._in_collection(path)
        file = self._folder / f"{secrets.token_hex(8)}-{posixpath.basename(path)}"
        await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True)
        try:
            await self._move(self._there, origin, self._here, f"{self._path}/{file.name}")
            return await asyncio.to_thread(file.read_bytes)
        finally:
            await asyncio.to_thread(file.unlink, missing_ok=True)

    def _in_collection(self, path: str) -> str:
        """Return the collection's name for a path of the cluster."""
        if self._root == "/":
            return path
        if not path.startswith(f"{self._root}/"):
            raise ConfigError(
                f"{path} is not below {self._root}, where the Globus collection begins.",
                hint="Choose a folder= in there, or correct destination_root=.",
            )
        return path[len(self._root) :]

    async def _move(self, source: str, origin: str, destination: str, target: str) -> None:
        """Have Globus copy a file, and wait until it is there."""
        began = time.monotonic()
        client = await _asked(self._client)
        try:
            task = await _asked(lambda: self._submit(client, source, origin, destination, target))
            while True:
                said = await _asked(lambda: client.get_task(task).data)
                if said["status"] == "SUCCEEDED":
                    return
                why = _failure(said)
                if why is None and time.monotonic() - began < self._timeout_s:
                    await asyncio.sleep(self._poll_s)
                    continue
                if said["status"] != "FAILED":
                    with suppress(EndpointError):
                        await _asked(lambda: client.cancel_task(task))
                raise _not_moved(origin, target, why or f"not done in {self._timeout_s:.0f} s")
        finally:
            client.close()

    def _submit(self, client: Any, source: str, origin: str, destination: str, target: str) -> str:
        deadline = datetime.now(UTC) + timedelta(seconds=self._timeout_s)
        data: dict[str, Any] = {
            "DATA_TYPE": "transfer",
            "label": "scaleinfer batch",
            "source_endpoint": source,
            "destination_endpoint": destination,
            "verify_checksum": True,
            "deadline": deadline.isoformat(timespec="seconds"),
            "notify_on_succeeded": False,
            "DATA": [
                {"DATA_TYPE": "transfer_item", "source_path": origin, "destination_path": target}
            ],
        }
        # With its number asked for first, what is sent twice is done once.
        return str(client.submit_transfer(data)["task_id"])

    def _client(self) -> Any:
        import globus_sdk

        authorizer = globus_sdk.AccessTokenAuthorizer(self._access_token())
        return globus_sdk.TransferClient(authorizer=authorizer, base_url=self._base_url)

    def _access_token(self) -> str:
        given = self._token() if callable(self._token) else self._token
        token = checked_key(given or os.environ.get(_TOKEN_VARIABLE))
        if token is not None:
            return token
        client_id, secret = os.environ.get(_ID_VARIABLE), os.environ.get(_SECRET_VARIABLE)
        if not client_id or not secret:
            raise AuthError("there is no token for Globus Transfer.", hint=_HOW, fatal=True)
        import globus_sdk

        account = globus_sdk.ConfidentialAppAuthClient(client_id, secret)
        response = account.oauth2_client_credentials_tokens(requested_scopes=_SCOPE)
        return str(response.by_resource_server["transfer.api.globus.org"]["access_token"])


async def _asked(ask: Callable[[], Any]) -> Any:
    """Ask Globus, in a thread, and say what it means if it does not answer.

    Raises:
        EndpointError: It did not.
    """
    import globus_sdk

    try:
        return await asyncio.to_thread(ask)
    except globus_sdk.GlobusAPIError as error:
        status = error.http_status
        said = f"Globus Transfer answered {status}: {error.message or error.code}"
        if status in _REFUSED:
            raise AuthError(said, hint=_HOW, status=status, fatal=True) from error
        if status == _TOO_MANY or status >= _BROKEN:
            raise Transient(said, status=status) from error
        raise Permanent(said, status=status, fatal=True) from error
    except globus_sdk.GlobusError as error:
        raise Transient(f"Globus Transfer cannot be reached: {error}") from error


def _failure(said: dict[str, Any]) -> str | None:
    """Return why a transfer will not be done; `None` if it may be."""
    why = str(said.get("nice_status") or "")
    if said["status"] == "FAILED":
        fatal = said.get("fatal_error") or {}
        return str(fatal.get("code") or why or "it has failed")
    # Globus tries these again for as long as the deadline lets it.
    return why if why in _HOPELESS and not said.get("is_ok", True) else None


def _not_moved(origin: str, target: str, why: str) -> Exception:
    if why == _MISSING:
        return FileNotFoundError(origin)
    return Transient(
        f"Globus Transfer has not brought {origin} to {target}: {why}.",
        hint="Look at https://app.globus.org/activity; both collections must be active.",
    )


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
