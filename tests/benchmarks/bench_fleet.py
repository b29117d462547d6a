"""The fleet: items through an exchange, a coordinator's CPU, joining, a slow worker.

`nox -s bench -- fleet`, or with `--parts throughput coordinator join slow`. Needs redis-server.

`throughput`: to four processes that answer at once, and back, over Redis and over an HTTP
exchange: one Academy action per item as the baseline (plain Academy factories, round robin, 64
awaited at once), then a `Broker`, then whole maps. `coordinator`: its CPU with 1,000 simulated
workers. `join`: simulated workers over a real Redis. `slow`: one of eight 20 times slower, in
processes and in simulated time.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks._fleet_simulated import SimulatedFleet
from tests.benchmarks._measure import (
    alone,
    arguments,
    finished,
    heading,
    median,
    say,
    started,
    table,
    verdict,
)
from tests.services.http_exchange import HttpExchange
from tests.services.redis import Redis

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

PARTS = ("throughput", "coordinator", "join", "slow")
CASES = {
    "actions": "one action per item (Academy)",
    "broker": "`Broker`, leases",
    "map": "`parallel_map`",
    "map-journal": "`parallel_map`, journal",
}
TARGETS = {"redis": 40.0, "http": 30.0}
WORKERS, SLOWER, PLACES = 8, 20, 8


@contextlib.contextmanager
def exchange(kind: str) -> Iterator[Redis | HttpExchange]:
    """Run an exchange of its own: Redis without persistence, or Academy's HTTP server."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        with Redis(path, keep=False) if kind == "redis" else HttpExchange(path) as served:
            yield served


def measured(module: str, **options: Any) -> dict[str, Any]:
    """Run a case in a process of its own."""
    found = alone(module, **options)
    say(f"  {found}")
    if "failed" in found:
        raise SystemExit(found["failed"])
    return found


def throughput(options: argparse.Namespace) -> None:
    """Print items a second and CPU an item."""
    items = {"actions": 1_000, "broker": 60_000, "map": 20_000, "map-journal": 10_000}
    heading("Items to four workers and back")
    for kind, target in TARGETS.items():
        runs: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
        for number in range(options.rounds):
            for case, found in runs.items():
                say(f"{kind}, {case}, round {number + 1}")
                with exchange(kind) as served:
                    found.append(
                        measured(
                            "_fleet_client",
                            case=case,
                            exchange=served.url,
                            exchange_pid=served.pid,
                            items=items[case] // (4 if options.quick else 1),
                        )
                    )
        _show_throughput(kind, target, runs)


def _show_throughput(kind: str, target: float, runs: dict[str, list[dict[str, Any]]]) -> None:
    def of(case: str, what: str) -> float:
        return median(run.get(what, 0.0) for run in runs[case])

    base = runs["actions"]
    rows = []
    for case, name in CASES.items():
        # Round by round: what else the machine does moves both.
        ratio = median(run["rate"] / one["rate"] for run, one in zip(runs[case], base, strict=True))
        reached = verdict(ratio, least=target) if case == "broker" else ""
        cpu = [f"{of(case, what):,.0f}" for what in ("client_us", "workers_us", "exchange_us")]
        rows.append([name, f"{of(case, 'rate'):,.0f}", f"{ratio:.1f}", *cpu, reached])
    print(f"{kind}; target for the broker: {target:.0f} times the baseline.\n")
    table(
        ["way", "items/s", "over the baseline", "CPU us/item: client", "workers", "exchange",
         "reached"],
        rows,
    )  # fmt: skip


def coordinator(options: argparse.Namespace) -> None:
    """Print the coordinator's CPU with 1,000 workers at 10 items/s each."""
    heading("A coordinator of 1,000 simulated workers")
    say("broker in simulated time")
    inside = [measured("_fleet_coordinator", case="broker") for _ in range(options.rounds)]
    sizes = {name: inside[0][name] for name in ("message_bytes", "reply_bytes")}
    broker, rate = median(run["cores"] for run in inside), inside[0]["messages_per_s"]
    rows = []
    for kind in TARGETS:
        say(f"Academy's part over {kind}")
        costs = []
        for _ in range(options.rounds):
            with exchange(kind) as served:
                case = {"case": "academy", "exchange": served.url}
                costs.append(measured("_fleet_coordinator", **case, **sizes)["message_us"])
        academy = median(costs) * rate / 1e6
        whole = broker + academy
        rows.append(
            [kind, f"{inside[0]['items_per_s']:,.0f}", f"{rate:.0f}", f"{broker:.2f}",
             f"{median(costs):,.0f}", f"{academy:.2f}", f"{whole:.2f}", verdict(whole, most=1.0)]
        )  # fmt: skip
    print("Prompts of 1,000 characters, answers of 200.", end=" ")
    print(f"A message has {sizes['message_bytes']:,} bytes, a reply {sizes['reply_bytes']:,}.\n")
    table(
        ["exchange", "items/s", "messages/s", "broker, cores", "Academy, us/message",
         "Academy, cores", "together (<= 1)", "reached"],
        rows,
    )  # fmt: skip


def join(options: argparse.Namespace) -> None:
    """Print what becomes of 2,000 workers that join within a minute."""
    heading("Simulated workers that join over a real Redis")
    over, boxes = 40.0, options.join // 10
    with exchange("redis") as served:
        client: Any = {"case": "coordinate", "exchange": served.url, "warm": 5, "seconds": 10}
        peers: Any = {"exchange": served.url, "fleet": "bench", "mailboxes": boxes, "rate": 1}
        ours = started("_fleet_client", workers=options.join, **client)
        theirs = started("_fleet_peers", workers=options.join, over=over, heartbeat=30, **peers)
        held, joined = finished(ours), finished(theirs)
    say(f"  {held} {joined}")
    if "failed" in held or "failed" in joined:
        raise SystemExit(held.get("failed") or joined.get("failed"))
    print(f"{options.join:,} workers with {boxes} mailboxes, joining over {over:.0f} s.\n")
    fed_s = joined["fed_s"] if joined["fed"] == options.join else float("inf")
    rows = [["seconds until all were fed", "<= 60", f"{fed_s:.0f}", verdict(fed_s, most=60)]]
    for what, count in (
        ("messages without a reply", joined["unanswered"]),
        ("answers that came twice", held["doubled"]),
        ("workers given up", held["lost_workers"]),
    ):
        rows.append([what, "0", str(count), verdict(count, most=0)])
    rows.append(["messages in all", "", f"{joined['sent']:,}", ""])
    rows.append(["longest wait for a reply", "", f"{joined['longest_s']:.1f} s", ""])
    table(["what", "target", "measured", "reached"], rows)


def slow(options: argparse.Namespace) -> None:
    """Print the makespan with one slow worker, over the ideal."""
    heading(f"One of {WORKERS} workers {SLOWER} times slower")
    rows = []
    for seconds, items in ((0.05, 4_000), (0.2, 4_000)):
        ideal = items * seconds / PLACES / (WORKERS - 1 + 1 / SLOWER)
        fleet = SimulatedFleet([seconds * SLOWER, *[seconds] * (WORKERS - 1)], places=PLACES)
        simulated = fleet.run(items) / ideal
        runs = []
        for number in range(options.rounds):
            say(f"{items} items of {seconds} s, round {number + 1}")
            with exchange("redis") as served, tempfile.TemporaryDirectory() as folder:
                os.environ["SCALEINFER_BENCH_SECONDS"] = str(seconds)
                os.environ["SCALEINFER_BENCH_SLOW"] = f"{folder}/slow"
                runs.append(
                    measured(
                        "_fleet_client",
                        case="slow",
                        exchange=served.url,
                        items=items,
                        workers=WORKERS,
                    )
                )
        over = median(run["elapsed"] for run in runs) / ideal
        copies = median(run["copies"] for run in runs)
        rows.append(
            [f"{items:,} of {seconds} s", f"{ideal:.1f}", f"{simulated:.2f}", f"{over:.2f}",
             verdict(over, most=1.15), f"{copies:.0f}"]
        )  # fmt: skip
    table(
        ["items", "ideal, s", "simulated time, over ideal", "processes (<= 1.15)", "reached",
         "second copies"],
        rows,
    )  # fmt: skip


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--join", type=int, default=2_000, help="workers that join")
    options = parser.parse_args()
    if options.quick:
        options.rounds = 1
    parts = {"throughput": throughput, "coordinator": coordinator, "join": join, "slow": slow}
    for part in options.parts:
        parts[part](options)


if __name__ == "__main__":
    main()
