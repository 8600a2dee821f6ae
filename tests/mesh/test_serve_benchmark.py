"""`pdmesh bench serve`: a whole mesh of processes and its stages, from the flags to the report."""

import json
import os
from pathlib import Path

import pytest

from common.errors import ConfigError
from services.cli.bench.serve import ServeFlags, command_of, run_bench_serve
from services.cli.outcome import ExitCode

ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("PDMESH_")}


@pytest.mark.slow
def test_a_mesh_is_measured_beside_its_stages(deterministic_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    flags = ServeFlags(json=out, quick=True, model=str(deterministic_folder), dtype="float32", turns=6)
    assert run_bench_serve(flags, ENVIRON) is ExitCode.DONE
    report = json.loads(out.read_text())
    rows = {(row["part"], row["split"]): row for row in report["rows"] if row["kind"] == "serve"}
    mesh = rows["mesh", "full"]
    assert (mesh["requests"], mesh["clients"], mesh["split_tokens"], mesh["workload"]) == (12, 2, 31, "32+8")
    assert 0 < mesh["ttft_p50_s"] <= mesh["ttft_p99_s"]
    assert mesh["requests_per_s"] > 0
    assert rows["prefill_alone", "half"]["tokens_per_s"] > 0
    assert rows["engine", "none"]["requests_per_s"] > 0
    summary = report["summary"]
    assert summary["mesh_over_stage"] == pytest.approx(
        mesh["requests_per_s"] / min(rows[part, "full"]["requests_per_s"] for part in ("prefill_alone", "decode_alone"))
    )
    lone = {split: rows["mesh_one_request", split]["ttft_p50_s"] for split in ("full", "none")}
    assert summary["handoff_ttft_ms"] == pytest.approx(1e3 * (lone["full"] - lone["none"]))
    assert {row["process"] for row in report["rows"] if row["kind"] == "loop_lag"} == {"gateway", "p0", "d0"}


def test_one_core_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the cores \[3\]; let it use two"):
        ServeFlags(json=tmp_path / "out.json").settings((3,))


def test_quick_flags_give_way_to_those_that_are_given(tmp_path: Path) -> None:
    flags = ServeFlags(json=tmp_path / "out.json", quick=True, clients=3, turns=9)
    settings = flags.settings((0, 5, 6))
    assert (settings.clients, settings.requests, settings.prompt_tokens) == (3, 27, 32)
    assert settings.cores == (0, 5)
    assert command_of(flags) == "pdmesh bench serve --quick --clients 3 --turns 9"
    with pytest.raises(ConfigError, match="float8"):
        ServeFlags(json=tmp_path / "out.json", dtype="float8").settings((0, 1))
