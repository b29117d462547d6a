"""A map as a node against `Send`, and graphs that are mapped against `graph.abatch`.

Run it on an idle machine: `nox -s bench -- langgraph`. Each measurement has a client process and a
server process of its own; rounds are interleaved. The peers ask with langchain-openai, which a
`--python` without it does not have.
"""

from __future__ import annotations

import sys
from typing import Any

from tests.benchmarks._measure import alone, arguments, heading, median, say, served, table, verdict

NAMES = {
    "node": "`map_node`",
    "send": "`Send`, `ChatOpenAI`",
    "graphs": "`parallel_map(items, graph)`, `ChatScaleInfer`",
    "abatch": "`graph.abatch`, `ChatOpenAI`",
    "abatch-ours": "`graph.abatch`, `ChatScaleInfer`",
}
ITEMS, GRAPHS = 2000, 1000
WIDE, LATENCY = 500, 0.05
MANY, SLOW = 5000, 2.0


def measured(
    names: tuple[str, ...],
    items: int,
    options: Any,
    *,
    wide: int = WIDE,
    latency: float = LATENCY,
) -> dict[str, list[dict[str, Any]]]:
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(options.rounds):
        for name in names:
            say(f"round {number + 1}: {name}")
            with served(latency=latency) as server:
                runs[name].append(
                    alone("_langgraph", python=options.python, only=name, url=server.base_url,
                          items=items, wide=wide)
                )  # fmt: skip
    return runs


def show(
    title: str, unit: str, runs: dict[str, list[dict[str, Any]]]
) -> dict[str, dict[str, float]]:
    """Print a table; return the medians."""
    found: dict[str, dict[str, float]] = {}
    rows = []
    for name, some in runs.items():
        if failed := [run["failed"] for run in some if "failed" in run]:
            rows.append([NAMES[name], f"does not run: {failed[0][:200]}", "", "", ""])
            continue
        middle = {key: median(run[key] for run in some) for key in some[0]}
        found[name] = middle
        rows.append(
            [NAMES[name], f"{middle['rate']:,.0f}", f"{middle['cpu'] * 1e6:,.0f}",
             f"{middle['growth']:,.1f}", f"{middle['peak']:,.0f}"]
        )  # fmt: skip
    print(f"\n### {title}\n")
    table(["way", f"{unit}/s", f"CPU us/{unit[:-1]}", "memory on top MB", "peak RSS MB"], rows)
    return found


def targets(found: dict[str, dict[str, float]]) -> list[list[str]]:
    """Return the rows of the target table that this benchmark answers."""
    rows = []
    if {"node", "send"} <= found.keys():
        node, send = found["node"], found["send"]
        faster = node["rate"] / send["rate"]
        rows.append(["throughput of `map_node` over `Send`", ">= 10", f"{faster:.1f}",
                     verdict(faster, least=10)])  # fmt: skip
        memory = node["growth"] / send["growth"]
        rows.append(["memory on top of `map_node` over `Send`", "<= 0.2", f"{memory:.2f}",
                     verdict(memory, most=0.2)])  # fmt: skip
    if {"graphs", "abatch"} <= found.keys():
        faster = found["graphs"]["rate"] / found["abatch"]["rate"]
        what = "graphs a second of `parallel_map` over `graph.abatch`"
        rows.append([what, "none", f"{faster:.1f}", ""])
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--python", default=sys.executable, help="interpreter that has the peers")
    options = parser.parse_args()
    items, graphs = ITEMS, GRAPHS
    if options.quick:
        options.rounds, items, graphs = 1, ITEMS // 4, GRAPHS // 4
    heading(f"LangGraph, medians of {options.rounds}")
    where = f"{WIDE} in flight, {LATENCY:g} s answers"
    found = show(f"{items:,} items in one graph, {where}", "items",
                 measured(("node", "send"), items, options))  # fmt: skip
    found |= show(f"{graphs:,} graphs of 3 calls each, {where}", "graphs",
                  measured(("graphs", "abatch", "abatch-ours"), graphs, options))  # fmt: skip
    table(["measure", "target", "measured", "reached"], targets(found))
    many = MANY // 10 if options.quick else MANY
    show(f"{many:,} graphs of 3 calls each, all in flight, {SLOW:g} s answers", "graphs",
         measured(("graphs",), many, options, wide=many, latency=SLOW))  # fmt: skip


if __name__ == "__main__":
    main()
