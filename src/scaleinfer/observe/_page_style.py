"""The report's style sheet and its script, which sorts and searches tables."""

from __future__ import annotations

import hashlib
from base64 import b64encode

__all__ = ["POLICY", "SCRIPT", "STYLE"]

STYLE = """
:root { color-scheme: light dark; --page: #f7f7f5; --card: #fff; --ink: #1d1d1b; --soft: #5f5e59;
  --rule: #e3e2dd; --bad: #c0392b; --good: #1b7f4d; --warn: #9a6700;
  --s0: #2a78d6; --s1: #e0652f; --s2: #18a074; --s3: #c98a00; --s4: #d6628c; --s5: #2e7d32;
  --s6: #5b4bb7; --s7: #d64545; --s8: #8a8984; }
@media (prefers-color-scheme: dark) { :root { --page: #161615; --card: #1f1f1e; --ink: #ecebe6;
  --soft: #a3a29b; --rule: #363532; --bad: #f07f74; --good: #56c48c; --warn: #e0b050;
  --s0: #4d97ea; --s1: #e8793f; --s2: #2bb58a; --s3: #dba23a; --s4: #e07fa5; --s5: #58a65c;
  --s6: #9b8df0; --s7: #ee7272; --s8: #8f8e88; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 84rem; margin: 0 auto; padding: 1.6rem 1.2rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.12rem; margin: 2.2rem 0 .7rem; }
.sub { color: var(--soft); margin: .2rem 0 0; overflow-wrap: anywhere; }
.banner { margin: 1rem 0 0; padding: .55rem .9rem; border-radius: 8px; background: var(--card);
  border: 1px solid var(--rule); border-left: 4px solid var(--warn); overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(7.6rem, 1fr)); gap: .7rem;
  margin: 1.3rem 0 0; }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: .6rem .85rem .65rem; }
.tile b { display: block; font-size: 1.4rem; font-weight: 620; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .84rem; }
.tile.bad b { color: var(--bad); } .tile.good b { color: var(--good); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr));
  gap: .9rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: .8rem 1rem .6rem; min-width: 0; }
figcaption { font-weight: 600; }
svg { display: block; width: 100%; height: auto; margin-top: .35rem; }
svg text { fill: var(--soft); font-size: 11px; font-variant-numeric: tabular-nums; }
.end { text-anchor: end; } .middle { text-anchor: middle; } .start { text-anchor: start; }
.grid { stroke: var(--rule); } .axis { stroke: var(--s8); fill: none; }
.line { fill: none; stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round; }
.line.dashed { stroke-dasharray: 5 4; stroke-width: 1.4; }
.area { fill: var(--c); opacity: .13; }
.bar { fill: var(--c); }
.mark { fill: var(--card); stroke: var(--c); stroke-width: 1.8; }
.upright { stroke: var(--ink); stroke-dasharray: 2 3; opacity: .65; }
.hit { fill: var(--ink); opacity: 0; } .hit:hover { opacity: .08; }
.keys { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .84rem; color: var(--soft); }
.key::before { content: ""; display: inline-block; width: 1rem; margin-right: .4rem;
  vertical-align: .25em; border-top: 3px solid var(--c); }
.key.dashed::before { border-top-style: dashed; border-top-width: 2px; }
.note { margin: .2rem 0 0; color: var(--soft); font-size: .84rem; }
.c0 { --c: var(--s0); } .c1 { --c: var(--s1); } .c2 { --c: var(--s2); } .c3 { --c: var(--s3); }
.c4 { --c: var(--s4); } .c5 { --c: var(--s5); } .c6 { --c: var(--s6); } .c7 { --c: var(--s7); }
.c8 { --c: var(--s8); }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: .3rem 1rem .5rem; overflow-x: auto; }
.card + .card, details.card { margin-top: .8rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .38rem 1rem .38rem 0;
  border-bottom: 1px solid var(--rule); overflow-wrap: anywhere; }
tr:last-child td { border-bottom: 0; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
th[data-sort] { cursor: pointer; } th[data-sort]:hover { color: var(--ink); }
th.up::after { content: " \\2191"; } th.down::after { content: " \\2193"; }
td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td.w { min-width: 16rem; }
.bad { color: var(--bad); } .faded { color: var(--soft); }
details > summary { cursor: pointer; }
details.card > summary { padding: .3rem 0; font-weight: 600; }
pre { margin: .4rem 0; padding: .6rem .8rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .86rem/1.45 ui-monospace, Menlo, Consolas, monospace; background: var(--page);
  border-radius: 6px; max-height: 30rem; overflow-y: auto; }
input[type=search] { font: inherit; color: inherit; background: var(--page); padding: .3rem .6rem;
  border: 1px solid var(--rule); border-radius: 6px; width: min(100%, 22rem); margin: .5rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.4rem; margin: .5rem 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
footer { margin-top: 2.4rem; color: var(--soft); font-size: .84rem; }
[hidden] { display: none; }
@media print { body { background: none; } .hit, input { display: none; } }
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.items")) {
  const body = table.tBodies[0], rows = [...body.rows];
  table.querySelectorAll("th[data-sort]").forEach((head, column) => {
    const place = head.cellIndex;
    head.addEventListener("click", () => {
      const up = !head.classList.contains("up");
      table.querySelectorAll("th").forEach(h => h.classList.remove("up", "down"));
      head.classList.add(up ? "up" : "down");
      const value = row => row.cells[place].dataset.v ?? row.cells[place].textContent;
      const number = head.dataset.sort === "n", sign = up ? 1 : -1;
      rows.sort((a, b) => sign * (number ? value(a) - value(b) : value(a).localeCompare(value(b))));
      body.append(...rows);
    });
  });
  const search = table.parentElement.querySelector("input");
  if (search) search.addEventListener("input", () => {
    const wanted = search.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}
"""


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


POLICY = (
    f"default-src 'none'; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; "
    "base-uri 'none'; form-action 'none'"
)
"""Nothing is fetched and nothing runs but the script above, whatever a text may hold."""
