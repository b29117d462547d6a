"""How long `import scaleinfer` takes: `nox -s bench -- import`."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.benchmarks._measure import arguments, heading, median, table, verdict

HEAVY = ("academy", "aiohttp", "langgraph", "openai", "openvino_genai", "pandas", "pydantic")
CODE = f"""
import json, sys, time
began = time.perf_counter()
import scaleinfer
took = time.perf_counter() - began
{{more}}
print(json.dumps([took, time.perf_counter() - began, [m for m in {HEAVY} if m in sys.modules]]))
"""


def imported(more: str) -> tuple[float, float, list[str]]:
    """Return seconds of the import, seconds with `more`, and what heavy things came along."""
    output = subprocess.check_output([sys.executable, "-c", CODE.format(more=more)])
    package, everything, heavy = json.loads(output)
    return package, everything, heavy


def main() -> None:
    parser = arguments(__doc__, rounds=20)
    options = parser.parse_args()
    rounds = 5 if options.quick else options.rounds
    heading(f"Import time, medians of {rounds} processes")
    imported("")  # compiles what is not compiled yet
    rows = []
    for what, more, most in (
        ("`import scaleinfer`", "", 0.15),
        ("`from scaleinfer import parallel_map`", "scaleinfer.parallel_map", None),
    ):
        runs = [imported(more) for _ in range(rounds)]
        took = median(run[1] for run in runs)
        reached = "" if most is None else verdict(took, most=most)
        heavy = ", ".join(runs[0][2]) or "nothing"
        rows.append([what, "<= 150 ms" if most else "", f"{took * 1e3:.0f} ms", reached, heavy])
    table(["what", "target", "measured", "reached", "heavy things that came along"], rows)


if __name__ == "__main__":
    main()
