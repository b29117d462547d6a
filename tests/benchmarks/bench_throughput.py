"""What a map costs over the raw wire, and what a user would pick instead, side by side.

Run it on an idle machine: `nox -s bench -- throughput`. Rounds are interleaved; each measurement
has a client process and a server process of its own. A peer that is not installed for `--python`
is listed as such.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from tests.benchmarks._measure import alone, arguments, heading, median, say, served, table, verdict

NAMES = {
    "wire": "raw wire (`DirectWire`)",
    "pyreqwest": "raw pyreqwest",
    "aiohttp": "aiohttp, gather",
    "map": "`parallel_map`",
    "map+journal": "`parallel_map`, journal",
    "openai": "openai, gather",
    "openai-aiohttp": "openai `DefaultAioHttpClient`, gather",
    "litellm": "litellm `acompletion`, gather",
    "langchain": "langchain-openai `abatch`",
    "inspect_ai": "inspect_ai `eval`",
}
OURS = ("wire", "pyreqwest", "aiohttp", "map", "map+journal")
SDKS = ("openai", "openai-aiohttp")
SLOW = ("litellm", "langchain")


@dataclass(frozen=True, slots=True)
class Case:
    """So many in flight, answers after so many seconds, and how many items each client gets."""

    wide: int
    latency: float
    items: dict[str, int]

    @property
    def name(self) -> str:
        ceiling = f", ceiling {self.wide / self.latency:,.0f}/s" if self.latency else ""
        return f"{self.wide:,} in flight, {self.latency:g} s answers{ceiling}"


def each(names: tuple[str, ...], items: int) -> dict[str, int]:
    return dict.fromkeys(names, items)


CASES = {
    "64": Case(64, 0.0, each(OURS, 20_000) | each(SDKS, 3000) | each(SLOW, 1500)
               | {"inspect_ai": 300}),
    "1000": Case(1000, 0.5, each(OURS, 20_000) | each(SDKS, 4000) | each(SLOW, 3000)),
    "1000-fast": Case(1000, 0.05, each(OURS, 30_000)),
    "10000": Case(10_000, 0.5, each(OURS, 60_000)),
}  # fmt: skip

Runs = dict[str, list[dict[str, Any]]]


def measured(case: Case, clients: list[str], options: Any) -> Runs:
    runs: Runs = {client: [] for client in case.items if client in clients}
    for number in range(options.rounds):
        for client in runs:
            if any("failed" in run for run in runs[client]):
                continue
            say(f"{case.name}, round {number + 1}: {client}")
            items = case.items[client]
            if options.quick:
                items = max(items // 4, min(items, 2 * case.wide))
            with served(latency=case.latency) as server:
                run = alone(
                    "_clients",
                    python=options.python,
                    only=client,
                    url=server.base_url,
                    wide=case.wide,
                    items=items,
                    warm=min(2 * case.wide, items),
                )
            runs[client].append(run)
    return runs


def show(case: Case, runs: Runs) -> dict[str, dict[str, float]]:
    """Print a case's table; return the medians."""
    found: dict[str, dict[str, float]] = {}
    rows = []
    for client, some in runs.items():
        if failed := [run["failed"] for run in some if "failed" in run]:
            rows.append([NAMES[client], f"does not run: {failed[0][:200]}", "", "", ""])
            continue
        middle = {name: median(run[name] for run in some) for name in ("rate", "cpu", "rss")}
        found[client] = middle
        over = f"{middle['rate'] / found['wire']['rate']:.2f}" if "wire" in found else ""
        rows.append(
            [NAMES[client], f"{middle['rate']:,.0f}", over, f"{middle['cpu'] * 1e6:,.0f}",
             f"{middle['rss']:,.0f}"]
        )  # fmt: skip
    print(f"\n### {case.name}\n")
    table(["client", "items/s", "over the raw wire", "CPU us/item", "peak RSS MB"], rows)
    return found


def targets(found: dict[str, dict[str, dict[str, float]]]) -> list[list[str]]:
    """Return the rows of the target table that this benchmark answers."""
    rows = []

    def ratio(case: str, client: str, over: str, least: float) -> None:
        both = found.get(case, {})
        if client in both and over in both:
            value = both[client]["rate"] / both[over]["rate"]
            what = f"{NAMES[client]} over {NAMES[over]}, {CASES[case].name}"
            rows.append([what, f">= {least:g}", f"{value:.2f}", verdict(value, least=least)])

    for case in CASES:
        ratio(case, "map+journal", "wire", 0.5)
        ratio(case, "map+journal", "aiohttp", 1.2)
    ratio("64", "map+journal", "openai", 15)
    ratio("1000", "map+journal", "openai", 10)
    ours = found.get("10000", {}).get("map+journal")
    if ours is not None:
        cpu = ours["cpu"] * 1e6
        what = f"CPU us/item of {NAMES['map+journal']}, {CASES['10000'].name}"
        rows.append([what, "<= 250", f"{cpu:.0f}", verdict(cpu, most=250)])
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--clients", default=",".join(NAMES))
    parser.add_argument("--python", default=sys.executable, help="interpreter that has the peers")
    options = parser.parse_args()
    if options.quick:
        options.rounds = 1
    clients = options.clients.split(",")
    heading(f"Throughput, medians of {options.rounds}")
    found = {}
    for name in options.cases.split(","):
        case = CASES[name]
        found[name] = show(case, measured(case, clients, options))
    table(["measure", "target", "measured", "reached"], targets(found))


if __name__ == "__main__":
    main()
