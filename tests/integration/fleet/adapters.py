"""Adapters that workers import by name: `backend="tests.integration.fleet.adapters:idle"`."""

from __future__ import annotations

import os
import signal
from typing import ClassVar

from scaleinfer import Backend
from scaleinfer.backends import EndpointStatus
from scaleinfer.results import Completion, Usage


class Idle(Backend):
    """Answers at once, with the process that answered; dies of the word `poison`."""

    kind: ClassVar[str] = "idle"
    endpoint = "idle"
    model = "idle"
    adaptive = False

    async def complete(self, request: object, *, timeout: float | None = None) -> Completion:
        if "poison" in str(request):
            os.kill(os.getpid(), signal.SIGKILL)
        return Completion(str(os.getpid()), "stop", Usage(1, 1, 0, 1), "idle")

    async def check(self) -> EndpointStatus:
        return EndpointStatus(self.endpoint, ok=True, detail="")


def idle() -> Idle:
    return Idle()
