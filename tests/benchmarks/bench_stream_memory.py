"""How the memory of `stream_map` grows over a million items: `nox -s bench -- stream_memory`.

Each row is a process of its own. Growth is the most that resident memory rose above what it was
after 20,000 items.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from tests.benchmarks._measure import alone, arguments, heading, say, served, table, verdict


def measured(items: int, *, http: bool, **options: Any) -> dict[str, Any]:
    with ExitStack() as stack:
        url = stack.enter_context(served()).base_url if http else ""
        return alone("_memory", items=items, url=url, **options)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    options = parser.parse_args()
    million = 200_000 if options.quick else options.items
    over_http = million // 5
    heading("Memory of a stream")
    rows = []
    for name, items, settings in (
        ("in memory, as completed", million, {"http": False}),
        ("in memory, in order", million, {"http": False, "ordered": 1}),
        ("in memory, in order, journal", million, {"http": False, "ordered": 1, "journal": 1}),
        ("HTTP, as completed", over_http, {"http": True}),
        ("HTTP, in order, journal", over_http, {"http": True, "ordered": 1, "journal": 1}),
    ):
        say(f"{name}: {items:,} items")
        run = measured(items, **settings)
        if "failed" in run:
            rows.append([name, f"{items:,}", f"failed: {run['failed']}", *[""] * 5])
            continue
        rows.append(
            [name, f"{items:,}", f"{run['base']:.1f}", "<= 5 MB", f"{run['growth']:+.1f}",
             verdict(run["growth"], most=5), f"{run['end']:+.1f}", f"{run['rate']:,.0f}"]
        )  # fmt: skip
        say(f"  {run}")
    table(
        ["stream", "items", "MB after 20,000", "target", "growth, MB", "reached", "at the end, MB",
         "items/s"], rows
    )  # fmt: skip


if __name__ == "__main__":
    main()
