"""Adapters that workers import by name: `backend="tests.integration.fleet.adapters:idle"`."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, ClassVar

from scaleinfer import Backend
from scaleinfer.backends import EndpointStatus
from scaleinfer.results import Completion, Usage

if TYPE_CHECKING:
    from scaleinfer.requests import Request


class Idle(Backend):
    """Answers at once, with the process that answered; dies of the word `poison`."""

    kind: ClassVar[str] = "idle"
    endpoint = "idle"
    model = "idle"
    adaptive = False

    async def complete(self, request: Request, *, timeout: float | None = None) -> Completion:
        if "poison" in str(request):
            os.kill(os.getpid(), signal.SIGKILL)
        return Completion(str(os.getpid()), "stop", Usage(1, 1, 0, 1), "idle")

    async def check(self) -> EndpointStatus:
        return EndpointStatus(self.endpoint, ok=True, detail="")


class Parrot(Idle):
    """Answers what it was asked, all of it."""

    async def complete(self, request: Request, *, timeout: float | None = None) -> Completion:
        assert request.messages is not None
        return Completion(str(request.messages[0]["content"]), "stop", Usage(1, 1, 0, 1), "parrot")


class Slow(Idle):
    """Is never ready."""

    async def open(self) -> None:
        await asyncio.sleep(3600)


def idle() -> Idle:
    return Idle()


def parrot() -> Parrot:
    return Parrot()


def slow() -> Slow:
    return Slow()


def first() -> Backend:
    """FIRST, from a machine of its own: what is shared on one host is shared with nobody."""
    from scaleinfer.backends import FirstBackend

    folder = os.path.join(os.environ["XDG_RUNTIME_DIR"], str(os.getpid()))
    os.makedirs(folder, exist_ok=True)
    os.environ["XDG_RUNTIME_DIR"] = folder
    return FirstBackend("sophia/vllm", model="openai/gpt-oss-120b", token="any")
