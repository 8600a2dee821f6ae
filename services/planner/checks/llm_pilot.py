"""LLM-Pilot (IBM; CDLA-Permissive-2.0): closed loops of 1 to 128 users on A10, A100-40GB, H100, T4 and V100."""

from collections import defaultdict
from pathlib import Path
from typing import Final

from services.planner.checks.cases import MeasuredCase, MeasuredStep, SpecSubject, number, table_rows
from services.simulator.hardware.models import ModelSpec, find_model

FOLDER: Final = Path("llm_pilot")
_PREFILL: Final = ("model", "gpu_type", "n_gpus", "in_lo", "in_mean", "ttft_p50_ms")
_DECODE: Final = ("model", "gpu_type", "n_gpus", "num_users", "requests", "failed", "itl_p50_ms", "in_mean", "out_mean")
_MOST_FAILED: Final = 0.02
"""Share of requests: above it what was measured is a server that breaks."""
_PROFILED_BINS: Final = {1, 128, 512}
"""By their least number of prompt tokens."""
_PROFILED_USERS: Final = {1, 4, 16, 64}
_RESOLUTION_S: Final = 1e-3
"""Of the stamps of tokens."""
_MODELS: Final = {
    "llama-7b": find_model("Llama2-7B"),
    "llama-13b": ModelSpec(name="Llama2-13B", layers=40, hidden=5120, heads=40, kv_heads=40, head_dim=128,
                           intermediate=13824, vocab=32000),
}  # fmt: skip
"""LLaMA 1 and 2 have the same shape. Others, of other families, are fitted and not computed."""
_DEVICES: Final = {"A10": "A10", "A100": "A100 40GB SXM", "H100": "H100 SXM", "T4": "T4", "V100": "V100 16GB SXM2"}

_Key = tuple[str, str, int]


def llm_pilot_cases(data: Path) -> list[MeasuredCase]:
    """A case for each model, device and number of devices (which run tensor-parallel). Raises ConfigError.

    Prefill: the median time to first token of one user by prompt length, everything of the server in it.
    Decode: the median gap between tokens, taken as the step of as many sequences as there are users (some of
    which wait or are in prefill), of mean context.
    """
    steps: dict[_Key, list[MeasuredStep]] = defaultdict(list)
    for row in table_rows(data / FOLDER, "prefill_1user_by_input_bin.csv", _PREFILL):
        steps[_key(row)].append(_prefill(row))
    contexts: dict[_Key, list[float]] = defaultdict(list)
    for row in table_rows(data / FOLDER, "summary_by_users.csv", _DECODE):
        requests, failed = number(row, "requests"), number(row, "failed")
        if requests and failed <= _MOST_FAILED * (requests + failed):
            steps[_key(row)].append(_decode(row))
            contexts[_key(row)].append(number(row, "in_mean") + number(row, "out_mean") / 2)
    return [_case(key, steps[key], contexts[key]) for key in sorted(steps)]


def _key(row: dict[str, str]) -> _Key:
    return row["model"], row["gpu_type"], int(number(row, "n_gpus"))


def _prefill(row: dict[str, str]) -> MeasuredStep:
    is_profiled = int(number(row, "in_lo")) in _PROFILED_BINS
    tokens = round(number(row, "in_mean"))
    return MeasuredStep(number(row, "ttft_p50_ms") / 1e3, is_profiled, prompts=(tokens,), resolution_s=_RESOLUTION_S)


def _decode(row: dict[str, str]) -> MeasuredStep:
    users = int(number(row, "num_users"))
    seconds = number(row, "itl_p50_ms") / 1e3
    return MeasuredStep(seconds, users in _PROFILED_USERS, sequences=users, resolution_s=_RESOLUTION_S)


def _case(key: _Key, steps: list[MeasuredStep], contexts: list[float]) -> MeasuredCase:
    name, device, tp = key
    model = _MODELS.get(name)
    return MeasuredCase(
        table="llm_pilot",
        model=name,
        device=device,
        tp=tp,
        steps=tuple(steps),
        spec=SpecSubject(_DEVICES[device], model) if model is not None and device in _DEVICES else None,
        has_contexts=False,
        assumed_context=round(sum(contexts) / len(contexts)) if contexts else 0,
    )
