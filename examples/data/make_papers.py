"""Make papers.jsonl: records of papers that SciPy's and scikit-image's docstrings cite.

Run as `python examples/data/make_papers.py`. Downloads two wheels with `pip download`, reads
the docstrings without importing the code, takes the citations of their References sections
apart and keeps those that name authors, title, year and journal beyond doubt.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import unicodedata
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

OUT = Path(__file__).with_name("papers.jsonl")
ROWS = 200
PACKAGES = {"scipy": "1.17.1", "scikit-image": "0.26.0"}
# Pinned so that every machine reads the same wheel; the docstrings do not depend on it.
PLATFORM = ("--python-version", "3.12", "--platform", "manylinux_2_28_x86_64")

SUBJECTS = {
    "scipy.cluster": "clustering",
    "scipy.differentiate": "numerical analysis",
    "scipy.fft": "signal processing",
    "scipy.integrate": "numerical analysis",
    "scipy.interpolate": "numerical analysis",
    "scipy.linalg": "linear algebra",
    "scipy.ndimage": "image processing",
    "scipy.optimize": "optimization",
    "scipy.signal": "signal processing",
    "scipy.sparse": "linear algebra",
    "scipy.spatial": "geometry",
    "scipy.special": "numerical analysis",
    "scipy.stats": "statistics",
    "skimage": "image processing",
}
"""What the citing part of the library is about: a rough label for the paper."""


@dataclass
class Citation:
    """One entry of a References section and where it stands."""

    text: str
    cited_by: str
    context: str


@dataclass
class Paper:
    """What a citation says about a paper."""

    authors: str
    title: str
    year: int
    journal: str
    volume: str | None
    pages: str | None
    doi: str | None
    citation: str
    cited_by: list[str] = field(default_factory=list)
    context: str = ""
    subject: str = ""
    id: str = ""


def download(package: str, version: str, folder: Path) -> Path:
    """Return the package's wheel, fetched by pip from the configured index."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*pip, "--only-binary=:all:", *PLATFORM, f"{package}=={version}"], check=True)
    return next(folder.glob(f"{package.replace('-', '_')}-*.whl"))


def citations(wheel: Path) -> Iterator[Citation]:
    """Yield every numbered reference of every docstring in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".py") and "/tests/" not in name and "/_lib/" not in name:
                yield from _citations_of(ast.parse(archive.read(name)), name)


def _citations_of(tree: ast.Module, name: str) -> Iterator[Citation]:
    module = ".".join(p for p in name.removesuffix(".py").split("/") if not p.startswith("_"))
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            continue
        doc = ast.get_docstring(node) or ""
        found = re.search(r"^References\n-+\n(.*?)(?=^\S[^\n]*\n-{3,}|\Z)", doc, re.M | re.S)
        if not found:
            continue
        cited_by = module if isinstance(node, ast.Module) else f"{module}.{node.name}"
        for entry in re.split(r"^\s*\.\. \[\w+\]:?", found[1], flags=re.M)[1:]:
            # A blank line, a directive or a template field ends the entry.
            text = re.split(r"\n\s*\n|\n\s*\.\. \w+::|%\(\w+\)s", entry)[0]
            yield Citation(" ".join(text.split()), cited_by, _summary(doc))


def _summary(doc: str) -> str:
    """Return the docstring's first sentences: its summary and the start of what follows."""
    doc = re.sub(r"\A\s*={3,}\n.*\n={3,}\n", "", doc)
    doc = re.split(r"\n[^\n]+\n\s*-{3,}", doc)[0]
    parts = [" ".join(p.split()) for p in re.split(r"\n\s*\n", doc)]
    prose = [p for p in parts[:4] if not re.search(r"[-=]{3,}|^\.\. |%\(|>>>|::|^:", p)]
    text = re.sub(r":\w+:`([^`]+)`|``?([^`]+)``?_?", r"\1\2", " ".join(prose[:2]))
    text = re.sub(r"\s*\[\d+\]_|\s*<https?://[^>]*>", "", text)
    kept = ""
    for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", text):
        if kept and len(kept) + len(sentence) > 300:
            break
        kept = f"{kept} {sentence}".strip()
    return kept


DOI = re.compile(r"(?::doi:`|doi[:\s]*|doi\.org/)\s*(10\.\d{4,9}/[^\s`>,;]+)", re.I)
NOISE = re.compile(
    r":\w+:`[^`]*`|`?<?https?://\S+|\b(?:doi|ISSN|ISBN|arXiv|PMID)\b:?\s*[\w./()-]+"
    r"|Accessed .*|\(PDF\)|\[Online\].*|JSTOR.*",
    re.I,
)
MISREAD = (
    "On the criterion that a given system",
    "Direct Search Methods",
    "A stabilization of the simplex",
    "On Confidence Ranges for the Median",
    "Invariant error metrics",
    "Making and Evaluating Point Forecasts",
    "Grayscale area openings",
    "Multidimensional numerical integration using",
    "Bandwidth Selection in Kernel",
    "Conditional versus unconditional exact",
    "Automatic Detection of Microaneurysms",
    "The Euler Number of Discretized",
    "The Generalized Hyperbolic Model",
    "Thinning Methodologies",
    "Robust real-time face detection",
)
"""Titles of citations that the parser takes apart wrongly, or whose fields contradict each
other in the source; found by reading the output."""
STYLES = [
    # F. Fritsch and R. Carlson, "Title," SIAM J. Numer. Anal. ... 1980
    re.compile(r'^(?P<authors>[^"]{4,200}?)[\s,.:;]+"(?P<title>[^"]{12,})"[\s,.:;]*(?P<rest>.+)$'),
    # Chatterjee, S. (2021). Title of it. Journal, 116 ...
    re.compile(
        r"^(?P<authors>[^\"()]{4,200}?)[\s,.]*"
        r"\((?P<year>(?:18|19|20)\d\d)[a-z]?(?:, \w+)?\)[\s.,:]*"
        r"(?P<title>[^\"]{12,}?)[.?]\s+(?P<rest>(?:In:? )?[A-Z].+)$"
    ),
    # Nelder, J A, and R Mead. 1965. Title of it. Journal 7: 308-13
    re.compile(
        r"^(?P<authors>[^\"()]{4,200}?)[.,] (?P<year>(?:18|19|20)\d\d)[.,] "
        r"(?P<title>[^\".]{12,}?)\.\s+(?P<rest>[A-Z].+)$"
    ),
]
YEAR = re.compile(r"\b((?:18[5-9]|19\d|20[012])\d)\b")
PAGES = [
    re.compile(r"(?:\bpp?\b|\bpg|\bpages?)\.?\s*([A-Z]?\d+(?:\s*[-\u2013]+\s*[A-Z]?\d+)?)", re.I),
    re.compile(r"(?<![\d-])([A-Z]?\d+\s*[-\u2013]+\s*[A-Z]?\d+)(?![\d-])"),
]
VOLUME = re.compile(
    r"\b(?:vol|volume|v)\b\.?\s*([A-Z]{0,3}-?\d+)|^\W*(\d+)\s*(?:[(:.,]|$)|^\W*(\d+)\s", re.I
)
PARTICLES = frozenset(
    ("and", "de", "van", "von", "der", "den", "di", "la", "le", "du", "dos", "et", "al", "with")
)
NO_JOURNAL = re.compile(
    r"press\b|springer|wiley|wikipedia|university|thesis|report|https?|edition|\bbook|elsevier"
    r"|academic|chapter|available|technical|lecture notes|manual|\bpp?\b|^(?:and|the|in|of)$"
    r"|publish|siam$|mcgraw|prentice|preprint|unpublished|documentation|\bISBN|chapman|dover"
    r"|^pages|^paper|^section|editor|\bthe$|^series|^SIAM,|Society for Industrial|working paper",
    re.I,
)


def parse(citation: Citation) -> Paper | None:
    """Take a citation apart.

    Returns:
        `None` unless authors, title, year and journal are there and either a DOI or volume and
        pages say where to find it.
    """
    plain = re.sub(r"''|``|[\u201c\u201d]", '"', citation.text)
    plain = plain.replace("*", "").replace("\\ ", "")
    doi = DOI.search(plain)
    plain = " ".join(NOISE.sub(" ", plain).split())
    match = next((m for style in STYLES if (m := style.match(plain))), None)
    if match is None or match["title"].startswith(MISREAD):
        return None
    found = match.groupdict()
    rest = found["rest"]
    authors, stated = _split_year(found["authors"])
    if f"{authors}." in plain and re.search(r"(?:[.-]|(?<! [A-Z])\s)[A-Z]$", authors):
        authors += "."  # of the last initial; the pattern took it for a full stop
    journal = _journal(rest)
    after = rest[rest.find(journal) + len(journal) :] if journal else rest
    pages = _pages(after)
    years = YEAR.findall(after.replace(pages, " ") if pages else after)
    year = found.get("year") or stated or (years[-1] if years else None)
    volume = VOLUME.search(after)
    number = next((g for g in volume.groups() if g), None) if volume else None
    if number and YEAR.fullmatch(number):
        number = None
    located = doi or (number and pages)
    if not (journal and year and located and _is_authors(authors)):
        return None
    return Paper(
        authors=authors,
        title=_tidy(found["title"]),
        year=int(year),
        journal=journal,
        volume=number,
        pages=re.sub(r"\s*[-\u2013]+\s*", "-", pages) if pages else None,
        doi=doi[1].rstrip(".)").lower() if doi else None,
        citation=citation.text,
        cited_by=[citation.cited_by],
        context=citation.context,
        subject=subject_of(citation.cited_by),
    )


def _pages(text: str) -> str | None:
    """Return the pages; a range of one-digit numbers is a double issue, not pages."""
    found = (m[1] for pattern in PAGES for m in pattern.finditer(text))
    return next((p for p in found if not re.fullmatch(r"\d\s*[-\u2013]+\s*\d", p)), None)


def _split_year(authors: str) -> tuple[str, str | None]:
    """Take a year in parentheses (or after a comma) off the end of the authors."""
    found = re.search(r"[\s,.(]+((?:18|19|20)\d\d)[a-z]?\W*$", authors)
    if found:
        authors = authors[: found.start()]
    authors = re.sub(r"\s*\(\w*$", "", _tidy(authors, keep_dot=True))
    return authors, found[1] if found else None


def _is_authors(text: str) -> bool:
    """True if the text reads like names: capitals, initials, particles, `and`."""
    words = re.findall(r"[^\W\d_][\w'-]*", text)
    return bool(words) and all(w[0].isupper() or w.lower() in PARTICLES for w in words)


def _journal(rest: str) -> str:
    """Return the name at the start of what follows the title, without numbers."""
    name = re.split(
        r"\d|\bvol|\bpp?\.|\(|,? no\.|\bissue\b|;|\bISSN", rest, maxsplit=1, flags=re.I
    )[0]
    name = re.sub(r"^(?:In:? |in )(?:the )?", "", name.strip())
    name = re.sub(
        r",?\s*(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\w*\.?$", "", _tidy(name)
    )
    name = re.sub(r"\.(?=[A-Z][a-z]{3})", ". ", _tidy(name))
    name = re.sub(r"^(.+), (IEEE Transactions on)$", r"\2 \1", name)
    fits = 3 <= len(name) <= 110 and name[0].isupper() and not NO_JOURNAL.search(name)
    return name if fits else ""


def _tidy(text: str, *, keep_dot: bool = False) -> str:
    text = " ".join(text.replace("`", "").split()).strip(" ,;:-" if keep_dot else " ,;:.-")
    return unicodedata.normalize("NFC", text)


def subject_of(cited_by: str) -> str:
    """Return the subject of the part of the library that cites a paper."""
    return next((s for part, s in SUBJECTS.items() if cited_by.startswith(part)), "")


def merge(papers: list[Paper]) -> list[Paper]:
    """Join citations of one paper; the one with most fields filled speaks for it."""
    groups: dict[str, list[Paper]] = {}
    for paper in papers:
        name = "".join(re.findall(r"[a-z0-9]", paper.title.lower()))[:40]
        groups.setdefault(name, []).append(paper)
    merged = []
    for group in groups.values():
        best = max(
            group, key=lambda p: (bool(p.doi) + bool(p.volume) + bool(p.pages), len(p.context))
        )
        best.cited_by = sorted({name for paper in group for name in paper.cited_by})
        merged.append(best)
    return merged


def choose(papers: list[Paper], rows: int) -> list[Paper]:
    """Choose records with most fields filled, spread over the subjects in turn."""
    by_subject: dict[str, list[Paper]] = {}
    for paper in papers:
        by_subject.setdefault(paper.subject, []).append(paper)
    for group in by_subject.values():
        group.sort(key=lambda p: (-(bool(p.doi) + bool(p.volume) + bool(p.pages)), _shuffle(p)))
    chosen: list[Paper] = []
    while len(chosen) < rows and any(by_subject.values()):
        chosen += [group.pop(0) for group in by_subject.values() if group]
    return sorted(chosen[:rows], key=lambda p: (p.year, p.authors))


def _shuffle(paper: Paper) -> str:
    return hashlib.sha256(paper.title.encode()).hexdigest()


def name_ids(papers: list[Paper]) -> None:
    """Give each paper an id: first author's surname and year, with a letter if need be."""
    seen: dict[str, int] = {}
    for paper in papers:
        first = re.split(r",|;| and | & ", paper.authors)[0]
        words = [w for w in re.findall(r"[^\W\d_][\w'-]*", first) if len(w) > 2] or [first]
        plain = unicodedata.normalize("NFKD", words[-1]).encode("ascii", "ignore").decode()
        base = re.sub(r"\W", "", plain.lower()) + str(paper.year)
        paper.id = base + ("", *"bcdefgh")[seen.setdefault(base, 0)]
        seen[base] += 1


def main() -> None:
    """Download, read, parse, choose, write."""
    found: list[Citation] = []
    with tempfile.TemporaryDirectory() as folder:
        for package, version in PACKAGES.items():
            wheel = download(package, version, Path(folder))
            print(f"{wheel.name} sha256 {hashlib.sha256(wheel.read_bytes()).hexdigest()}")
            found += citations(wheel)
    papers = merge([p for c in found if (p := parse(c)) and p.subject])
    chosen = choose(papers, ROWS)
    name_ids(chosen)
    order = "id authors title year journal volume pages doi subject citation cited_by context"
    rows = [{name: getattr(paper, name) for name in order.split()} for paper in chosen]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    OUT.write_text(text, encoding="utf-8")
    print(f"{len(found)} references, {len(papers)} papers parsed, {len(rows)} written to {OUT}")


if __name__ == "__main__":
    main()
