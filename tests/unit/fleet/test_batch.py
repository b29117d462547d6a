"""What is refused before a job is asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.errors import ConfigError
from scaleinfer.fleet import _batch


@pytest.mark.parametrize(
    ("walltime", "seconds"),
    [("00:01:00", 60), ("01:00:00", 3600), ("48:00:00", 172_800), ("00:10:30", 630)],
)
def test_walltime(walltime: str, seconds: int) -> None:
    assert _batch.walltime_seconds(walltime) == seconds


@pytest.mark.parametrize(
    "walltime", ["", "60", "1:00", "1-00:00:00", "00:60:00", "00:00:59", "1h", " 01:00:00", 3600]
)
def test_a_walltime_of_another_form_is_refused(walltime: str) -> None:
    with pytest.raises(ConfigError, match="walltime"):
        _batch.walltime_seconds(walltime)


@given(st.integers(60, 10_000_000))
def test_a_job_stops_taking_workers_before_its_end_but_not_long_before(walltime: int) -> None:
    drains = _batch.drain_seconds(walltime)

    assert 0 < drains < walltime
    assert walltime - drains <= 300
    assert drains >= walltime // 2


@given(st.integers(1, 50), st.integers(0, 200), st.integers(1, 200))
def test_jobs_cover_the_least_and_stay_within_the_most(nodes: int, least: int, most: int) -> None:
    if most < max(nodes, least):
        with pytest.raises(ConfigError, match="max_nodes"):
            _batch.Blocks.of(nodes, least, most)
        return
    blocks = _batch.Blocks.of(nodes, least, most)

    assert blocks.largest * nodes <= most < (blocks.largest + 1) * nodes
    assert blocks.smallest <= blocks.largest
    assert blocks.smallest * nodes >= least or blocks.smallest == blocks.largest


def test_by_default_there_is_one_job_and_none_is_kept() -> None:
    assert _batch.Blocks.of(3, None, None) == _batch.Blocks(3, 0, 1)


@pytest.mark.parametrize("nodes", [0, -1, 1.5, True, "3", None])
def test_a_number_of_nodes_that_is_none_is_refused(nodes: int) -> None:
    with pytest.raises(ConfigError, match="nodes must be a whole number of at least 1"):
        _batch.Blocks.of(nodes, None, None)


@pytest.mark.parametrize("name", ["", "my project", "x;rm", "$(id)", "a\nb", 'a"b', 7])
def test_a_name_that_a_shell_would_act_on_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="account"):
        _batch.check_name("account", name)


def test_names_that_sites_use_pass() -> None:
    for name in (None, "m1234_g", "flare:home", "debug-scaling", "user@site", "gpu,cpu"):
        _batch.check_name("account", name)


def test_a_shell_command_among_the_directives_is_refused() -> None:
    _batch.check_directives("#SBATCH -C gpu\n\n#SBATCH --mail-type=NONE", "#SBATCH")
    with pytest.raises(ConfigError, match=r"module load cuda.*worker_init"):
        _batch.check_directives("#SBATCH -C gpu\nmodule load cuda", "#SBATCH")


@pytest.mark.parametrize(("period", "threshold"), [(0, 10), (5, 10), (2.0, 10), (1, -1)])
def test_a_heartbeat_that_one_late_message_breaks_is_refused(period: int, threshold: int) -> None:
    with pytest.raises(ConfigError, match="heartbeat"):
        _batch.check_heartbeat(period, threshold)


def test_addresses_and_durations() -> None:
    _batch.check_address(None)
    _batch.check_address("10.0.0.1")
    with pytest.raises(ConfigError, match="login01"):
        _batch.check_address("login01")
    for wrong in (0, -1.0, float("nan"), "5", True):
        with pytest.raises(ConfigError, match="poll_seconds"):
            _batch.check_positive(poll_seconds=wrong)  # type: ignore[arg-type] # a user may
