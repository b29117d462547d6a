"""What the Parsl launcher does around Parsl; threads stand in for nodes."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from scaleinfer.errors import ConfigError, WorkerLost
from scaleinfer.fleet._parsl import ParslLauncher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from parsl import Config


@pytest.fixture(scope="module", autouse=True)
def parsl_imported() -> None:
    """Parsl imports the Globus SDK, which starts a thread that lives as long as the process."""
    import parsl  # noqa: F401 # no test is to blame for the thread


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return threads(tmp_path)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a blocked worker waits for; open at the end, so that its thread ends."""
    event = threading.Event()
    yield event
    event.set()


def threads(tmp_path: Path) -> Config:
    from parsl import Config
    from parsl.executors import ThreadPoolExecutor

    return Config(
        executors=[ThreadPoolExecutor(label="threads", max_threads=3)],
        run_dir=str(tmp_path),
        initialize_logging=False,
    )


def summary(spec: str) -> str:
    return f"did {spec}"


def broken(spec: str) -> str:
    raise ConfigError(f"no model in {spec}", hint="Install one.")


def test_the_future_has_what_the_function_returned(config: Config) -> None:
    launcher = ParslLauncher(config, function=summary)
    try:
        futures = [launcher.start(str(number)) for number in range(5)]
        assert [future.result(30) for future in futures] == [f"did {n}" for n in range(5)]
    finally:
        launcher.close()


def test_what_the_worker_raises_arrives_as_it_is(config: Config) -> None:
    launcher = ParslLauncher(config, function=broken)
    try:
        error = launcher.start("{}").exception(30)
    finally:
        launcher.close()

    assert isinstance(error, ConfigError)
    assert (error.message, error.hint) == ("no model in {}", "Install one.")


def test_starting_does_not_wait_for_parsl_nor_for_the_worker(
    config: Config, gate: threading.Event
) -> None:
    def blocked(spec: str) -> str:
        gate.wait(30)
        return spec

    launcher = ParslLauncher(config, function=blocked)
    future = launcher.start("a")
    try:
        assert not future.done()
    finally:
        gate.set()
        future.result(30)
        launcher.close()


def test_a_worker_that_never_began_is_lost_when_the_launcher_is_closed(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = ParslLauncher(config, function=summary)
    entered, closing = threading.Event(), threading.Event()

    def slow_start() -> Any:
        entered.set()
        closing.wait(30)
        raise ConfigError("never ready")

    monkeypatch.setattr(launcher, "_start_kernel", slow_start)
    first, second = launcher.start("a"), launcher.start("b")
    entered.wait(30)
    closer = threading.Thread(target=launcher.close)
    closer.start()
    launcher._closed.wait(30)
    closing.set()
    closer.join(30)

    assert isinstance(first.exception(0), ConfigError)
    assert isinstance(second.exception(0), WorkerLost)


def test_a_folder_that_cannot_be_written_fails_every_worker_with_its_name(tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_text("")
    launcher = ParslLauncher(threads(taken), function=summary)
    try:
        errors = [launcher.start("{}").exception(30) for _ in range(2)]
    finally:
        launcher.close()

    assert all(isinstance(error, ConfigError) for error in errors)
    assert all(str(taken) in str(error) for error in errors)


def test_closing_twice_and_without_a_worker_is_fine_and_then_none_is_started(
    config: Config,
) -> None:
    launcher = ParslLauncher(config, function=summary)
    launcher.close()
    launcher.close()

    with pytest.raises(ConfigError, match="closed"):
        launcher.start("{}")


def test_a_users_own_parsl_in_the_same_process_goes_on(tmp_path: Path) -> None:
    import parsl

    theirs = parsl.load(threads(tmp_path / "theirs"))
    try:
        launcher = ParslLauncher(threads(tmp_path / "ours"), function=summary)
        assert launcher.start("ours").result(30) == "did ours"
        assert parsl.dfk() is theirs
        launcher.close()

        app = parsl.python_app(summary)
        assert app("theirs").result(30) == "did theirs"
    finally:
        theirs.cleanup()


def test_an_executor_alone_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from parsl.executors import ThreadPoolExecutor

    monkeypatch.chdir(tmp_path)
    launcher = ParslLauncher(ThreadPoolExecutor(max_threads=2), function=summary)
    try:
        assert launcher.start("it").result(30) == "did it"
        assert (launcher.name, launcher.max_workers) == ("parsl", 2)
    finally:
        launcher.close()


def test_a_config_can_be_used_once(config: Config) -> None:
    ParslLauncher(config, function=summary).close()

    with pytest.raises(ConfigError, match="fresh"):
        ParslLauncher(config, function=summary)


def test_neither_a_config_nor_an_executor_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"parsl\.Config.*str"):
        ParslLauncher("slurm")  # type: ignore[arg-type] # a user may


@pytest.mark.parametrize(("kind", "command"), [("slurm", "sbatch"), ("pbs", "qsub")])
def test_a_machine_without_the_scheduler_is_told_so(
    kind: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scaleinfer.fleet._pbs import pbs_config
    from scaleinfer.fleet._slurm import slurm_config

    monkeypatch.setenv("PATH", str(tmp_path))
    config = slurm_config() if kind == "slurm" else pbs_config()

    with pytest.raises(ConfigError, match=f"{command} is not on this machine.*login node"):
        ParslLauncher(config)


def test_the_number_of_workers_is_that_of_all_jobs() -> None:
    from scaleinfer.fleet._parsl import _capacity
    from scaleinfer.fleet._slurm import slurm_config

    config = slurm_config(nodes=4, max_nodes=12, workers_per_node=2)

    assert _capacity(config.executors) == 24


def test_without_parsl_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "parsl", None)

    with pytest.raises(ConfigError, match=r"pip install scaleinfer\[hpc\]"):
        ParslLauncher("anything")  # type: ignore[arg-type] # it is not looked at


def test_parsl_is_not_imported_with_the_module() -> None:
    code = "import sys, scaleinfer.fleet._parsl, scaleinfer.fleet._slurm, scaleinfer.fleet._pbs\n"
    code += "sys.exit('parsl' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_interchange_ends_with_its_client() -> None:
    """Its own loop is not needed for that: here it waits for settings that never come."""
    client = (
        "import subprocess, time\n"
        "from scaleinfer.fleet._interchange import interchange_command\n"
        "print(subprocess.Popen(interchange_command()).pid, flush=True)\n"
        "time.sleep(100)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", client],
        # The interchange has it too, and its end stays open when the client is gone.
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        interchange = psutil.Process(int(process.stdout.readline()))
        process.kill()
        process.wait()

        interchange.wait(30)
