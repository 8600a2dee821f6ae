"""`pdmesh bench planner` before its long work: what it refuses, and what it says it ran."""

from pathlib import Path

import pytest

from common.errors import ConfigError, PdmeshError
from services.cli.bench.planner import PlannerFlags, _command, run_bench_planner


def test_the_recorded_command_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    flags = PlannerFlags(json=tmp_path / "o.json", data=tmp_path, aiconfigurator=tmp_path / "python", quick=True)
    assert _command(flags) == "pdmesh bench planner --data DIR --aiconfigurator PYTHON --quick"
    assert _command(PlannerFlags(json=tmp_path / "o.json")) == "pdmesh bench planner"


def test_a_folder_without_tables_is_refused_before_anything_is_simulated(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"perf_model\.csv"):
        run_bench_planner(PlannerFlags(json=tmp_path / "o.json", data=tmp_path, quick=True), {})
    assert not (tmp_path / "o.json").exists()


def test_an_interpreter_that_is_not_there_is_refused_as_soon(tmp_path: Path) -> None:
    flags = PlannerFlags(json=tmp_path / "o.json", aiconfigurator=tmp_path / "nowhere", quick=True)
    # A folder of traces alone has no tables, which is no reason to stop.
    with pytest.raises(ConfigError, match="nowhere"):
        run_bench_planner(flags, {"PDMESH_DATA": str(tmp_path)})


def test_a_report_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(PdmeshError, match="--json"):
        run_bench_planner(PlannerFlags(json=tmp_path / "no" / "o.json", data=tmp_path), {})
