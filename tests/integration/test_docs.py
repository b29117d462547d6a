"""Every snippet of the documentation, the README and the docstrings runs.

A page is run from top to bottom in one namespace and one empty folder that holds a copy of
`examples/data`. What the snippets ask goes to a simulated server, except where a snippet names
the embedded model. Python may `await` at its top level; `sh` runs in bash. A snippet with a title
becomes a file, which a later snippet of the page must use. The comment `<!-- not run: why -->`
before a snippet leaves it out.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import shutil
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sybil.document import Document, PythonDocStringDocument
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

from scaleinfer.testing import SimulatedServer

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src" / "scaleinfer"
MODEL = "Qwen/Qwen3-8B"
SERVER_IN_THE_DOCS = "http://127.0.0.1:8000/v1"

FENCE = RawFencedCodeBlockLexer(
    re.compile(r'(?P<language>\w+)(?: title="(?P<title>[^"]+)")?[^\n]*\n', re.MULTILINE)
)
# CI takes the README's two commands from these marks and runs them word for word.
NOT_RUN = re.compile(r"<!-- (?:not run: .+|demo|tests) -->\s*\Z")


@dataclass(frozen=True)
class Snippet:
    """A fenced block of code.

    Attributes:
        path: The file it stands in.
        line: The line of its fence.
        language: `python`, `sh`, ...
        title: Name of the file it becomes; empty if none.
        source: The code.
        left_out: True if it is marked as not run.
    """

    path: Path
    line: int
    language: str
    title: str
    source: str
    left_out: bool


def snippets_in(path: Path) -> list[Snippet]:
    """Return the snippets of a page, or of a module's docstrings, in order."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return list(_fenced(path, text, 0))
    found: list[Snippet] = []
    for start, _, docstring in PythonDocStringDocument.extract_docstrings(text):
        found += _fenced(path, inspect.cleandoc(docstring), text.count("\n", 0, start))
    return found


def _fenced(path: Path, text: str, line: int) -> Iterator[Snippet]:
    for region in FENCE(Document(text, str(path))):
        yield Snippet(
            path,
            line + text.count("\n", 0, region.start) + 1,
            region.lexemes["language"],
            region.lexemes["title"] or "",
            region.lexemes["source"].text,
            NOT_RUN.search(text[: region.start]) is not None,
        )


PAGES = [
    path
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if any(snippet.language in {"python", "sh"} for snippet in snippets_in(path))
]
MODULES = [
    path
    for path in sorted(SOURCES.rglob("*.py"))
    if any(snippet.language == "python" for snippet in snippets_in(path))
]


@pytest.fixture(scope="module")
def server() -> Iterator[SimulatedServer]:
    with SimulatedServer(models=[MODEL]).in_thread() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path, server: SimulatedServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder with the examples' data; what asks nobody in particular asks the server."""
    shutil.copytree(ROOT / "examples" / "data", tmp_path / "examples" / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in os.environ if name.startswith(("OPENAI_", "SCALEINFER_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SCALEINFER_BACKEND", "openai")
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@pytest.fixture
def embedded_model() -> Iterator[None]:
    """Install the embedded model, unless it is there, and end its engine with the page."""
    from scaleinfer.backends._local_files import install_model
    from scaleinfer.backends._local_shared import close_engines

    install_model(progress=print)
    yield
    close_engines()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_page(
    path: Path, folder: Path, server: SimulatedServer, request: pytest.FixtureRequest
) -> None:
    snippets = [snippet for snippet in snippets_in(path) if not snippet.left_out]
    if any(re.search(r"[\"' ]local\b|LocalBackend", snippet.source) for snippet in snippets):
        request.getfixturevalue("embedded_model")
    module = types.ModuleType("__main__")
    for number, snippet in enumerate(snippets):
        if snippet.title:
            (folder / snippet.title).write_text(snippet.source, encoding="utf-8")
            later = [other.source for other in snippets[number + 1 :]]
            assert any(Path(snippet.title).stem in source for source in later), snippet
        elif snippet.language == "python":
            run_python(snippet, module.__dict__, server.base_url)
        elif snippet.language == "sh":
            run_shell(snippet, folder, server.base_url)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCES)))
def test_docstrings(path: Path, server: SimulatedServer) -> None:
    name = ".".join(path.relative_to(SOURCES.parent).with_suffix("").parts)
    names: dict[str, Any] = {}
    for module in ("scaleinfer", "scaleinfer.testing", name.removesuffix(".__init__")):
        exec(f"from {module} import *", names)
    names["items"] = [{"text": "Caffeine is an alkaloid."}, {"text": "Benzene is aromatic."}]
    for snippet in snippets_in(path):
        if snippet.language == "python":
            run_python(snippet, names, server.base_url)


def test_there_is_something_to_run() -> None:
    found = [snippet for path in PAGES for snippet in snippets_in(path)]
    python = [s for s in found if s.language == "python" and not s.left_out]
    shell = [s for s in found if s.language == "sh" and not s.left_out]
    assert len(PAGES) >= 10
    assert len(python) >= 40
    assert len(shell) >= 10
    assert sum(s.left_out for s in found) <= 15
    assert len(MODULES) >= 3


def test_a_failing_snippet_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nimport asyncio\nawait asyncio.sleep(0)\nassert 1 == 2\n```\n")
    [snippet] = snippets_in(page)
    with pytest.raises(AssertionError) as failed:
        run_python(snippet, {}, "")
    assert failed.traceback[-1].lineno + 1 == 4
    assert str(failed.traceback[-1].path) == str(page)


def run_python(snippet: Snippet, names: dict[str, Any], base_url: str) -> None:
    """Run Python; a traceback shows the line of the page."""
    source = snippet.source.replace(SERVER_IN_THE_DOCS, base_url)
    code = compile(
        "\n" * snippet.line + source,
        str(snippet.path),
        "exec",
        flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        dont_inherit=True,
    )
    names["__name__"] = "__main__"
    outcome = eval(code, names)
    if inspect.iscoroutine(outcome):
        asyncio.run(outcome)


def run_shell(snippet: Snippet, folder: Path, base_url: str) -> None:
    """Run a shell snippet; every command in it must succeed."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", snippet.source.replace(SERVER_IN_THE_DOCS, base_url)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, (
        f"{snippet.path}:{snippet.line}\n{snippet.source}\n{done.stdout}\n{done.stderr}"
    )
