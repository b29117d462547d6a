"""Each room imports only from the rooms below it; only the edges speak to the outside."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "scaleinfer"

# From top to bottom. Modules of one line belong to one room and may import each other.
ROOMS: tuple[tuple[str, ...], ...] = (
    (
        "cli",
        "_cli_audit",
        "_cli_demo",
        "_cli_endpoints",
        "_cli_exit",
        "_cli_fleet",
        "_cli_login",
        "_cli_map",
        "_cli_report",
        "_cli_runs",
        "_cli_simulate",
        "_cli_worker",
    ),
    (
        "simulate",
        "_simulate_endpoints",
        "_simulate_fleet",
        "_simulate_forecast",
        "_simulate_process",
        "_simulate_settings",
        "_simulate_steady",
    ),
    ("langgraph",),
    ("patterns",),
    (
        "mapping",
        "embedding",
        "map_result",
        "program",
        "_answers",
        "_asking",
        "audit",
        "_batch_mode",
        "_batch_question",
        "_batch_run",
        "_digest",
        "_exported",
        "_git",
        "_graphs",
        "_identity",
        "_intake",
        "_interrupt",
        "_manifest",
        "_program",
        "_programs",
        "_run",
        "_session",
        "_endpoints",
        "_opening",
        "_options",
        "_sampling_theory",
        "_shown",
        "_spending",
        "estimation",
        "_vitals",
        "_watching",
    ),
    ("prompts",),
    ("batch",),
    ("fleet",),
    ("engine",),
    ("journal",),
    ("backends",),
    ("observe",),
    ("data",),
    ("prices",),
    ("policy",),
    ("structured",),
    ("requests", "results"),
    ("errors",),
    ("_lazy", "_loop"),
)
RANK = {name: rank for rank, names in enumerate(reversed(ROOMS)) for name in names}
# It stands apart: a user's tests need nothing but this room.
TESTING = "testing"
MAY_SEE_FROM_TESTING = {"errors", "_lazy", "_loop", TESTING}
# Its model of a server that batches is what `simulate` runs the engine against.
MAY_SEE_TESTING = ("simulate", "_simulate", "_cli_simulate")
# The embedded model's server speaks HTTP too, as the room that holds it may.
EDGES = {
    # A fleet's own exchange is Academy's HTTP server.
    "aiohttp": {"backends", "fleet"},
    "academy": {"fleet"},
    "h2": {"backends"},
    "httptools": {"backends", TESTING},
}

FILES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


class Imports(ast.NodeVisitor):
    """Every module imported at run time, within functions too."""

    def __init__(self) -> None:
        self.found: list[tuple[int, str]] = []

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" in ast.dump(node.test):
            for other in node.orelse:
                self.visit(other)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [(node.lineno, alias.name) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, f"line {node.lineno}: a relative import"
        module = node.module or ""
        if module == "scaleinfer":
            self.found += [(node.lineno, f"scaleinfer.{alias.name}") for alias in node.names]
        else:
            self.found.append((node.lineno, module))


@cache
def imports(path: Path) -> list[tuple[int, str]]:
    visitor = Imports()
    visitor.visit(ast.parse(path.read_text("utf-8")))
    return visitor.found


def test_every_module_has_its_room() -> None:
    rooms = {room_of(path) for path in FILES} - {"__init__", "__main__"}
    assert rooms == set(RANK) | {TESTING}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_downwards(path: Path) -> None:
    room = room_of(path)
    if room in {"__init__", "__main__"}:
        return
    for line, module in imports(path):
        package, _, rest = module.partition(".")
        other = rest.partition(".")[0]
        if package != "scaleinfer" or other in {"", "__version__"}:
            continue
        where = f"{path.name}:{line} imports {module}"
        if room == TESTING:
            assert other in MAY_SEE_FROM_TESTING, where
            continue
        if other == TESTING:
            assert room.startswith(MAY_SEE_TESTING), where
            continue
        below = RANK[other] < RANK[room]
        together = RANK[other] == RANK[room]
        assert below or together, f"{where}: {room} is below {other}"


@pytest.mark.parametrize("package", EDGES)
def test_only_the_edge_speaks_to_the_outside(package: str) -> None:
    for path in FILES:
        for line, module in imports(path):
            if module.partition(".")[0] == package:
                assert room_of(path) in EDGES[package], f"{path.name}:{line} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_private_modules_stay_in_their_room(path: Path) -> None:
    for line, module in imports(path):
        parts = module.split(".")
        if parts[0] == "scaleinfer" and any(part.startswith("_") for part in parts[2:]):
            allowed = parts[1] == room_of(path) or room_of(path) == "cli"
            assert allowed, f"{path.name}:{line} imports {module}"


def test_the_order_is_free_of_cycles() -> None:
    seen: dict[str, set[str]] = {}
    for path in FILES:
        others = {
            module.split(".")[1] for _, module in imports(path) if module.startswith("scaleinfer.")
        }
        seen.setdefault(room_of(path), set()).update(others & set(RANK))
    for room, others in seen.items():
        for other in others - {room}:
            assert room not in seen.get(other, set()), f"{room} and {other} import each other"
