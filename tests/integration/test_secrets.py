"""Keys and tokens appear in nothing that a faulty run leaves behind."""

from __future__ import annotations

import base64
import copy
import gc
import io
import logging
import pickle
import traceback
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
import pytest

from scaleinfer import AuthError, OpenAIBackend, Retry, parallel_map, stream_map
from scaleinfer.engine import Budget
from scaleinfer.fleet import Fleet
from scaleinfer.fleet._broker import Broker
from scaleinfer.fleet._messages import unpack
from scaleinfer.journal import list_runs, verify
from scaleinfer.observe import Telemetry, configure, metrics_url
from scaleinfer.testing import Fault, SimulatedServer

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

# None of them has a shape that a pattern would know.
KEY = "CANARYkey4711nopattern"
TOKEN = "CANARYtoken0815nopattern"
USER = "CANARYuser"
PASSWORD = "CANARYpassword42"
HEADER = "CANARYheadervalue99"
QUERY = "CANARYqueryvalue77"
BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
EVERY = (KEY, TOKEN, PASSWORD, HEADER, QUERY, BASIC)
ITEMS = [f"item {number}" for number in range(24)]
IMPATIENT = Retry(attempts=2, patience=0.1, initial=0.01)


def leaks(text: str | bytes) -> list[str]:
    data = text.encode() if isinstance(text, str) else text
    return [one for one in (*EVERY, USER) if one.encode() in data]


def context(text: str | bytes) -> str:
    """Return what stands around the first secret."""
    data = text.encode() if isinstance(text, str) else text
    at = min((data.find(one.encode()) for one in EVERY if one.encode() in data), default=0)
    return repr(data[max(0, at - 200) : at + 100])


def files_in(folder: Path) -> bytes:
    """Return names and contents of all files below a folder."""
    found = b""
    for path in sorted(folder.rglob("*")):
        found += str(path).encode()
        with suppress(OSError):  # a status file may go as it is looked at
            if path.is_file():
                found += path.read_bytes()
    return found


def echo(secret: str) -> str:
    """What a careless server answers."""
    return f'{{"error": {{"message": "Incorrect API key provided: {secret}. Bearer {secret}"}}}}'


def faults_with(secret: str) -> list[Fault]:
    """Everything that can go wrong, told with the credentials that came with the call."""
    return [
        Fault.status(500, first=1, match="item 2", body=echo(secret)),
        Fault.status(400, match="item 3", body=echo(secret)),
        Fault.status(422, match="item 4", body=echo(HEADER)),
        Fault.status(503, match="item 5", body=f"<html>{QUERY} {TOKEN} {BASIC}</html>"),
        Fault.status(302, match="item 6", headers={"location": f"https://x/login?state={KEY}"}),
        Fault.reset(match="item 7"),
        Fault.status(400, match="item 8", body=f"{USER} {BASIC}" + echo(secret)),
    ]


@pytest.fixture
def telemetry() -> Iterator[None]:
    configure(Telemetry(logs=True, prometheus=0, error_texts=True))
    yield
    configure(Telemetry())


async def scraped() -> str:
    import aiohttp

    url = metrics_url()
    if url is None:
        return ""
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return await answer.text()


@pytest.mark.parametrize("secret", [KEY, PASSWORD], ids=["key", "userinfo"])
async def test_a_faulty_run_leaves_no_secret_anywhere(
    tmp_path: Path,
    secret: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    telemetry: None,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", TOKEN)
    journal, page, rows = tmp_path / "run.db", tmp_path / "run.html", tmp_path / "run.jsonl"
    shown = io.StringIO()
    during: list[str | bytes] = []
    async with SimulatedServer(faults=faults_with(secret), seed=3) as server:
        parts = urlsplit(server.base_url)
        backend = OpenAIBackend(
            f"http://{USER}:{PASSWORD}@{parts.netloc}/v1",
            api_key=KEY,
            headers={"X-Secret": HEADER, "X-Trace-Token": TOKEN},
            query={"code": QUERY},
        )
        with redirect_stderr(shown), redirect_stdout(shown):
            results = await parallel_map(
                ITEMS, "{}", backend=backend, journal=journal, progress="log", retry=IMPATIENT,
                sampling={"extra": {"user": "me", "authorization": KEY}},
                budget=Budget(requests=1000),
            )  # fmt: skip
            during.append(files_in(tmp_path))
            during.append(await scraped())
    assert results.failed
    results.report(page)
    results.to_jsonl(rows)
    assert server.ledger.arrived > len(ITEMS)

    assert leaks(shown.getvalue()) == []
    assert leaks(caplog.text) == []
    for found in (*during, files_in(tmp_path)):
        assert leaks(found) == [], context(found)
    objects = [
        results, results.stats, backend, *results, *(r.error for r in results), verify(journal),
        *list_runs(journal), results._repr_html_(),
    ]  # fmt: skip
    for one in objects:
        assert leaks(repr(one) + str(one)) == []
    assert leaks(pickle.dumps(list(results))) == []
    assert leaks(pickle.dumps(copy.deepcopy([r.error for r in results]))) == []
    for result in results.failed:
        assert result.error is not None
        # The request's own parameters are the caller's; what they are called is not ours.
        assert leaks(str(result.error.to_dict())) == []


async def test_tracebacks_of_a_map_that_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its message, cause and fields; frames of the library hold the key they need to work."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    async with SimulatedServer(faults=[Fault.status(401, body=echo(KEY))]) as server:
        url = server.base_url

        async def streamed() -> None:
            async for _ in stream_map(ITEMS, "{}", base_url=url, progress=False):
                pass

        raising = parallel_map(ITEMS, "{}", base_url=url, on_error="raise", progress=False)
        for asked in (raising, streamed()):
            with pytest.raises(AuthError) as caught:
                await asked
            error: BaseException | None = caught.value
            while error is not None:
                plain = "".join(traceback.format_exception(error))
                assert leaks(plain + repr(error) + str(vars(error))) == []
                error = error.__cause__ or error.__context__
    gc.collect()


def commands() -> str:
    """Return the command lines of this process's children, as everybody can see them."""
    lines = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error, OSError):
            lines.append(Path(f"/proc/{child.pid}/cmdline").read_text())
    return "\n".join(lines)


async def test_a_fleet_sends_no_secret_and_shows_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="scaleinfer")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("CANARY_VARIABLE", TOKEN)
    messages: list[str] = []
    real = Broker.message

    def message(self: Broker, text: str) -> str:
        reply = real(self, text)
        messages.extend(str(unpack(one)) for one in (text, reply))
        return reply

    monkeypatch.setattr(Broker, "message", message)
    faults = [
        Fault.status(500, first=1, match="item 2", body=echo(KEY)),
        Fault.status(400, match="item 3", body=echo(KEY)),
        Fault.reset(first=1, match="item 7"),
    ]
    said: list[str] = []
    journal, folder = tmp_path / "run.db", tmp_path / "fleet"
    async with SimulatedServer(api_key=KEY, faults=faults) as server:
        fleet = Fleet.local(
            1, backend=server.base_url, folder=folder, on_event=said.append, retry=IMPATIENT
        )
        async with fleet:
            await fleet.ready(1, timeout=60)
            seen = commands()
            results: Any = await parallel_map(
                ITEMS, "{}", fleet=fleet, journal=journal, progress=False
            )
            seen += commands()
            status = repr(fleet.status()) + repr(fleet)
            during = files_in(tmp_path)
    assert len(results.ok) >= 15
    assert seen
    assert messages
    for text in (seen, "".join(messages), status, "\n".join(said), caplog.text):
        assert leaks(text) == [], context(text)
    # What lets a worker in is for the worker's eyes too, and not for the process list.
    assert fleet._secret
    assert fleet._secret not in seen
    assert leaks(during) == []
    assert leaks(files_in(tmp_path)) == []
    assert leaks(repr(list(results)) + repr([r.error for r in results])) == []
    assert any("item 17" in text for text in messages)
