"""`pdmesh bench serve`: what is measured, and the ratios made of it."""

from collections.abc import Mapping

import pytest

from common.config.load import check_mesh
from common.errors import ConfigError
from common.ids import InstanceId, RequestId
from services.bench.engine.errors import BenchError
from services.bench.serve.parts import BEFORE_FIRST_TOKEN, parts_of
from services.bench.serve.rows import serve_rows, serve_summary
from services.bench.serve.settings import FULL, HALF, NONE, SPLITS, ServeSettings, SplitCase
from services.bench.serve.trials import TRIALS, Part, Trial, prompts_of
from services.gateway.records.trace_types import RequestTrace
from services.scheduling.placement import Placement

SETTINGS = ServeSettings(model="smollm2")
RATES = {
    Part.MESH: {FULL: 1.8, HALF: 2.7, NONE: 1.4},
    Part.PREFILL: {FULL: 2.0, HALF: 4.0},
    Part.DECODE: {FULL: 3.0, HALF: 3.0, NONE: 1.5},
    Part.TOGETHER: {FULL: 1.9, HALF: 2.8},
    Part.ENGINE: {NONE: 3.6},
}
LONE_S = {FULL: 0.33, HALF: 0.24, NONE: 0.30}
LATENCIES = {f"{name}_{figure}_s": 0.5 for name in ("ttft", "tbt", "tpot") for figure in ("mean", "p50", "p99")}
LAGS = {f"{name}_lag_{figure}_ms": 2.0 for name in ("gateway", "p0") for figure in ("p99", "max")}


def figures(trial: Trial, mood: float) -> Mapping[str, float]:
    """One round on a machine that is `mood` times as fast as usual."""
    if trial.part is Part.LONE:
        stages = {f"{stage.value}_p50_ms": trial.split.tokens(256) / mood for stage in BEFORE_FIRST_TOKEN}
        return {**LATENCIES, **stages, "ttft_p50_s": LONE_S[trial.split] / mood}
    rate = RATES[trial.part][trial.split] * mood
    if trial.part is not Part.MESH:
        return {"requests_per_s": rate}
    return {"requests_per_s": rate, "goodput_rps": 0.9 * rate, **LATENCIES, **LAGS}


SERVED = {trial: [figures(trial, mood) for mood in (0.5, 1.0, 2.0)] for trial in TRIALS}


def test_the_mesh_is_compared_with_its_slower_stage_round_by_round() -> None:
    summary = serve_summary(SERVED)
    assert summary["mesh_over_stage"] == pytest.approx(1.8 / 2.0)
    assert summary["mesh_over_stage_half"] == pytest.approx(2.7 / 3.0)
    assert summary["mesh_over_stage_none"] == pytest.approx(1.4 / 1.5)
    assert summary["mesh_over_engine"] == pytest.approx(0.5)
    assert summary["mesh_over_stages_together_half"] == pytest.approx(2.7 / 2.8)
    assert summary["handoff_ttft_ms"] == pytest.approx(30.0)
    assert summary["handoff_ttft_percent"] == pytest.approx(10.0)
    assert summary["handoff_ttft_ms_half"] == pytest.approx(-60.0)


def test_rows() -> None:
    rows = serve_rows(SETTINGS, SERVED)
    assert all(row["where"] == "real" and row["repeats"] == 3 and row["system"] == "pdmesh" for row in rows)
    assert [row["kind"] for row in rows] == ["serve"] * len(TRIALS) + ["handoff"] * 2 + ["loop_lag"] * 6
    by_trial = {(row["part"], row["split"]): row for row in rows if row["kind"] == "serve"}
    mesh = by_trial["mesh", "full"]
    assert (mesh["split_tokens"], mesh["phase"], mesh["threads"], mesh["cores"]) == (255, "end_to_end", 1, 2)
    assert (mesh["mesh_over_stage_min"], mesh["mesh_over_stage_max"]) == pytest.approx((0.9, 0.9))
    assert mesh["tokens_per_s"] == pytest.approx(64 * 1.8)
    assert not [column for column in mesh if "_lag_" in column]
    prefill = by_trial["prefill_alone", "half"]
    assert (prefill["split_tokens"], prefill["phase"], prefill["cores"]) == (128, "prefill", 1)
    assert prefill["tokens_per_s"] == pytest.approx(128 * 4.0)
    assert by_trial["engine", "none"]["threads"] == 2
    assert by_trial["mesh_one_request", "none"]["clients"] == 1
    assert {row["process"] for row in rows if row["kind"] == "loop_lag"} == {"gateway", "p0"}, "d0 told nothing"


def test_a_hand_off_is_told_stage_by_stage() -> None:
    full, half = (row for row in serve_rows(SETTINGS, SERVED) if row["kind"] == "handoff")
    assert (full["wire_p50_ms"], full["aggregated_wire_p50_ms"]) == (255.0, 0.0)
    assert half["prefill_p50_ms"] == 128.0


def test_the_stages_before_a_first_token_are_medians_of_traces() -> None:
    traces = [
        RequestTrace(
            request=RequestId(f"r{i}"),
            policy="fixed",
            prompt_tokens=8,
            max_tokens=4,
            choices=1,
            asked_split=None,
            placed_s=0.001 * i,
            first_token_s=0.1,
            last_token_s=0.2,
            ended_s=0.3,
            placement=Placement(None, InstanceId("d0"), 0, 0),
            tokens=4,
        )
        for i in range(1, 4)
    ]
    found = parts_of(traces)
    assert found["queue_p50_ms"] == pytest.approx(2.0)
    assert found["prefill_p50_ms"] == found["wire_p50_ms"] == 0.0
    assert sum(found.values()) == pytest.approx(100.0)
    with pytest.raises(BenchError, match=r"gateway\.traces"):
        parts_of([])


def test_every_ratio_has_what_it_is_made_of() -> None:
    assert {(trial.part, trial.split) for trial in TRIALS} >= {
        *((part, split) for part in (Part.MESH, Part.DECODE, Part.LONE) for split in SPLITS),
        *((part, split) for part in (Part.PREFILL, Part.TOGETHER) for split in (FULL, HALF)),
        (Part.ENGINE, NONE),
    }


def test_stages_are_pinned_and_limited_as_in_the_mesh() -> None:
    mesh = check_mesh(SETTINGS.mesh())
    prefill, decode = mesh.instances
    assert (prefill.cpu_affinity, decode.cpu_affinity) == ((0,), (1,))
    assert prefill.threads == decode.threads == 1
    assert (SETTINGS.instance(prefill.role), SETTINGS.instance(decode.role)) == mesh.instances
    assert SETTINGS.engine().threads == 2
    assert SETTINGS.engine().max_batch == decode.max_batch


def prompts(part: Part, split: SplitCase, number: int) -> set[tuple[int, ...]]:
    return {request.prompt for request in prompts_of(SETTINGS, 1000, Trial(part, split), number)}


def test_mesh_and_stages_get_the_same_prompts_and_no_process_gets_one_twice() -> None:
    assert prompts(Part.MESH, FULL, 3) == prompts(Part.PREFILL, FULL, 3) == prompts(Part.DECODE, FULL, 3)
    of_decode = [
        prompts(part, split, number) for part in (Part.DECODE, Part.TOGETHER) for split in SPLITS for number in range(3)
    ]
    assert sum(map(len, of_decode)) == len(set().union(*of_decode))
    assert {request.split for request in prompts_of(SETTINGS, 1000, Trial(Part.MESH, HALF), 0)} == {0.5}


def test_settings_that_measure_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 requests of each client"):
        ServeSettings(model="m", turns=2)
    with pytest.raises(ConfigError, match=r"2 \+ 64 tokens"):
        ServeSettings(model="m", prompt_tokens=2)
