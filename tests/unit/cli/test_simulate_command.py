"""`pdmesh simulate`: what it prints and writes, and how it refuses."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from common.errors import ConfigError
from services.cli.outcome import ExitCode
from services.cli.simulate import SimulateFlags, command_of, run_simulate
from services.simulator.engine.events import SimulationError

CLUSTER = """
model: LLaMA3-8B
instances:
  - {id: a10, role: prefill, device: A10}
  - {id: a100, role: decode, device: A100 80GB SXM}
"""
SYSTEMS = """
systems:
  - {name: ours, policy: cronus}
  - {name: dp, policy: dp, roles: {a10: decode}, weights: tuned}
  - {name: half, policy: fixed, split: 0.5}
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    file = tmp_path / "cluster.yaml"
    file.write_text(CLUSTER)
    return file


@pytest.fixture
def systems(tmp_path: Path) -> Path:
    file = tmp_path / "systems.yaml"
    file.write_text(CLUSTER + SYSTEMS)
    return file


def printed(cluster: Path, environ: dict[str, str] | None = None, **flags: Any) -> str:
    out = io.StringIO()
    given = SimulateFlags(**{"cluster": cluster, "trace": "synthetic", "requests": 20, **flags})
    console = Console(file=io.StringIO())
    assert run_simulate(given, environ or {}, Console(file=out, width=200), console) is ExitCode.DONE
    return out.getvalue()


def rows_of(file: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in json.loads(file.read_text())["rows"] if row["kind"] == kind]


def line_of(text: str, *words: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.split()[: len(words)] == list(words))
    return line.split()


# ---------------------------------------------------------------- what it prints and writes


def test_the_table_and_the_json_say_the_same(systems, tmp_path):
    out = tmp_path / "out.json"
    text = printed(systems, json=out)
    assert "simulated, not run: LLaMA3-8B, float16, links of 100 Gb/s" in text
    runs = rows_of(out, "run")
    assert [run["system"] for run in runs] == ["ours", "dp", "half"]
    for run in runs:
        assert (
            line_of(text.partition("instances")[0].partition("tuned")[0], run["system"])[1]
            == f"{run['throughput_rps']:.2f}"
        )
        assert run["rate_rps"] is None
        assert run["arrivals"] == "all at once"
        assert run["requests"] == 20
    assert line_of(text, "ours", "a10")[-2:] == [f"{rows_of(out, 'instance')[0]['last_finish_s']:.2f}", "s"]


def test_the_json_has_the_shape_of_the_benchmarks(systems, tmp_path):
    out = tmp_path / "out.json"
    printed(systems, json=out, rate="2,4", seed=3)
    report = json.loads(out.read_text())
    assert list(report) == ["command", "commit", "date", "machine", "rows", "summary"]
    assert (
        report["command"]
        == f"pdmesh simulate --cluster {systems} --trace synthetic --rate 2,4 --requests 20 --seed 3 --json {out}"
    )
    for row in report["rows"]:
        assert row["where"] == "simulated"
        assert row["repeats"] == 1
        assert all(value is None or isinstance(value, str | int | float) for value in row.values())
    assert [(run["system"], run["rate_rps"]) for run in rows_of(out, "run")] == [
        (system, rate) for system in ("ours", "dp", "half") for rate in (2, 4)
    ]
    assert len(rows_of(out, "instance")) == 3 * 2 * 2
    ours, dp = (run for run in rows_of(out, "run") if run["rate_rps"] == 4 and run["system"] in ("ours", "dp"))
    assert report["summary"]["ttft_p99_ours_over_dp_at_4"] == ours["ttft_p99_s"] / dp["ttft_p99_s"]
    assert len(report["summary"]) == 3 * 2 * 2


def test_what_was_tuned_is_shown_and_used(systems, tmp_path):
    out = tmp_path / "out.json"
    text = printed(systems, json=out, policy="dp")
    trials = rows_of(out, "tuning")
    best = max(trials, key=lambda trial: trial["throughput_rps"])
    (run,) = rows_of(out, "run")
    assert run["throughput_rps"] == best["throughput_rps"]
    assert run["weights"].split()[0] == f"a10={best['value']:.4g}"
    assert line_of(text, "dp", "share", "of", "a10")[4:6] == [f"{best['value']:.4g}", f"{best['throughput_rps']:.2f}"]


def test_equal_commands_give_equal_figures(cluster, tmp_path):
    files = [tmp_path / name for name in ("a.json", "b.json")]
    for file in files:
        printed(cluster, json=file, policy="cronus,disagg", rate="3", cv=2.0)
    first, second = (json.loads(file.read_text()) for file in files)
    assert first["rows"] == second["rows"]
    assert first["summary"] == second["summary"]


def test_several_rates_are_a_column(cluster):
    text = printed(cluster, policy="cronus", rate="1, 2.5")
    assert [line_of(text, "cronus", rate)[1] for rate in ("1", "2.5")] == ["1", "2.5"]
    assert "instances" not in text


TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:15:{second:02}.0,{100 * second},{second}\n" for second in range(10, 40)
)


def test_a_trace_at_its_own_times_cut_and_divided(cluster, tmp_path):
    trace, out = tmp_path / "trace.csv", tmp_path / "out.json"
    trace.write_text(TRACE)
    text = printed(cluster, policy="cronus", trace=str(trace), recorded=True, requests=10, divide=10, json=out)
    (run,) = rows_of(out, "run")
    assert (run["requests"], run["arrivals"], run["workload"]) == (10, "as recorded", "trace-first10-div10")
    assert run["makespan_s"] > 9
    assert "prompts 145 / 145 / 189 / 190, outputs 2 / 2 / 2 / 2" in text


def test_a_public_trace_by_its_name(cluster, tmp_path):
    (tmp_path / "traces").mkdir()
    trace = tmp_path / "traces" / "azure_conv_first1000.csv"
    rows = "".join(f"2023-11-16 18:15:46.{number:03},100,10\n" for number in range(1000))
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    for where in ({"data": tmp_path}, {"environ": {"PDMESH_DATA": str(tmp_path)}}):
        text = printed(cluster, policy="cronus", trace="azure_conv_first1000", **where)
        assert "checksum DIFFERS" in text


def test_a_picture(systems, tmp_path):
    pytest.importorskip("matplotlib")
    for flags in ({}, {"rate": "2,4"}):
        file = tmp_path / "out.png"
        printed(systems, plot=file, policy="ours,half", **flags)
        assert file.read_bytes().startswith(b"\x89PNG")
        file.unlink()


def test_answers_of_one_token_have_no_gaps(cluster, tmp_path):
    trace, out, plot = (tmp_path / name for name in ("one.csv", "out.json", "out.png"))
    trace.write_text("num_prefill_tokens,num_decode_tokens\n100,1\n90,1\n")
    printed(cluster, policy="cronus,disagg", trace=str(trace), requests=None, rate="1,2", json=out, plot=plot)
    assert {run["tbt_p99_s"] for run in rows_of(out, "run")} == {0}
    assert not [name for name in json.loads(out.read_text())["summary"] if "tbt" in name]


def test_progress_on_a_terminal_and_nothing_elsewhere(cluster):
    flags = SimulateFlags(cluster=cluster, trace="synthetic", requests=20, policy="cronus")
    for is_terminal in (True, False):
        err = io.StringIO()
        run_simulate(flags, {}, Console(file=io.StringIO()), Console(file=err, force_terminal=is_terminal, width=100))
        assert ("cronus, all at once" in err.getvalue()) is is_terminal


# ---------------------------------------------------------------- how it refuses


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"rate": "0"}, "--rate has '0'"),
        ({"rate": "2,-1"}, "--rate has '-1'"),
        ({"rate": "nan"}, "--rate has 'nan'"),
        ({"rate": "inf"}, "--rate has 'inf'"),
        ({"rate": "fast"}, "--rate has 'fast'"),
        ({"rate": "2,,3"}, "'2,,3' has an empty place"),
        ({"rate": "2", "all_at_once": True}, "--rate and --all-at-once"),
        ({"recorded": True, "all_at_once": True}, "--all-at-once and --recorded"),
        ({"policy": None}, "name policies with --policy"),
        ({"policy": "cronus,best"}, "policy 'best' is not known"),
        ({"policy": "dp"}, "policy 'dp' serves every request whole"),
        ({"recorded": True}, "has lengths and no times"),
        ({"rate": "2", "cv": -1.0}, "cv is -1.0"),
        ({"trace": "synthetic:chat"}, "no built-in workload 'chat'"),
        ({"trace": "nowhere.csv"}, "no trace 'nowhere.csv'"),
        ({"trace": "azure_conv"}, "--data, or PDMESH_DATA"),
        ({"json": Path("/nowhere/out.json")}, "--json: '/nowhere/out.json' cannot be written"),
        ({"plot": Path("/nowhere/out.png")}, "--plot: '/nowhere/out.png' cannot be written"),
    ],
)
def test_what_cannot_be_simulated_is_a_configuration_error(cluster, flags, said):
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        printed(cluster, **{"policy": "cronus", **flags})


def test_a_damaged_trace_is_told_by_file_and_line(cluster, tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text(TRACE + "2023-11-16 18:16:00.0,none,1\n")
    with pytest.raises(ConfigError, match=r"trace\.csv, line 32: ContextTokens is 'none'"):
        printed(cluster, policy="cronus", trace=str(trace))
    trace.write_text(TRACE)
    with pytest.raises(ConfigError, match="first 31 requests"):
        printed(cluster, policy="cronus", trace=str(trace), requests=31)


def test_a_request_that_fits_nowhere_names_the_system(cluster, tmp_path):
    trace = tmp_path / "long.csv"
    trace.write_text("num_prefill_tokens,num_decode_tokens\n100,10\n900000,5\n")
    with pytest.raises(SimulationError, match=r"system 'cronus': request 1 .*900005 tokens"):
        printed(cluster, policy="cronus", trace=str(trace), requests=None)


def test_the_command_line_of_flags():
    flags = SimulateFlags(cluster=Path("a b.yaml"), trace="synthetic", all_at_once=True, data=Path("d"), divide=2)
    assert (
        command_of(flags) == "pdmesh simulate --cluster 'a b.yaml' --trace synthetic --all-at-once --divide 2 --data d"
    )


# ---------------------------------------------------------------- as a process


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PDMESH_")}
    command = [sys.executable, "-m", "services.cli.main", "simulate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**environ, "COLUMNS": "200"}, timeout=120)


def test_the_command_prints_tables_on_stdout_and_nothing_else(cluster):
    done = run("--cluster", str(cluster), "--trace", "synthetic", "--requests", "20", "--policy", "cronus")
    assert (done.returncode, done.stderr) == (0, "")
    assert "cronus" in done.stdout


def test_exit_codes_of_what_goes_wrong(cluster, tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text(CLUSTER + "polcy: x\n")
    long = tmp_path / "long.csv"
    long.write_text("num_prefill_tokens,num_decode_tokens\n900000,5\n")
    for code, *arguments in (
        (2, "--cluster", "nowhere.yaml"),
        (2, "--cluster", str(cluster), "--requests", "0"),
        (2, "--cluster", str(bad), "--policy", "cronus"),
        (1, "--cluster", str(cluster), "--policy", "cronus", "--trace", str(long)),
    ):
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (code, ""), arguments
        assert "rror" in done.stderr
        assert "Traceback" not in done.stderr


def test_simulating_loads_no_torch(cluster):
    code = (
        "import sys; sys.argv[1:] = ['simulate', '--cluster', sys.argv[1], '--requests', '5', '--policy', 'cronus'];"
        "import services.cli.main as main\n"
        "try:\n    main.main()\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(cluster)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
