"""Maps that use a coordinator in another process: both ends of that line.

Messages may be lost as between worker and coordinator. A request is sent again until a reply
shows that it came; an answer is sent again until the next message shows that its reply came.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import secrets
import time
from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer import __version__
from scaleinfer.errors import ConfigError, EndpointError, ScaleInferError, WorkerLost
from scaleinfer.fleet._link import LinkError
from scaleinfer.fleet._messages import PROTOCOL, FormWriter, answer_from, answer_of
from scaleinfer.fleet._status import FleetStatus

if TYPE_CHECKING:
    from scaleinfer.fleet._link import Link
    from scaleinfer.requests import Request
    from scaleinfer.results import Completion

__all__ = ["ClientDesk", "RemoteBroker"]

_REPLY_S = 10.0
_PAUSE_S = 1.0
_PATIENCE_S = 120.0
_IDLE_S = 0.25
_STATUS_S = 1.0
_MOST_BYTES = 450_000


class ClientDesk:
    """The coordinator's side: what one client has asked and not yet got.

    Attributes:
        seen: The clock at its latest message.
    """

    def __init__(self, now: float) -> None:
        self.seen = now
        self.jobs: dict[int, int] = {}
        self._last = -1
        self._numbers: dict[int, int] = {}
        self._ready: dict[int, tuple[str | None, list[Any]]] = {}
        self._sent: list[tuple[int, list[int]]] = []

    def fresh(self, number: int, ack: int) -> bool:
        """Take note of a message; return False if it is an old one."""
        if number <= self._last:
            return False
        self._last = number
        unsure: list[tuple[int, list[int]]] = []
        for replied, refs in self._sent:
            if replied <= ack:
                for ref in refs:
                    self._ready.pop(ref, None)
                    self._numbers.pop(ref, None)
            else:
                unsure.append((replied, refs))
        self._sent = unsure
        return True

    def knows(self, ref: int) -> bool:
        """True if the request has come before."""
        return ref in self._numbers

    def asked(self, ref: int, number: int, future: asyncio.Future[Completion]) -> None:
        """A request was taken; its answer waits here for the client's next message."""
        self._numbers[ref] = number
        future.add_done_callback(lambda done: self._settled(ref, done))

    def withdrawn(self, ref: int) -> int | None:
        """The client does not want an answer any more; return the task's number."""
        self._ready.pop(ref, None)
        return self._numbers.pop(ref, None)

    def tasks(self) -> list[int]:
        """Return the numbers of all tasks of the client."""
        return list(self._numbers.values())

    def answers(self) -> list[Any]:
        """Return the answers for the reply to the latest message."""
        flying = {ref for _, refs in self._sent for ref in refs}
        found = [(ref, *answer) for ref, answer in self._ready.items() if ref not in flying]
        # What an earlier reply held may have been lost with it.
        found += [(ref, *self._ready[ref]) for ref in flying if ref in self._ready]
        self._sent.append((self._last, [entry[0] for entry in found]))
        return found

    def _settled(self, ref: int, future: asyncio.Future[Completion]) -> None:
        if future.cancelled() or ref not in self._numbers:
            return
        error = future.exception()
        if error is None:
            completion = future.result()
            self._ready[ref] = completion.worker, answer_of(completion, completion.attempts)
        elif isinstance(error, ScaleInferError):
            attempts = error.attempts if isinstance(error, EndpointError) else ()
            self._ready[ref] = None, answer_of(error, attempts)


class RemoteBroker:
    """The client's side; what a map uses in place of a `Broker`.

    Args:
        link: The line to the coordinator.
        name: The fleet's name.
        secret: What the coordinator wants to be shown.

    Attributes:
        problem: Why no request can be answered any more; else `None`.
        workers: Workers that the coordinator has.
        places: Requests that are useful to have there at once.
    """

    def __init__(self, link: Link, name: str, secret: str | None) -> None:
        self.problem: ScaleInferError | None = None
        self.workers = 0
        self.places = 64
        self._link = link
        self._name = name
        self._secret = secret
        self._client = secrets.token_hex(8)
        self._forms = FormWriter()
        self._refs = self._jobs = 0
        self._open: dict[int, tuple[asyncio.Future[Completion], int, Any]] = {}
        self._once: set[int] = set()
        self._unsent: dict[int, None] = {}
        self._withdrawn: list[int] = []
        self._number = self._ack = -1
        self._epoch = ""
        self._interval = _IDLE_S
        self._status: FleetStatus | None = None
        self._status_at = 0.0
        self._wake = asyncio.Event()

    @property
    def nodes(self) -> int:
        """Nodes on which there is a worker, as the coordinator said last."""
        return 0 if self._status is None else self._status.nodes

    def job(self) -> int:
        """Return the number of a new job; jobs share the workers evenly."""
        self._jobs += 1
        return self._jobs

    def ask(
        self, request: Request, *, job: int = 0, priority: int = 0
    ) -> tuple[int, asyncio.Future[Completion]]:
        """Have a worker ask a request; see `Broker.ask`."""
        form, data = self._forms.request(request)
        if self.problem is not None:
            raise copy.copy(self.problem)
        self._refs += 1
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        entry = (self._refs, job, priority, orjson.Fragment(data))
        self._open[self._refs] = future, form, (entry, len(data))
        self._unsent[self._refs] = None
        if request.once:
            self._once.add(self._refs)
        self._wake.set()
        return self._refs, future

    def withdraw(self, ref: int) -> None:
        """Nobody waits for the answer any more."""
        self._once.discard(ref)
        if self._open.pop(ref, None) is not None:
            self._unsent.pop(ref, None)
            self._withdrawn.append(ref)

    def status(self) -> FleetStatus:
        """Return where the fleet stands, as the coordinator said within the last seconds.

        Raises:
            ConfigError: It has not said so yet.
        """
        if self._status is None:
            raise ConfigError(f"nothing is known of the fleet {self._name} yet.")
        return self._status

    async def run(self) -> None:
        """Exchange messages until cancelled."""
        heard = time.monotonic()
        while self.problem is None:
            message, sent = self._message()
            try:
                reply = await self._link.send(message, timeout=_REPLY_S)
            except LinkError as error:
                self._unsent = dict.fromkeys(sent) | self._unsent
                silent = time.monotonic() - heard
                if silent > _PATIENCE_S:
                    self._fail(
                        WorkerLost(
                            f"the coordinator of {self._name} has been silent for {silent:.0f} s: "
                            f"{error}"
                        )
                    )
                await asyncio.sleep(_PAUSE_S)
                continue
            heard = time.monotonic()
            self._taken(reply)
            if not self._unsent:
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._interval):
                        await self._wake.wait()
            # More requests may follow in this turn of the loop.
            await asyncio.sleep(0)

    def _message(self) -> tuple[dict[str, Any], list[int]]:
        self._number += 1
        now, size, sent, forms = time.monotonic(), 0, list[int](), set[int]()
        asked: list[Any] = []
        for ref in self._unsent:
            _, form, (entry, length) = self._open[ref]
            size += length
            if asked and size > _MOST_BYTES:
                break
            asked.append(entry)
            sent.append(ref)
            if form >= 0:
                forms.add(form)
        for ref in sent:
            del self._unsent[ref]
        wants_status = now - self._status_at > _STATUS_S
        message = {
            "v": PROTOCOL,
            "version": __version__,
            "secret": self._secret,
            "client": self._client,
            "epoch": self._epoch,
            "n": self._number,
            "ack": self._ack,
            "ask": asked,
            "forms": self._forms.forms(forms),
            "withdraw": self._withdrawn,
            "status": wants_status,
        }
        self._withdrawn = []
        return message, sent

    def _taken(self, reply: dict[str, Any]) -> None:
        if "refuse" in reply:
            self._fail(ConfigError(f"the coordinator of {self._name} refuses: {reply['refuse']}"))
            return
        self._ack = reply["n"]
        if self._epoch not in {"", reply["epoch"]}:
            # Another coordinator: it knows nothing of what its predecessor was asked.
            self._give_up_sent()
            self._unsent = dict.fromkeys(self._open)
        self._epoch = reply["epoch"]
        self.workers, self.places = reply["workers"], reply["places"]
        self._interval = min(_IDLE_S, reply["interval"])
        if reply.get("status"):
            self._status = FleetStatus.from_dict(reply["status"])
            self._status_at = time.monotonic()
        for ref, worker, answer in reply["answers"]:
            self._once.discard(ref)
            entry = self._open.pop(ref, None)
            if entry is None or entry[0].done():
                continue
            outcome, attempts = answer_from(answer)
            if isinstance(outcome, ScaleInferError):
                if isinstance(outcome, EndpointError):
                    outcome.attempts = tuple(attempts)
                entry[0].set_exception(outcome)
            else:
                outcome.worker, outcome.attempts = worker, tuple(attempts)
                entry[0].set_result(outcome)

    def _give_up_sent(self) -> None:
        """What its predecessor was asked may be under way; what is paid once is not asked again."""
        for ref in self._once - set(self._unsent):
            future, _, _ = self._open.pop(ref)
            if not future.done():
                future.set_exception(WorkerLost(f"the coordinator of {self._name} was replaced"))
        self._once &= set(self._unsent)

    def _fail(self, problem: ScaleInferError) -> None:
        self.problem = problem
        for future, _, _ in self._open.values():
            if not future.done():
                future.set_exception(copy.copy(problem))
        self._open.clear()
