"""`concurrency="auto"` in real time against servers that queue in silence, refuse, and change.

Run it on an idle machine: `nox -s bench -- limiter`, or a part: `--parts knee,change,rate,fair`.
The server batches continuously and holds `slots` sequences; beyond them it queues without a
word. Answers have 30 to 70 tokens, a step takes so long that the rate stays within what one
core can do. The client always runs with its defaults.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

from tests.benchmarks._load import MEAN_TOKENS, varied
from tests.benchmarks._measure import (
    alone,
    arguments,
    finished,
    heading,
    median,
    say,
    served,
    started,
    table,
    verdict,
)

from scaleinfer.testing import Batching, Change

if TYPE_CHECKING:
    from scaleinfer.testing import Ledger

STEPS = {16: 0.02, 200: 0.025, 1500: 0.05}
FIXED = (0.5, 1.0, 1.25, 1.5, 2.0, 4.0)
PARTS = ("knee", "change", "rate", "fair")


def batching(slots: int, **more: Any) -> Batching:
    return Batching(slots=slots, step_s=STEPS[slots], **more)


def streamed(settings: dict[str, Any], seconds: float, concurrency: Any) -> Ledger:
    """Run one client for some seconds against a new server; return what the server saw."""
    with served(answer=varied, **settings) as server:
        done = alone("_streaming", url=server.base_url, seconds=seconds, concurrency=concurrency)
        if "failed" in done:
            raise SystemExit(f"the client failed: {done['failed']}")
        ledger = server.ledger
    say(f"  {concurrency}: {done['ok']} ok, {done['lost']} lost, core {done['cpu']:.0%} busy")
    return ledger


def knees(options: Any) -> None:
    """Goodput of the defaults over that of the best fixed concurrency, over the same seconds."""
    rows = []
    for slots in options.slots:
        best = best_fixed(slots) if options.sweep else round(1.5 * slots)
        fixed_late, fixed_whole, _ = measured(slots, "silent", best, options)
        share = fixed_late * STEPS[slots] / slots
        fixed = f"{best} ({fixed_late:,.0f} tokens/s, {share:.1%} of slots / step time)"
        for server in options.servers:
            late, whole, peak = measured(slots, server, "auto", options)
            after, during = late / fixed_late, whole / fixed_whole
            rows.append(
                [slots, server, fixed, ">= 0.95", f"{after:.3f}", verdict(after, least=0.95),
                 ">= 0.85", f"{during:.3f}", verdict(during, least=0.85), round(peak)]
            )  # fmt: skip
    print(f"### Servers with a knee, {options.seconds:g} s, medians of {options.rounds}\n")
    table(
        ["knee", "server", "best fixed", "target", "second half over best fixed", "reached",
         "target", "whole run over best fixed", "reached", "peak in flight, second half"], rows
    )  # fmt: skip


def best_fixed(slots: int) -> int:
    """Return the fixed concurrency with the best goodput, once warm, over 15 s."""
    warm = 3 * MEAN_TOKENS * STEPS[slots]
    found = {}
    for factor in FIXED:
        wide = round(slots * factor)
        say(f"knee {slots}: fixed {wide}")
        ledger = streamed({"batching": batching(slots)}, warm + 15, wide)
        found[wide] = ledger.goodput(warm, warm + 15)
        say(f"  {found[wide] * STEPS[slots] / slots:.3f} of slots / step time")
    return max(found, key=lambda wide: found[wide])


def measured(
    slots: int, server: str, concurrency: int | str, options: Any
) -> tuple[float, float, float]:
    """Return goodput in the second half and over the whole run, and the peak in flight."""
    seconds = options.seconds
    settings = {"batching": batching(slots), "load_report": server == "load report"}
    late, whole, peaks = [], [], []
    for number in range(options.rounds):
        say(f"knee {slots}, {server}: {concurrency}, round {number + 1}")
        ledger = streamed(settings, seconds, concurrency)
        late.append(ledger.goodput(seconds / 2, seconds))
        whole.append(ledger.goodput(0, seconds))
        peaks.append(ledger.peak(seconds / 2, seconds))
        columns = ledger.per_second()
        say(f"  {late[-1]:,.0f} late, {whole[-1]:,.0f} whole (tokens/s); "
            f"answered {columns['answered']}, in flight {columns['peak']}")  # fmt: skip
    return median(late), median(whole), median(peaks)


def settled(ledger: Ledger, at: float, best: float, end: float) -> float | None:
    """Return seconds from `at` until goodput is within 10 % of `best` and stays there.

    Windows of 5 s. From there on the whole rest must be within 10 % too.
    """
    for second in range(int(at), int(end) - 5):
        window, rest = ledger.goodput(second, second + 5), ledger.goodput(second, end)
        if min(window, rest) >= 0.9 * best:
            return second - at
    return None


def changes(options: Any) -> None:
    """The knee halves or doubles in the middle of a run."""
    at, seconds = (20.0, 50.0) if options.quick else (40.0, 90.0)
    rows = []
    for name, factor in (("halves", 0.5), ("doubles", 2.0)):
        times: list[float | None] = []
        peaks = []
        slots = round(200 * factor)
        best = slots / STEPS[200]
        for number in range(options.rounds):
            say(f"knee {name}, round {number + 1}")
            settings = {
                "batching": batching(200),
                "load_report": False,
                "changes": [Change(at=at, slots=slots)],
            }
            ledger = streamed(settings, seconds, "auto")
            times.append(settled(ledger, at, best, seconds))
            peaks.append(ledger.peak(seconds - 10, seconds))
            say(f"  {times[-1]} s; in flight {ledger.per_second()['peak']}, "
                f"answered {ledger.per_second()['answered']}")  # fmt: skip
        known = [time for time in times if time is not None]
        worst = max(known) if len(known) == len(times) else float("inf")
        rows.append(
            [f"200 {name} after {at:g} s", "<= 20 s", f"{worst:g} s", verdict(worst, most=20),
             f"{round(median(peaks))} (knee {slots})"]
        )  # fmt: skip
    print(f"### The knee moves, the slowest of {options.rounds}\n")
    print("Until goodput is within 10 % of new slots / step time, and stays there.\n")
    table(["knee", "target", "measured", "reached", "in flight in the last 10 s"], rows)


def rates(options: Any) -> None:
    """A server that answers 429 above its rate."""
    seconds, rate = options.seconds, 50.0
    rows = []
    paces: dict[str, dict[str, Any]] = {
        "100 tokens/s": {"tokens_per_second": 100.0},
        "0.3 to 0.7 s": {"latency": (0.5, 0.2)},
    }
    for (name, pace), hint in product(paces.items(), ("seconds", None)):
        rejected, share = [], []
        for number in range(options.rounds):
            say(f"429 above {rate:g}/s, {name}, retry-after {hint}, round {number + 1}")
            settings = {**pace, "requests_per_second": rate, "burst_s": 0.5, "retry_after": hint}
            ledger = streamed(settings, seconds, "auto")
            rejected.append(ledger.rejected_share(seconds / 2, seconds))
            answered = ledger.per_second()["answered"]
            late = answered[int(seconds / 2) : int(seconds)]
            share.append(sum(late) / len(late) / rate)
            say(f"  {rejected[-1]:.2%} rejected, {share[-1]:.2f} of the rate; {answered}")
        middle = median(rejected)
        rows.append(
            [f"answers in {name}, Retry-After: {hint or 'none'}", "< 1 %", f"{middle:.2%}",
             verdict(middle, most=0.01), f"{median(share):.2f}"]
        )  # fmt: skip
    print(f"### A server that answers 429 above {rate:g}/s\n")
    print(f"Second half of {seconds:g} s, medians of {options.rounds}.\n")
    table(["server", "target", "rejected", "reached", "answers over the rate"], rows)


def fairness(options: Any) -> None:
    """Two clients with the defaults on one server."""
    seconds = options.seconds
    rows = []
    for name, delay in (("start together", 0.0), (f"one {seconds / 4:g} s later", seconds / 4)):
        found, total = [], []
        for number in range(options.rounds):
            say(f"two clients, {name}, round {number + 1}")
            with served(answer=varied, batching=batching(200), load_report=False) as server:
                both = [
                    started("_streaming", url=server.base_url, client=client, delay=wait,
                            seconds=seconds - wait)
                    for client, wait in (("a", 0.0), ("b", delay))
                ]  # fmt: skip
                for process in both:
                    finished(process)
                ledger = server.ledger
            # The ledger's clock starts with the first request; clients end a second apart.
            window = (seconds / 2, seconds - 1)
            shares = [ledger.shares(*window).get(client, 0.0) for client in ("a", "b")]
            found.append(sum(shares) ** 2 / (2 * sum(x * x for x in shares)))
            total.append(ledger.goodput(*window) / (200 / STEPS[200]))
            say(f"  shares {shares}, {total[-1]:.2f} of slots / step time")
        middle = median(found)
        rows.append(
            [f"two clients, {name}", ">= 0.95", f"{middle:.3f}", verdict(middle, least=0.95),
             f"{median(total):.2f}"]
        )  # fmt: skip
    print(f"### Fairness, second half of {seconds:g} s, medians of {options.rounds}\n")
    table(["clients", "target", "Jain index", "reached", "goodput over slots / step"], rows)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--slots", default=",".join(map(str, STEPS)))
    parser.add_argument("--servers", default="silent,load report")
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    options.slots = [int(slots) for slots in options.slots.split(",")]
    options.servers = options.servers.split(",")
    options.sweep = not options.quick
    if options.quick:
        options.rounds = 1
    heading("The limiter")
    kinds = dict(zip(PARTS, (knees, changes, rates, fairness), strict=True))
    for part in options.parts.split(","):
        kinds[part](options)


if __name__ == "__main__":
    main()
