"""The readers of the measured tables, and what is held out of the fits."""

from pathlib import Path

import pytest

from common.errors import ConfigError
from services.planner.checks.cases import MeasuredCase, MeasuredStep, Phase, SpecSubject
from services.planner.checks.held_out import agreement, check_case
from services.planner.checks.helix import helix_cases
from services.planner.checks.llm_pilot import llm_pilot_cases
from services.planner.checks.spec import spec_time
from services.planner.checks.splitwise import splitwise_cases
from services.planner.checks.tables import measured_rows
from services.simulator.hardware.catalogue import load_catalogue
from services.simulator.hardware.models import find_model

SPLITWISE = "model,hardware,prompt_size,batch_size,token_size,prompt_time,token_time,tensor_parallel"
HELIX = "model,machine,phase,tokens_in_batch,ms_per_layer"
BINS = "model,gpu_type,n_gpus,in_lo,in_hi,n,in_mean,ttft_p50_ms,ttft_p90_ms"
USERS = "model,gpu_type,n_gpus,num_users,requests,failed,in_mean,out_mean,itl_p50_ms"


def write(data: Path, name: str, *lines: str) -> None:
    (data / name).parent.mkdir(parents=True, exist_ok=True)
    (data / name).write_text("\n".join(lines) + "\n")


def write_splitwise(data: Path, *lines: str) -> None:
    write(data, "splitwise/perf_model.csv", SPLITWISE, *lines)


def write_pilot(data: Path, bins: list[str], users: list[str]) -> None:
    write(data, "llm_pilot/prefill_1user_by_input_bin.csv", BINS, *bins)
    write(data, "llm_pilot/summary_by_users.csv", USERS, *users)


def test_splitwise_takes_the_median_of_repeats_and_the_context_half_way_through_the_answer(tmp_path: Path) -> None:
    rows = [f"llama2-70b,h100-80gb,512,4,128,{prompt},{token},4" for prompt, token in ((100, 30), (120, 31), (900, 90))]
    write_splitwise(tmp_path, *rows)
    (case,) = splitwise_cases(tmp_path)
    assert (case.model, case.device, case.tp) == ("llama2-70b", "h100-80gb", 4)
    assert case.spec == SpecSubject("H100 SXM", find_model("Llama2-70B"))
    decode, prefill = case.steps
    assert (decode.seconds, decode.sequences, decode.context) == (0.031, 4, 4 * (512 + 64))
    assert (prefill.seconds, prefill.prompts, prefill.phase) == (0.12, (512,) * 4, Phase.PREFILL_BATCHED)


def test_splitwise_leaves_out_the_anomaly_and_what_was_not_measured(tmp_path: Path) -> None:
    write_splitwise(
        tmp_path,
        "llama2-70b,a100-80gb,512,64,128,794,70,2",
        "llama2-70b,h100-80gb-pcap,512,1,128,100,30,4",
        "bloom-176b,a100-80gb,512,64,128,5000,70,8",
    )
    (case,) = splitwise_cases(tmp_path)
    assert (case.model, case.tp) == ("bloom-176b", 8)
    # The published 176.25 billion, in spite of another MLP.
    assert case.spec is not None
    assert case.spec.model.params == pytest.approx(176.25e9, rel=2e-3)


def test_helix_scales_layers_to_the_model_and_leaves_out_empty_batches(tmp_path: Path) -> None:
    write(
        tmp_path,
        "helix/helix_layer_times.csv",
        HELIX,
        "llama1_30b,l4x2,decode,0,0.0",
        "llama1_30b,l4x2,decode,8,2.5",
        "llama1_30b,l4x2,decode,460,30.0",
        "llama1_30b,l4x2,prompt,500,9.0",
    )
    decode, prompt = helix_cases(tmp_path)
    assert (decode.device, decode.tp, decode.has_contexts) == ("l4", 2, False)
    assert [step.sequences for step in decode.steps] == [8, 460]
    assert [step.seconds for step in decode.steps] == pytest.approx([0.15, 1.8])
    assert [step.resolution_s for step in decode.steps] == pytest.approx([60e-4, 60e-3])
    assert prompt.steps[0].prompts == (500,)
    assert prompt.steps[0].seconds == pytest.approx(0.54)
    assert prompt.spec is not None
    assert prompt.spec.model.vocab == 0


def test_llm_pilot_drops_runs_that_failed_too_often(tmp_path: Path) -> None:
    bins = ["llama-7b,A10,1,64,128,74,88.5,47.0,54.7", "gpt,T4,1,64,128,74,88.5,47.0,54.7"]
    users = [
        "llama-7b,A10,1,1,98,2,100,20,31.0",
        "llama-7b,A10,1,2,97,3,100,20,35.0",
        "llama-7b,A10,1,4,0,0,0,0,0",
    ]
    write_pilot(tmp_path, bins, users)
    other, llama = llm_pilot_cases(tmp_path)
    assert (other.model, other.spec) == ("gpt", None)
    assert [(step.sequences, step.seconds) for step in llama.steps if step.sequences] == [(1, 0.031)]
    assert llama.assumed_context == 110
    assert [step.prompts for step in llama.steps if step.prompts] == [(88,)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model,hardware\nx,y\n", "has no column 'tensor_parallel'"),
        (f"{SPLITWISE}\nllama2-70b,h100-80gb,512\n", "line 2 is cut short"),
        (f"{SPLITWISE}\nllama2-70b,h100-80gb,512,1,128,soon,30,4\n", "'soon' as prompt_time"),
    ],
)
def test_a_broken_table_is_refused(tmp_path: Path, text: str, said: str) -> None:
    write(tmp_path, "splitwise/perf_model.csv", text)
    with pytest.raises(ConfigError, match=said):
        splitwise_cases(tmp_path)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"perf_model\.csv"):
        splitwise_cases(tmp_path)


def linear_case(**changes: object) -> MeasuredCase:
    """10 ms + 0.1 ms per token; 5 ms + 1 ms per sequence + 1 us per token of context."""
    prompts = [
        MeasuredStep(0.01 + 1e-4 * tokens, tokens in {100, 400, 1600}, prompts=(tokens,))
        for tokens in (100, 200, 400, 800, 1600)
    ]
    several = [MeasuredStep(0.01 + 1e-4 * 1000, False, prompts=(500, 500))]
    decodes = [
        MeasuredStep(0.005 + 1e-3 * count + 1e-6 * context, count < 16, sequences=count, context=context)
        for count in (1, 2, 8, 16, 32)
        for context in (100 * count, 900 * count)
    ]
    settings: dict[str, object] = {"table": "t", "model": "m", "device": "d", "tp": 1}
    return MeasuredCase(**settings, steps=(*prompts, *several, *decodes), **changes)  # type: ignore[arg-type]


def test_what_is_linear_is_predicted_from_the_profiled_part() -> None:
    checks = {check.phase: check for check in check_case(linear_case(), None)}
    assert {phase: (check.profiled, check.predicted) for phase, check in checks.items()} == {
        Phase.PREFILL: (3, 2),
        Phase.PREFILL_BATCHED: (0, 1),
        Phase.DECODE: (6, 4),
    }
    for check in checks.values():
        assert check.fit is not None
        assert check.fit.worst_error < 1e-6
        assert check.spec is None


def test_only_steps_that_were_not_profiled_count() -> None:
    wrong = linear_case()
    steps = [step for step in wrong.steps if step.phase is Phase.PREFILL]
    doubled = tuple(
        step if step.is_profiled else MeasuredStep(2 * step.seconds, False, prompts=step.prompts) for step in steps
    )
    (check,) = check_case(MeasuredCase(table="t", model="m", device="d", tp=1, steps=doubled), None)
    assert check.fit is not None
    assert check.fit.mean_error == pytest.approx(0.5)
    assert check.fit.median_ratio == pytest.approx(0.5)


def test_without_contexts_their_cost_is_in_that_of_sequences() -> None:
    steps = tuple(MeasuredStep(0.005 + 2e-3 * n, n < 8, sequences=n) for n in (1, 2, 4, 8, 16))
    case = MeasuredCase(table="t", model="m", device="d", tp=1, steps=steps, has_contexts=False)
    (check,) = check_case(case, None)
    assert check.fit is not None
    assert check.fit.worst_error < 1e-6


def test_too_few_profiled_steps_leave_nothing_fitted() -> None:
    steps = tuple(MeasuredStep(0.01 * n, n < 3, prompts=(n,)) for n in (1, 2, 3))
    (check,) = check_case(MeasuredCase(table="t", model="m", device="d", tp=1, steps=steps), None)
    assert check.fit is None


def test_rounding_alone_is_a_quarter_of_the_grid() -> None:
    steps = (
        *(MeasuredStep(0.1 * n, True, prompts=(n,)) for n in (1, 2, 3)),
        MeasuredStep(0.5, False, prompts=(5,), resolution_s=0.2),
    )
    (check,) = check_case(MeasuredCase(table="t", model="m", device="d", tp=1, steps=steps), None)
    assert check.rounding == pytest.approx(0.1)


def test_the_error_is_relative_to_what_was_measured() -> None:
    steps = [MeasuredStep(1.0, False, sequences=1), MeasuredStep(2.0, False, sequences=1)]
    found = agreement(lambda _: 1.5, steps)
    assert found.mean_error == pytest.approx(0.375)
    assert found.worst_error == pytest.approx(0.5)
    assert found.median_ratio == pytest.approx((1.5 + 0.75) / 2)


def test_the_specification_predicts_what_it_made(tmp_path: Path) -> None:
    catalogue = load_catalogue()
    subject = SpecSubject("A10", find_model("Llama2-7B"))
    empty = MeasuredCase(
        table="t", model="m", device="d", tp=1, steps=(), spec=subject, assumed_context=100, assumed_prompt=64
    )
    time = spec_time(empty, catalogue)
    assert time is not None
    # Only the sum of 150 prompt tokens is known: two prompts of 64 and one of 22.
    together = time(MeasuredStep(1.0, False, prompts=(150,)))
    apart = spec_time(MeasuredCase(table="t", model="m", device="d", tp=1, steps=(), spec=subject), catalogue)
    assert apart is not None
    assert together == apart(MeasuredStep(1.0, False, prompts=(64, 64, 22)))
    # A context that is not known is the assumed one of every sequence.
    assert time(MeasuredStep(1.0, False, sequences=3)) == apart(MeasuredStep(1.0, False, sequences=3, context=300))
    assert spec_time(MeasuredCase(table="t", model="m", device="d", tp=1, steps=()), catalogue) is None


def test_rows_name_source_and_assumptions(tmp_path: Path) -> None:
    lines = [f"llama2-70b,h100-80gb,{512},{batch},128,{100 * batch},{30 + batch},4" for batch in (1, 2, 8, 32)]
    lines += [f"llama2-70b,h100-80gb,{size},1,128,{size},{30 + size / 1e3},4" for size in (128, 1024, 2048, 4096)]
    lines += [f"llama2-70b,h100-80gb,512,1,{size},50,{31 + size / 1e4},4" for size in (1024, 4096)]
    write_splitwise(tmp_path, *lines)
    layers = [(2, 1.0), (8, 1.2), (30, 2.0), (100, 5.0), (200, 9.0), (50, 3.0)]
    write(
        tmp_path,
        "helix/helix_layer_times.csv",
        HELIX,
        *(f"llama1_30b,t4,decode,{tokens},{ms}" for tokens, ms in layers),
    )
    write_pilot(tmp_path, ["llama-7b,A10,1,64,128,74,88.5,47.0,54.7"], ["llama-7b,A10,1,2,100,0,100,20,31.0"])
    rows = measured_rows(tmp_path, load_catalogue())
    assert {row["where"] for row in rows} == {"simulated"}
    cases = {(row["table"], row["phase"]): row for row in rows if row["kind"] == "measured_case"}
    helix = cases["helix", "decode"]
    assert helix["fit_error"] is not None
    assert helix["spec_error"] is not None
    assert "879 tokens of context" in str(helix["assumed"])
    assert "too few steps" in str(cases["llm_pilot", "prefill"]["assumed"])
    devices = {(row["table"], row["device"], row["phase"]) for row in rows if row["kind"] == "measured_device"}
    assert ("splitwise", "h100-80gb", "prefill of several") in devices
