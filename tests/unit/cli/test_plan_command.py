"""`pdmesh plan`: what it prints and writes, and how it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from common.config.load import load_mesh
from common.errors import ConfigError, PdmeshError
from services.cli.main import app
from services.cli.outcome import ExitCode
from services.cli.plan import PlanFlags, command_of
from services.planner.errors import PlanError

CLUSTER: dict[str, Any] = {
    "model": "SmolLM2-135M",
    "mesh_model": "smollm2",
    "workload": {"prompt": {"mean": 100}, "output": {"mean": 10}, "requests": 30},
    "machines": [
        {"name": "a10", "device": "A10", "count": 2, "price": 2.0, "max_batch": 8, "budget": 64},
        {"name": "l4", "device": "L4", "devices": 2, "price": 1.0, "max_batch": 8, "budget": 64},
    ],
}
LIMITS = {"ttft_p99_s": 0.5, "tpot_p99_s": 0.05}
QUICK = ("--requests", "40", "--top", "3")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def cluster(folder: Path, **keys: Any) -> str:
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(CLUSTER | keys))
    return str(file)


def planned(*arguments: str) -> Result:
    result = CliRunner(env={"PDMESH_DATA": ""}).invoke(app, ["plan", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == ExitCode.DONE
    return result


def rows_of(file: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in json.loads(file.read_text())["rows"] if row["kind"] == kind]


# ---------------------------------------------------------------- what it prints and writes


def test_the_table_the_json_and_the_mesh_say_the_same(folder):
    out, mesh = folder / "out.json", folder / "mesh.yaml"
    text = planned(cluster(folder), *QUICK, "--runnable", "--json", str(out), "-o", str(mesh)).stdout
    plans = rows_of(out, "plan")
    assert [plan["rank"] for plan in plans] == [1, 2, 3]
    assert {plan["serving"] for plan in plans} == {"aggregated", "disaggregated", "cronus"}
    rates = [plan["simulated_rps"] for plan in plans]
    assert rates == sorted(rates, reverse=True)
    first = next(line for line in text.splitlines() if line.lstrip().startswith("1 "))
    assert plans[0]["serving"] in first
    assert plans[0]["simulated_requests"] == 40
    config = load_mesh(mesh, {}, {})
    assert config.model == "smollm2"
    assert len(config.instances) == plans[0]["instances"]
    counts = [(group["pool"], group["role"], group["count"]) for group in rows_of(out, "group") if group["rank"] == 1]
    assert sum(count for *_, count in counts) == len(config.instances)
    for pool, role, count in counts:
        assert sum(each.id.startswith(f"{pool}-") and each.role == role for each in config.instances) == count
    assert f"{plans[0]['serving']}, {plans[0]['plan']}" in mesh.read_text().replace("\n# ", " ")


def test_the_json_has_the_shape_of_the_benchmarks(folder):
    out = folder / "out.json"
    path = cluster(folder, limits=LIMITS)
    planned(path, *QUICK, "--seed", "3", "--json", str(out))
    report = json.loads(out.read_text())
    assert list(report) == ["command", "commit", "date", "machine", "rows", "summary"]
    assert report["command"] == f"pdmesh plan {path} --top 3 --json {out} --requests 40 --seed 3"
    for row in report["rows"]:
        assert (row["where"], row["repeats"]) == ("simulated", 1)
        assert all(value is None or isinstance(value, str | int | float) for value in row.values())
    for plan in rows_of(out, "plan"):
        assert plan["objective"] == "goodput"
        assert plan["ttft_p99_s"] <= LIMITS["ttft_p99_s"]
        assert plan["within_limits"]
        assert report["summary"][f"closed_over_simulated_{plan['rank']}"] == plan["closed_over_simulated"]


def test_equal_commands_give_equal_figures(folder):
    files = [folder / name for name in ("a.json", "b.json")]
    for file in files:
        planned(cluster(folder, limits=LIMITS), *QUICK, "--json", str(file))
    first, second = (json.loads(file.read_text()) for file in files)
    assert first["rows"] == second["rows"]


def test_without_simulation_there_are_closed_forms_only(folder):
    out = folder / "out.json"
    text = planned(cluster(folder), "--no-simulate", "--json", str(out)).stdout
    assert "sim." not in text
    assert all(plan["simulated_rps"] is None and plan["closed_form_rps"] > 0 for plan in rows_of(out, "plan"))


def test_what_is_wanted_can_be_said_on_the_command_line(folder):
    out = folder / "out.json"
    path = cluster(folder, limits=LIMITS)
    text = planned(path, *QUICK, "--objective", "price", "--rate", "20", "--json", str(out)).stdout
    assert "the least price at 20 requests/s within TTFT P99 at most 0.5 s and TPOT P99 at most 50 ms" in text
    prices = [plan["price_per_h"] for plan in rows_of(out, "plan")]
    assert prices == sorted(prices)
    assert {plan["requested_rps"] for plan in rows_of(out, "plan")} == {20.0}
    assert rows_of(out, "plan")[0]["within_limits"]


def test_an_explanation_names_limits_refusals_and_omissions(folder):
    text = planned(cluster(folder, limits=LIMITS), *QUICK, "--explain").stdout
    for word in ("limited by", "KV for", "times as much", "refused:", "not looked at, without loss:", "% of the limit"):
        assert word in text
    # 9 heads and 3 KV heads are not divided by 2.
    assert "l4 TP2: " in text


def test_every_runnable_plan_is_written_and_can_be_loaded(folder):
    planned(cluster(folder), *QUICK, "--no-simulate", "--runnable", "--all", str(folder / "plans"))
    files = sorted((folder / "plans").iterdir())
    assert [file.name[:2] for file in files] == ["01", "02", "03"]
    policies = {"aggregated": "capacity", "disaggregated": "disagg", "cronus": "cronus"}
    for file in files:
        assert load_mesh(file, {}, {}).policy == policies[file.stem[3:]]


def test_plans_that_need_ranks_are_marked_and_told_but_not_among_all(folder):
    machines = [{"name": "a100", "device": "A100 80GB SXM", "devices": 8}]
    path = cluster(folder, model="Qwen2.5-32B", machines=machines)
    mesh = folder / "mesh.yaml"
    flags = ("--no-simulate", "--top", "40", "-o", str(mesh), "--all", str(folder / "plans"), "--json")
    result = planned(path, *flags, str(folder / "out.json"))
    plans = rows_of(folder / "out.json", "plan")
    assert {plan["needs_ranks"] for plan in plans} == {True, False}
    assert "needs ranks" in result.stdout
    runnable = [f"{plan['rank']:02}-{plan['serving']}.yaml" for plan in plans if not plan["needs_ranks"]]
    assert sorted(file.name for file in (folder / "plans").iterdir()) == runnable
    if plans[0]["needs_ranks"]:
        assert "--runnable" in result.stderr
        with pytest.raises(ConfigError, match="needs ranks"):
            load_mesh(mesh, {}, {})


def test_a_picture_of_what_limits_cost(folder):
    pytest.importorskip("matplotlib")
    picture, out = folder / "front.png", folder / "out.json"
    path = cluster(folder, limits={"ttft_p99_s": 0.5})
    planned(path, "--no-simulate", "--plot", str(picture), "--json", str(out))
    assert picture.read_bytes().startswith(b"\x89PNG")
    rates = [row["closed_form_rps"] or 0.0 for row in rows_of(out, "front")]
    assert len(rates) == 9
    assert rates == sorted(rates)


def test_a_command_can_be_given_again():
    flags = PlanFlags(cluster=Path("my machines.yaml"), top=3, explain=True, out=Path("mesh.yaml"), rate=4.5)
    assert command_of(flags) == "pdmesh plan 'my machines.yaml' --rate 4.5 --top 3 --explain --out mesh.yaml"


# ---------------------------------------------------------------- how it refuses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--objective", "speed"), "give one of throughput, goodput, price"),
        (("--objective", "price"), "give requests per second with --rate"),
        (("--objective", "goodput"), "write `limits:`"),
        (("--rate", "-1"), "--rate is -1.0"),
        (("--rate", "nan"), "--rate is nan"),
        (("--plot", "x.png"), "write `limits:`"),
        (("-o", "no/such/folder/mesh.yaml"), "--out"),
    ],
)
def test_wrong_options_are_refused(folder, arguments, message):
    with pytest.raises(ConfigError, match=message):
        planned(cluster(folder), *arguments)


def test_an_unknown_device_is_told_with_the_nearest(folder):
    with pytest.raises(ConfigError, match="did you mean 'A10'"):
        planned(cluster(folder, machines=[{"name": "a", "device": "A10x"}]))


def test_prices_are_needed_to_compare_them(folder):
    machines = [{key: value for key, value in each.items() if key != "price"} for each in CLUSTER["machines"]]
    with pytest.raises(ConfigError, match="price of every machine"):
        planned(cluster(folder, machines=machines, limits=LIMITS), "--objective", "price", "--rate", "3")


def test_a_limit_below_the_floor_is_told_with_the_floor_and_leaves_no_file(folder):
    mesh = folder / "mesh.yaml"
    with pytest.raises(PlanError, match=r"no feasible plan: limits.ttft_p99_s is 1e-06.*floor of"):
        planned(cluster(folder, limits={"ttft_p99_s": 1e-6}), "-o", str(mesh))
    assert not mesh.exists()


def test_a_rate_that_no_plan_has_is_told_with_the_most_there_is(folder):
    path = cluster(folder, limits=LIMITS)
    with pytest.raises(PlanError, match=r"no plan has the least price at 1e\+06 .* the most is .* requests/s, with"):
        planned(path, "--objective", "price", "--rate", "1e6")


def test_a_budget_below_every_plan_is_refused(folder):
    with pytest.raises(PlanError, match="the budget is less than any plan costs"):
        planned(cluster(folder, budget=0.1))


def test_a_json_file_that_cannot_be_written_is_told_before_the_work(folder):
    with pytest.raises(PdmeshError, match="--json"):
        planned(cluster(folder), "--json", str(folder / "none" / "out.json"))
