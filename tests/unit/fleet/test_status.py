"""A fleet's status as data."""

from __future__ import annotations

from dataclasses import asdict

import orjson

from scaleinfer.fleet import FleetStatus, WorkerFacts, WorkerStatus
from scaleinfer.fleet._messages import MOST_CHARACTERS, pack, unpack


def worker(number: int, endpoints: int = 2) -> WorkerStatus:
    urls = tuple(f"http://127.0.0.1:{20_000 + 7 * number + one}/v1" for one in range(endpoints))
    facts = WorkerFacts(f"x4{number:04d}c0s0b0n0", 1000 + number, urls, "m", "0.1.0", "/logs/w")
    return WorkerStatus(
        f"aurora-{number}", facts, "working", 4, 8, 9, 100, 1, 1000, 2.0 / (number + 1), 0.5, ""
    )


def status(workers: int, endpoints: int = 2) -> FleetStatus:
    everyone = tuple(worker(number, endpoints) for number in range(workers))
    return FleetStatus("screen", everyone, 6, 4, 1000, 0, 9000, 60.0, 1, 2, 3, 4)


def test_data_is_whole_and_becomes_the_status_again() -> None:
    now = status(3)
    assert now.to_dict() == asdict(now) | {"workers": list(asdict(now)["workers"])}
    assert FleetStatus.from_dict(orjson.loads(orjson.dumps(now.to_dict()))) == now


def test_two_thousand_workers_with_twelve_servers_each_fit_into_a_message() -> None:
    now = status(2000, endpoints=12)
    text = pack({"status": now.to_dict()})
    assert len(text) < MOST_CHARACTERS
    assert FleetStatus.from_dict(unpack(text)["status"]) == now
