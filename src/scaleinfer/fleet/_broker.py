"""The coordinator's inside: requests of maps on one side, messages of workers on the other."""

from __future__ import annotations

import asyncio
import copy
import hmac
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer import __version__
from scaleinfer.errors import (
    EndpointError,
    Permanent,
    ScaleInferError,
    WorkerLost,
    error_from_dict,
)
from scaleinfer.fleet._client import ClientDesk
from scaleinfer.fleet._leases import LeaseTable
from scaleinfer.fleet._messages import PROTOCOL, FormReader, FormWriter, answer_from, pack, unpack
from scaleinfer.fleet._pace import Tempo, silence_for
from scaleinfer.fleet._shares import ShareDesk
from scaleinfer.fleet._status import FleetStatus, WorkerFacts, WorkerStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaleinfer.fleet._leases import Grant
    from scaleinfer.requests import Request
    from scaleinfer.results import Attempt, Completion

__all__ = ["Broker"]

_MOST_BYTES = 450_000
"""Of the requests in one reply, before compression; what comes out larger is sent in pieces."""
_AHEAD = 2
_MOST_ASKED = 200_000
_BROKEN_FOR = 20.0
_CLIENT_GONE_S = 60.0


@dataclass(slots=True, eq=False)
class _Asked:
    future: asyncio.Future[Completion]
    data: bytes
    form: int


@dataclass(slots=True)
class _Known:
    """What a worker has said of itself."""

    facts: WorkerFacts
    joined: float
    in_flight: int = 0
    limit: int = 0
    failed: int = 0
    tokens: int = 0
    leaving: bool = False
    broken: ScaleInferError | None = None
    broken_since: float = 0.0


class Broker:
    """Takes requests, leases them to workers, and gives their answers back.

    Belongs to one event loop. Its clock is the monotonic one.

    Args:
        name: The fleet's name.
        secret: What workers must show; `None` lets every worker in.

    Attributes:
        name: The same.
        epoch: Tells this coordinator from an earlier one of the same fleet.
        table: Who works on what.
        ending: True once workers are told to end.
        problem: Why no request can be answered any more; else `None`.
        on_change: Called when workers come, go, or break.
    """

    def __init__(self, name: str, *, secret: str | None = None) -> None:
        self.name = name
        self.epoch = secrets.token_hex(8)
        self.table = LeaseTable()
        self.ending = False
        self.problem: ScaleInferError | None = None
        self.on_change: Callable[[str], None] | None = None
        self._secret = secret
        self._tempo = Tempo()
        self._shares = ShareDesk()
        self._forms = FormWriter()
        self._asked: dict[int, _Asked] = {}
        self._known: dict[str, _Known] = {}
        self._gone: set[str] = set()
        self._dismissed: set[str] = set()
        self._left: set[str] = set()
        self._sent_home: set[str] = set()
        self._desks: dict[str, ClientDesk] = {}
        self._desk_forms: dict[str, FormReader] = {}
        self._jobs = 0
        self._met = 0
        self._began = self._ticked = time.monotonic()
        self._failed = 0
        self._tokens = 0

    # -- maps ------------------------------------------------------------------------------

    def job(self) -> int:
        """Return the number of a new job; jobs share the workers evenly."""
        self._jobs += 1
        return self._jobs

    def ask(
        self, request: Request, *, job: int = 0, priority: int = 0
    ) -> tuple[int, asyncio.Future[Completion]]:
        """Have a worker ask a request; return its number and its answer to come.

        Raises:
            PromptError: The request cannot be written as JSON.
            ScaleInferError: There are no workers, and there will be none.
        """
        form, data = self._forms.request(request)
        if self.problem is not None:
            raise copy.copy(self.problem)
        number = self.table.add(job, priority=priority, size=len(data), once=request.once)
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._asked[number] = _Asked(future, data, form)
        return number, future

    def withdraw(self, number: int) -> None:
        """Nobody waits for the answer any more; its worker is told with the next message."""
        if self._asked.pop(number, None) is not None:
            self.table.withdraw(number)

    def fail(self, problem: ScaleInferError) -> None:
        """No request can be answered any more: those that wait learn why, new ones too."""
        self.problem = problem
        for number in list(self._asked):
            self.table.withdraw(number)
            self._settle(number, copy.copy(problem))

    def end(self, why: ScaleInferError) -> None:
        """Tell every worker, with its next message, that it is over."""
        self.ending = True
        self.fail(why)

    def dismiss(self, count: int) -> None:
        """Have so many workers leave once they have finished what they are at."""
        here = [one for one in self.table.statistics().workers if one.name not in self._dismissed]
        idlest = sorted(here, key=lambda one: one.held)
        self._dismissed.update(one.name for one in idlest[:count])

    @property
    def workers(self) -> int:
        """Workers that are here."""
        return self.table.workers

    @property
    def nodes(self) -> int:
        """Nodes on which there is a worker."""
        return len({known.facts.node for known in self._known.values()})

    def knew(self, worker: str) -> bool:
        """True if the worker is here or was."""
        return worker in self._known or worker in self._gone

    def sent_home(self, worker: str) -> bool:
        """True if the worker has been told that the fleet ends."""
        return worker in self._sent_home

    def has_left(self, worker: str) -> bool:
        """True if the worker has said that it ends, and that nothing is wrong with it."""
        return worker in self._left

    @property
    def met(self) -> int:
        """Workers that have ever been here."""
        return self._met

    @property
    def places(self) -> int:
        """Requests that are useful to have here at once: what workers hold, and as many again.

        A reply to a worker can grant only what is there when its message comes.
        """
        return min(_AHEAD * self.table.room, _MOST_ASKED)

    # -- workers ---------------------------------------------------------------------------

    def knows(self, secret: object) -> bool:
        """True if the secret is the fleet's, or it has none."""
        ours = self._secret
        if ours is None:
            return True
        return isinstance(secret, str) and hmac.compare_digest(secret.encode(), ours.encode())

    def message(self, text: str) -> str:
        """Take a worker's message and return the reply."""
        try:
            said = unpack(text)
            if not isinstance(said, dict):
                raise ValueError("no message of a fleet")
            refusal = self._refusal(said)
            replied = self._client_replied if "client" in said else self._replied
            reply = {"refuse": refusal} if refusal else replied(said, time.monotonic())
        except (ValueError, LookupError, TypeError) as error:
            reply = {"refuse": f"the coordinator cannot read the message: {error}"}
        return pack(reply)

    def tick(self) -> None:
        """Give up workers that are silent; to be called about once a second."""
        now, table = time.monotonic(), self.table
        self._tempo.tick(now - self._ticked, table.interval)
        self._ticked = now
        table.interval = self._tempo.interval(table.workers)
        silent = table.silent(now, silence_for(table.interval))
        # Where nobody is heard of, it is the exchange that has gone, and no request's doing.
        blame = len(silent) < table.workers or len(silent) == 1
        for worker in silent:
            why = f"was not heard of for {silence_for(table.interval):.0f} s"
            self.lost(worker, why, blame=blame)
        self._fail_if_all_broken(now)
        self._close_desks(now)

    def lost(self, worker: str, why: str, *, blame: bool = True) -> None:
        """A worker is gone: its tasks go out again.

        Args:
            worker: Its name.
            why: What happened, for messages.
            blame: False if what it held cannot be the cause.
        """
        known = self._known.get(worker)
        if known is None:
            return
        for number in self.table.lost(worker, blame=blame):
            error = WorkerLost(
                f"every worker that had it was lost; the last one, {worker} on "
                f"{known.facts.node}, {why}",
                hint=f"Its log: {known.facts.log}" if known.facts.log else "",
            )
            self._settle(number, error)
        self._forget(worker, f"{worker} on {known.facts.node} {why}")

    def status(self) -> FleetStatus:
        """Return where the fleet stands."""
        now, leases = time.monotonic(), self.table.statistics()
        elapsed = max(now - self._began, 1e-9)
        workers = []
        for one in leases.workers:
            known = self._known[one.name]
            workers.append(
                WorkerStatus(
                    name=one.name,
                    facts=known.facts,
                    state=_state(known),
                    in_flight=known.in_flight,
                    limit=known.limit,
                    held=one.held,
                    answered=one.answered,
                    failed=known.failed,
                    tokens=known.tokens,
                    items_per_s=one.answered / max(now - known.joined, 1e-9),
                    seen_s=now - one.seen,
                    problem="" if known.broken is None else str(known.broken),
                )
            )
        return FleetStatus(
            name=self.name,
            workers=tuple(workers),
            queued=leases.queued,
            leased=leases.leased,
            answered=leases.answered,
            failed=self._failed,
            tokens=self._tokens,
            elapsed_s=elapsed,
            requeued=leases.requeued,
            doubled=leases.doubled,
            copies=leases.copies,
            lost_workers=leases.lost_workers,
        )

    # -- the inside ------------------------------------------------------------------------

    def _refusal(self, said: dict[str, Any]) -> str:
        if said.get("v") != PROTOCOL:
            return (
                f"the worker runs scaleinfer {said.get('version')} (protocol {said.get('v')}) and "
                f"the coordinator {__version__} (protocol {PROTOCOL}): install the same "
                "version on both sides."
            )
        if not self.knows(said.get("secret")):
            return f"the worker does not know the secret of the fleet {self.name!r}."
        return ""

    def _replied(self, said: dict[str, Any], now: float) -> dict[str, Any]:
        worker, table = said["worker"], self.table
        ours = said["epoch"] in {"", self.epoch}
        reset = "" if ours else "all"
        if worker not in self._known:
            self._meet(worker, said, now)
            if ours and said["n"]:
                # It was given up; what it has not begun, others have by now.
                reset = "unbegun"
        fresh = table.message(
            worker,
            now,
            number=said["n"],
            ack=said["ack"] if ours else -1,
            room=said["room"],
            unbegun=0 if reset else said["unbegun"],
        )
        if ours:
            for number, fence in said["back"]:
                table.handed_back(worker, number, fence)
            for number, answer in said["done"]:
                self._answered(worker, number, answer, now)
        if fresh:
            self._tempo.heard(said["took"])
        self._note(worker, said, now)
        reply = {
            "epoch": self.epoch,
            "n": said["n"],
            "interval": self._tempo.interval(table.workers, idle=not len(table)),
            "end": self.ending,
            "reset": reset,
            "leave": worker in self._dismissed,
        }
        if said["leave"] or self.ending:
            table.leave(worker)
            if said["leave"]:
                self._shares.left(worker, now)
            if self.ending:
                self._sent_home.add(worker)
            elif self._known[worker].broken is None:
                self._left.add(worker)
            self._forget(worker, f"{worker} has left")
        elif fresh:
            if "rates" in said:
                lasts = silence_for(reply["interval"])
                shares = self._shares.heard(worker, said["rates"], now, lasts_s=lasts)
                reply |= {"shares": shares, "shares_s": lasts}
            reply |= self._granted(table.grant(worker, now, most_bytes=_MOST_BYTES))
        return reply

    def _client_replied(self, said: dict[str, Any], now: float) -> dict[str, Any]:
        desk = self._desks.setdefault(said["client"], ClientDesk(now))
        desk.seen = now
        reply = {
            "epoch": self.epoch,
            "n": said["n"],
            "interval": self.table.interval,
            "workers": self.table.workers,
            "places": self.places,
            "answers": [],
            "status": self.status().to_dict() if said["status"] else None,
        }
        if not desk.fresh(said["n"], said["ack"] if said["epoch"] == self.epoch else -1):
            return reply
        self._desk_forms.setdefault(said["client"], FormReader()).learn(said["forms"])
        for ref, job, priority, data in said["ask"]:
            if not desk.knows(ref):
                request = self._desk_forms[said["client"]].request(data)
                own = desk.jobs.setdefault(job, 0) or self.job()
                desk.jobs[job] = own
                desk.asked(ref, *self.ask(request, job=own, priority=priority))
        for ref in said["withdraw"]:
            number = desk.withdrawn(ref)
            if number is not None:
                self.withdraw(number)
        reply["answers"] = desk.answers()
        return reply

    def _close_desks(self, now: float) -> None:
        """Clients that are gone wait for no answers."""
        for name, desk in list(self._desks.items()):
            if now - desk.seen > _CLIENT_GONE_S:
                for number in desk.tasks():
                    self.withdraw(number)
                del self._desks[name]
                self._desk_forms.pop(name, None)

    def _granted(self, grant: Grant) -> dict[str, Any]:
        asked = [(number, fence, self._asked[number]) for number, fence in grant.leases]
        forms = {one.form for _, _, one in asked if one.form >= 0}
        return {
            "forms": self._forms.forms(forms),
            "give": [(number, fence, orjson.Fragment(one.data)) for number, fence, one in asked],
            "drop": grant.drop,
            "back": grant.give_back,
        }

    def _meet(self, worker: str, said: dict[str, Any], now: float) -> None:
        facts = WorkerFacts.from_dict(said.get("facts") or {})
        self._known[worker] = _Known(facts, now)
        self._met += 1
        self.table.interval = self._tempo.interval(self.table.workers + 1)
        again = " again" if worker in self._gone else ""
        self._gone.discard(worker)
        self._left.discard(worker)
        self._changed(f"{worker} on {facts.node} is here{again}")

    def _note(self, worker: str, said: dict[str, Any], now: float) -> None:
        known = self._known[worker]
        if said.get("facts"):
            known.facts = WorkerFacts.from_dict(said["facts"])
        known.in_flight, known.limit = said["in_flight"], said["limit"]
        known.leaving = bool(said.get("leaving"))
        problem = said.get("broken")
        if problem is None:
            if known.broken is not None:
                self._changed(f"{worker} works again")
            known.broken = None
            return
        if known.broken is None:
            known.broken_since = now
            self._changed(f"{worker} on {known.facts.node} cannot work: {problem.get('message')}")
        known.broken = error_from_dict(problem)

    def _answered(self, worker: str, number: int, answer: list[Any], now: float) -> None:
        if not self.table.answered(worker, number, now):
            return
        known = self._known[worker]
        try:
            outcome, attempts = answer_from(answer)
        except ValueError as error:
            outcome, attempts = Permanent(f"{worker} sent {error}"), []
        if isinstance(outcome, ScaleInferError):
            known.failed += 1
            self._failed += 1
        else:
            known.tokens += outcome.usage.completion_tokens
            self._tokens += outcome.usage.completion_tokens
        self._settle(number, outcome, worker, attempts)

    def _settle(
        self,
        number: int,
        outcome: Completion | ScaleInferError,
        worker: str | None = None,
        attempts: list[Attempt] | None = None,
    ) -> None:
        asked = self._asked.pop(number, None)
        if asked is None or asked.future.done():
            return
        if isinstance(outcome, ScaleInferError):
            if isinstance(outcome, EndpointError):
                outcome.attempts = tuple(attempts or ())
            asked.future.set_exception(outcome)
            return
        outcome.worker = worker
        outcome.attempts = tuple(attempts or ())
        asked.future.set_result(outcome)

    def _forget(self, worker: str, why: str) -> None:
        self._dismissed.discard(worker)
        if self._known.pop(worker, None) is not None:
            self._shares.gone(worker)
            self._gone.add(worker)
            self._changed(why)

    def _fail_if_all_broken(self, now: float) -> None:
        """If no worker can work, waiting items get the reason instead of waiting for ever."""
        broken = [known for known in self._known.values() if known.broken is not None]
        if not broken or len(broken) < len(self._known):
            return
        if max(known.broken_since for known in broken) > now - _BROKEN_FOR:
            return
        cause = broken[0].broken
        assert cause is not None
        for number in list(self._asked):
            self.table.withdraw(number)
            self._settle(number, copy.copy(cause))

    def _changed(self, what: str) -> None:
        if self.on_change is not None:
            self.on_change(what)


def _state(known: _Known) -> str:
    if known.broken is not None:
        return "broken"
    return "leaving" if known.leaving else "working"
